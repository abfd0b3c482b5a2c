# SPDX-License-Identifier: Apache-2.0
"""The pages build without a warning, and there is one for every method and every public name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import sparsekit as sk
from sparsekit.benchmarks.families.ablations import ABLATIONS, SWEPT
from sparsekit.benchmarks.methods import METHODS

DOCS = Path(__file__).parents[1] / "docs"
CARDS = sorted(path for path in (DOCS / "methods").glob("*.md") if path.stem != "index")
HEADINGS = (
    "Formula",
    "In sparsekit",
    "What the released code does differently",
    "The source's recipe",
    "The papers' numbers",
    "Our numbers",
    "Deviations and unknowns",
)


@pytest.mark.slow
def test_the_pages_build(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        str(DOCS),
        str(tmp_path / "html"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "html" / "methods" / "bip.html").is_file()


@pytest.mark.parametrize("path", [card for card in CARDS if card.stem != "iterative"], ids=lambda path: path.stem)
def test_a_card_says_all_that_a_card_says(path: Path) -> None:
    assert tuple(re.findall(r"^## (.+)$", path.read_text(), re.MULTILINE)) == HEADINGS
    parts = re.split(r"^## .+$", path.read_text(), flags=re.MULTILINE)
    assert all(len(part.strip()) > 10 for part in parts), "a heading with nothing below it"


@pytest.mark.parametrize("method", [m for m in METHODS if m not in {**ABLATIONS, **SWEPT, "dense": None}])
def test_every_method_has_a_card(method: str) -> None:
    assert [card.stem for card in CARDS if f"`{method}`" in card.read_text()], f"no card names {method}"


def test_cards_name_methods_that_exist() -> None:
    for card in CARDS:
        for method in re.findall(r"table:(?:ours|paper)-([\w-]+)", card.read_text()):
            assert method in METHODS, f"{card.name}: {method}"


def test_all_pages_are_in_the_contents() -> None:
    listed = "".join((DOCS / name).read_text() for name in ("index.md", "methods/index.md"))
    for page in [*DOCS.glob("*.md"), *CARDS]:
        assert page.stem == "index" or re.search(rf"^(methods/)?{re.escape(page.stem)}$", listed, re.MULTILINE), (
            page.name
        )


def test_every_public_name_is_in_the_reference() -> None:
    documented = re.findall(
        r"^\.\. auto(?:class|function):: sparsekit\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE
    )
    assert sorted(documented) == sorted(set(sk.__all__))
