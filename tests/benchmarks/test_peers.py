# SPDX-License-Identifier: Apache-2.0
"""The table of pruning libraries: our column holds, and a row that fails says why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsekit.benchmarks.peers import table as peers
from sparsekit.benchmarks.peers.checks import (
    CHECKS,
    Check,
    baked_loads_strictly,
    compiles,
    exports,
    names_stay,
    pickles,
    resumes,
    stored_stays,
)
from sparsekit.benchmarks.peers.libraries import LIBRARIES
from sparsekit.benchmarks.peers.library import NotOffered

OWN, TORCH = LIBRARIES[-1], LIBRARIES[0]
PAGE = Path(__file__).parents[2] / "docs" / "peers.md"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_our_column_holds(check: Check) -> None:
    passed, evidence = check(OWN)
    assert passed, evidence


# What torch.nn.utils.prune is known to fail, which shows that these checks can.
FAILS = {"copies", "names_stay", "dense_loads", "stored_stays", "bakes_and_goes_on", "attention", "tied"}
IDLE = replace(OWN, prune=lambda model, x, sparsity: model, baked=lambda model, x: model, sparsity=lambda model: 0.9)
IDLE_FAILS = {"reports_sparsity", "convolutions", "exact_global", "exact_ties", "large", "stays_zero", "recurrent"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("check", [c for c in CHECKS if c.__name__ in FAILS | IDLE_FAILS], ids=lambda c: c.__name__)
def test_checks_that_fail_for_others(check: Check) -> None:
    cell = peers.examine(TORCH if check.__name__ in FAILS else IDLE, check)
    assert cell.passed is False, cell


@pytest.mark.parametrize(
    "check, change",
    [
        (resumes, {"resume": lambda model, fresh, x: fresh}),
        (baked_loads_strictly, {"baked": lambda model, x: model}),
        (pickles, {"prune": lambda model, x, sparsity: setattr(model, "hook", lambda: 0) or model}),
        (exports, {"prune": lambda model, x, sparsity: model.register_forward_hook(breaks) and model}),
        (compiles, {"prune": lambda model, x, sparsity: model.register_forward_hook(breaks) and model}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_other_checks_can_fail(check: Check, change: dict[str, Any]) -> None:
    assert peers.examine(replace(OWN, **change), check).passed is False


def breaks(_: Any, __: Any, y: Any) -> Any:
    return y + float(y.sum().item() > 0 and torch._dynamo.graph_break() is None)


def broken(*_: object) -> None:
    raise RuntimeError("\x1b[1mtwo\nlines | <here> " + "x" * 200)


def test_cells() -> None:
    cell = peers.examine(replace(OWN, prune=broken), names_stay)
    assert cell.passed is False and cell.evidence.startswith("RuntimeError: two lines | <here> xxx")
    assert cell.evidence.endswith("x...") and len(cell.evidence) < 140

    def refuse(*_: object) -> None:
        raise NotOffered("no masks")

    assert peers.examine(replace(OWN, prune=refuse), names_stay) == peers.Cell(None, "no masks")
    absent = replace(OWN, package="no-such-package")
    assert absent.version == "not installed"
    assert peers.examine(absent, names_stay) == peers.Cell(None, "not installed")
    assert peers.examine(TORCH, names_stay).evidence == "changed: conv.weight, conv.weight_orig, fc1.weight"
    assert "drift of 0." in peers.examine(TORCH, stored_stays).evidence


def test_page() -> None:
    row = {"torch.nn.utils.prune": peers.Cell(False, "a <b> | c"), "sparsekit": peers.Cell(True, "fine")}
    text = peers.page({"The row": row, "Other": {n: peers.Cell(None, "not installed") for n in row}})
    assert "| The row | **no** | yes |" in text and "| Other | n/a | n/a |" in text
    assert "- torch.nn.utils.prune: **no**: a &lt;b> \\| c" in text


def test_the_committed_page_has_every_row_and_our_column_holds() -> None:
    text = PAGE.read_text()
    for check in CHECKS:
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {(check.__doc__ or '').strip()} |")]
        assert line.endswith("| yes |"), line
    assert all(library.name in text for library in LIBRARIES)
