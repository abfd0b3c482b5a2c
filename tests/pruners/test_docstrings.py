# SPDX-License-Identifier: Apache-2.0
"""What a user reads in an editor: every argument of every pruner and option has its line, and no line is of another."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields

import pytest

import sparsekit as sk
from sparsekit.pruners.base import BasePruner

PUBLIC = [getattr(sk, name) for name in sk.__all__]
PRUNERS = [kind for kind in PUBLIC if inspect.isclass(kind) and issubclass(kind, BasePruner)]
OPTIONS = [sk.BiPOptions, sk.IMPOptions, sk.ProbMaskOptions, sk.SpODEOptions]


def entries(text: str, indent: int) -> set[str]:
    """Names before the colon of an entry, of which a line may hold several: "steps: ... every: ..."."""
    lines = [line[indent:] for line in text.splitlines() if re.match(rf" {{{indent}}}\w+(, \w+)*: ", line)]
    return {
        name for line in lines for head in re.findall(r"(?:^|\. )(\w+(?:, \w+)*): ", line) for name in head.split(", ")
    }


@pytest.mark.parametrize("kind", PRUNERS)
def test_every_argument_of_a_pruner_is_documented(kind: type[BasePruner]) -> None:
    signature = inspect.signature(kind).parameters
    assert all(p.annotation is not p.empty for p in signature.values())
    text = (inspect.getdoc(kind) or "").split("Args:\n")[1].split("\n\n")[0]
    assert entries(text, 4) - {"Source"} == signature.keys()


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_option_is_documented(kind: type) -> None:
    text = inspect.getdoc(kind) or ""
    assert entries(text, 0) == {field.name for field in fields(kind)}
