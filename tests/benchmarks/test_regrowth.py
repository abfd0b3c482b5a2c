# SPDX-License-Identifier: Apache-2.0
"""Rows and figure of the regrowth experiment, and the methods of rounds that it compares."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparsekit as sk
from sparsekit.allocation import kept_count
from sparsekit.benchmarks import regrowth
from sparsekit.benchmarks.builders import Start, projection_of
from sparsekit.benchmarks.engine import Workbench
from sparsekit.benchmarks.families import iterative
from sparsekit.benchmarks.families.iterative import training_steps
from sparsekit.benchmarks.masking import sparsify_for
from sparsekit.benchmarks.methods import METHODS
from sparsekit.benchmarks.recipe import Recipe
from sparsekit.benchmarks.recipe_files import find_recipe, read_recipe, recipe_names
from sparsekit.benchmarks.rows import read_rows
from sparsekit.schedules import Geometric

SMALL = Recipe(network="mlp", limit=96, batch_size=16, dense_epochs=1, epochs=2, ode_steps=20, ode_batch=32, radius=1.4)

BOTH = ("optimizer", "final_optimizer")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("regrowth")
    found = list(regrowth.run(regrowth.METHODS, 0.7, 1, SMALL, folder))
    regrowth.plot(found, folder / "some" / "figure.png")
    assert (folder / "some" / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return {method: [row for row in found if row["method"] == method] for method in regrowth.METHODS}


@pytest.mark.parametrize("method", regrowth.METHODS)
def test_rows_of_a_run(method: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    own = rows[method]
    total = 64 * 256 + 256 * 128 + 128 * 10
    assert own[-1]["kept"] == kept_count(total, 0.7) and {row["total"] for row in own} == {total}
    assert [row["step"] for row in own] == sorted(row["step"] for row in own)
    assert [row["regrown"] for row in own] == sorted(row["regrown"] for row in own) and own[0]["regrown"] == 0
    assert (own[-1]["regrown"] > 0) == ("spode" in method)
    assert own[0]["environment"] and (own[0]["kind"], own[0]["target"], own[0]["seed"]) == ("regrowth", 0.7, 0)
    assert own[0]["sparsity"] == (pytest.approx(1 - 0.3**0.1, abs=1e-4) if method == "iter-magnitude" else 0.0)


def test_rounds_end_at_their_counts(rows: dict[str, list[dict[str, Any]]]) -> None:
    kept = list(dict.fromkeys(row["kept"] for row in rows["iter-magnitude"]))
    assert kept == [kept_count(rows["spode"][0]["total"], Geometric(0.0, 0.7, 0, 10)(j)) for j in range(1, 11)]


def test_how_the_training_is_shared_out() -> None:
    recipe = Recipe(epochs=140)
    assert training_steps(recipe, 1) == (5, 90) and training_steps(recipe, 390) == (1950, 35100)
    assert training_steps(Recipe(epochs=6), 20) == (4, 80)  # 120 steps
    assert training_steps(Recipe(epochs=1), 3) == (1, 1)


@pytest.mark.parametrize("method", [f"iter-{name}" for name in ("magnitude", "spode", "snip", "grasp", "synflow")])
def test_rates_are_equal_and_as_released_they_are_not(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(iterative, "Iterative", lambda *a, **b: seen.append(b))
    for name in (method, f"{method}-released"):
        bench = Workbench(SMALL, tmp_path)
        start = Start(nn.Linear(2, 2), bench.loss, {}, 0.5, SMALL, 6, 96)
        METHODS[name].build(start)
    rates = [
        tuple(given[which]([nn.Parameter(torch.ones(1))]).param_groups[0]["lr"] / SMALL.lr for which in BOTH)
        for given in seen
    ]
    assert rates == [(1, 1), pytest.approx((1, 0.3) if method == "iter-spode" else (0.01, 1))]


def test_the_last_training_is_fine_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(iterative, "Iterative", lambda *a, **b: seen.append(b))
    recipe = replace(SMALL, lr=0.5, curve="linear", finetune_lr=0.25, finetune_curve="constant")
    for name in ("iter-magnitude", "iter-magnitude-released"):
        bench = Workbench(recipe, tmp_path)
        METHODS[name].build(Start(nn.Linear(2, 2), bench.loss, {}, 0.5, recipe, 6, 96))
    rates = [[given[key]([nn.Parameter(torch.ones(1))]).param_groups[0]["lr"] for key in BOTH] for given in seen]
    assert rates == [[0.5, 0.25], [0.005, 0.5]]
    assert {(given["curve"], given["final_curve"]) for given in seen} == {("linear", "constant")}


def test_a_round_of_spode_has_the_settings_of_the_recipe(tmp_path: Path) -> None:
    recipe = replace(SMALL, polariser="ohm", score_momentum=0.9)
    bench = Workbench(recipe, tmp_path)
    for name in ("iter-spode", "iter-spode-released"):
        model = bench.network(0)
        sk.sparsify(model)
        pruner: Any = METHODS[name].build(Start(model, bench.loss, {}, 0.5, recipe, 6, 96))
        inner = pruner.inner
        found = inner.steps, inner.radius, inner.polariser, inner.options.score_momentum
        assert found == (2, 1.4, "ohm", 0.9)


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.endswith("-iterative")])
def test_rates_of_the_papers_recipes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(iterative, "Iterative", lambda *a, **b: seen.append(b))
    values = read_recipe(find_recipe(name)).values
    recipe = Recipe(**{f.name: values[f.name] for f in fields(Recipe) if f.name in values})
    for inner in ("spode", "spode-released", "magnitude-released", "snip-released"):
        METHODS[f"iter-{inner}"].build(Start(nn.Linear(2, 2), lambda model, batch: batch, {}, 0.5, recipe, 6, 96))
    rates = [[given[key]([nn.Parameter(torch.ones(1))]).param_groups[0]["lr"] for key in BOTH] for given in seen]
    assert rates == [pytest.approx(pair) for pair in (*[(0.01, 0.003)] * 2, *[(0.0001, 0.01)] * 2)]


def test_what_is_scored_as_released(tmp_path: Path) -> None:
    bench = Workbench(SMALL, tmp_path)
    found = {}
    for name in ("iter-snip-released", "iter-grasp-released", "iter-synflow-released"):
        model = bench.network(0)
        sk.sparsify(model)
        found[name] = METHODS[name].build(Start(model, bench.loss, {}, 0.5, SMALL, 6, 96)).inner
    assert [found[name].batches for name in found] == [6, 6, 1]
    synflow = found["iter-synflow-released"]
    assert (synflow.batchnorm, synflow.options["double"], synflow.rounds) == ("train", False, 10)


@pytest.mark.parametrize("name", ["magnitude", "spode", "snip", "grasp", "synflow"])
def test_what_a_round_prunes_by(name: str, tmp_path: Path) -> None:
    recipe = replace(SMALL, structure="filter")
    bench = Workbench(recipe, tmp_path)
    for method in (f"iter-{name}", f"iter-{name}-released"):
        model = bench.network(0)
        sparsify_for(model, recipe)
        inner: Any = METHODS[method].build(Start(model, bench.loss, {}, 0.5, recipe, 6, 96)).inner
        assert inner.projection == projection_of(recipe) and inner.sparsity == pytest.approx(1 - 0.5**0.1)
        if name == "spode":
            assert (inner.radius, inner.recalibrate, inner.steps) == (1.4, 0, 2)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(regrowth, "recipe_for", lambda data, **settings: SMALL)
    out = tmp_path / "rows.jsonl"
    regrowth.main(["--out", str(out), "--methods", "spode", "--sparsity", "0.7"])
    found = read_rows(out)
    assert f"{found[-1]['regrown']:,} taken back" in capsys.readouterr().out and out.with_suffix(".png").exists()
    for wrong in (["--methods", "spoed"], ["--seeds", "0"], ["--sparsity", "1.5"]):
        with pytest.raises(SystemExit):
            regrowth.main(["--out", str(out), *wrong])
    assert read_rows(out) == found
