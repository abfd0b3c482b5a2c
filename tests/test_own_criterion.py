# SPDX-License-Identifier: Apache-2.0
"""A criterion of the user's: at most 30 lines, and everything else works with it."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsekit as sk
from sparsekit.allocation import kept_count

pytest.importorskip("sklearn")
pytest.importorskip("typer")

OWN = '''
"""Diagonal Fisher: what removing a weight costs to second order, theta^2 E[h^2] / 2."""

import torch

import sparsekit as sk


@sk.criterion("fisher", batches=2, rounds=3)
def fisher(scoring):
    total = {name: torch.zeros_like(w) for name, w in scoring.weights.items()}
    for batch in scoring.batches:
        for name, h in scoring.gradients(batch).items():
            total[name] += h.square()
    return {name: w.square() * total[name] / 2 for name, w in scoring.weights.items()}
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of the module with the criterion."""
    (tmp_path / "own_fisher.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_fisher"
    sys.modules.pop("own_fisher", None)


def test_it_is_short() -> None:
    assert len(OWN.strip().splitlines()) <= 30


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    sk.sparsify(model)
    return model


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    while True:
        yield torch.randn(9, 6, generator=generator), torch.randint(3, (9,), generator=generator)


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


@pytest.mark.parametrize("pattern", ["unstructured", "filter", "channel-l1"])
@pytest.mark.parametrize("rounds", [1, 4])
def test_schedule_structure_and_resume(own: str, pattern: str, rounds: int) -> None:
    importlib.import_module(own)
    projection = sk.Projection(pattern, "uniform")

    def make(model: nn.Module) -> sk.CriterionPruning:
        more: dict[str, Any] = {"optimizer": sgd, "steps": 3, "rounds": rounds, "projection": projection}
        return sk.CriterionPruning(model, loss, 0.5, "fisher", **more)

    model = network()
    pruner, given = make(model), batches()
    for _ in range(2):
        pruner.step(given)
    assert pruner.cost.passes == 2 * rounds + 1
    counts = {name: kept_count(m.numel, 0.5) for name, m in pruner.masks.items()}
    if pattern == "unstructured":
        assert {name: m.count() for name, m in pruner.masks.items()} == counts
    for mask in pruner.masks.values() if pattern != "unstructured" else ():
        units = mask.dense() if pattern == "filter" else mask.dense().T
        assert torch.equal(units.any(1), units.all(1)) and int(units.all(1).sum()) == kept_count(len(units), 0.5)
    again = network()
    resumed = make(again)
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(pruner.state_dict())
    rest = batches()
    for _ in range(2 * rounds + 1):
        next(rest)
    pruner.fit([next(given)])
    resumed.fit([next(rest)])
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_the_command_line_and_the_report(own: str, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from sparsekit.cli import app

    few = ["--limit", "100", "--dense-epochs", "1", "--epochs", "1", "--network", "mlp", "--batch-size", "16"]
    methods = ["--methods", f"imp,{own}:fisher,{own}:fisher@2", "--sparsity", "0.6", "--seeds", "1"]
    done = CliRunner().invoke(app, ["compare", *methods, *few, "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert [row["method"] for row in rows] == ["imp", "own_fisher:fisher", "own_fisher:fisher@2"]
    for row, epochs in zip(rows[1:], (1, 2), strict=True):
        assert row["result"]["kept"] == kept_count(row["result"]["total"], 0.6)
        assert row["cost"]["dense_epochs"] == pytest.approx(epochs + 6 * 16 / 96)
    report = (tmp_path / "out" / "report.html").read_text()
    assert "own_fisher:fisher" in report and "the criterion fisher, trained from init" in report
    for structure in ("unstructured", "filter"):
        out = str(tmp_path / structure)
        prune = ["prune", "--method", f"{own}:fisher", "--sparsity", "0.5", "--structure", structure]
        done = CliRunner().invoke(app, [*prune, *few, "--out", out])
        assert done.exit_code == 0, done.output
        again = CliRunner().invoke(app, ["resume", out])
        assert again.exit_code == 0 and "finished" in again.output


@pytest.mark.parametrize(
    "name, text",
    [
        ("nowhere:fisher", "method: expected an importable module:function, got 'nowhere:fisher'"),
        ("own_fisher:other", "method: expected an importable module:function, got 'own_fisher:other'"),
        (":fisher", "method: expected an importable module:function, got ':fisher'"),
        ("own_fisher:torch", "method: expected 'own_fisher:torch' to be a Criterion or a Method, got module"),
        ("fisher", "method: expected one of imp, .* or module:name, got 'fisher'"),
    ],
)
def test_a_name_that_is_none_is_an_error(own: str, name: str, text: str) -> None:
    from sparsekit.benchmarks.methods import as_method

    with pytest.raises((ValueError, TypeError), match=text):
        as_method(name)


def test_a_criterion_may_start_from_trained_weights_and_reading_rows_imports_nothing(own: str) -> None:
    from sparsekit.benchmarks.families.criteria import criterion_method
    from sparsekit.benchmarks.methods import as_method, known_method

    assert known_method(f"{own}:never") is None and own not in sys.modules
    assert not as_method(f"{own}:fisher").pretrained and known_method(f"{own}:fisher@2") is as_method(f"{own}:fisher")
    module: Any = importlib.import_module(own)
    module.trained = criterion_method(module.fisher, pretrained=True)
    assert as_method(f"{own}:trained") is module.trained and module.trained.pretrained
