# SPDX-License-Identifier: Apache-2.0
"""Reads a page as a browser would: tags, ids, addresses, and whether every element is closed."""

from __future__ import annotations

import html.parser


def stands_alone(text: str) -> bool:
    """Is it whole, without scripts, and does it lead nowhere but into itself?"""
    page = Page(text)
    assert not page.open and len(set(page.ids)) == len(page.ids)
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert all(address.startswith("#") for address in page.addresses)
    assert {address[1:] for address in page.addresses} <= set(page.ids)
    return "url(http" not in text and "@import" not in text and "prefers-color-scheme: dark" in text


class Page(html.parser.HTMLParser):
    """Collects tags, ids and addresses, and checks that every element is closed."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href"):
                self.addresses.append(str(value))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
