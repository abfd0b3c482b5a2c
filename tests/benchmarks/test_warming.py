# SPDX-License-Identifier: Apache-2.0
"""Seconds outside of the clock: captures of graphs and first steps, told apart from the work and without effect on it."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sklearn")

from sparsekit.benchmarks import warming  # noqa: E402
from sparsekit.benchmarks.engine import Workbench  # noqa: E402
from sparsekit.benchmarks.methods import METHODS  # noqa: E402
from sparsekit.benchmarks.one_run import Silent, run_model  # noqa: E402
from sparsekit.benchmarks.recipe import Recipe, RunConfig  # noqa: E402
from sparsekit.pruners import base, capture  # noqa: E402
from sparsekit.schedules import imp_ladder  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::sparsekit.CollapseWarning")

SMALL = Recipe(network="mlp", limit=100, dense_epochs=1, epochs=2, batch_size=20, ode_steps=6, ode_batch=20)
SPARSITY = 0.488


def config(method: str, recipe: Recipe = SMALL) -> RunConfig:
    return RunConfig(method, 0.0 if method.startswith("dense") else SPARSITY, 0, recipe)


def told(row: dict[str, Any]) -> dict[str, Any]:
    """All of a row that is the same however long it took."""
    cost = {k: v for k, v in row["cost"].items() if "seconds" not in k and k != "selection_factor"}
    return {"id": row["id"], "result": row["result"], "cost": cost}


@pytest.mark.parametrize("method", METHODS)
def test_first_steps_are_taken_once_and_change_nothing(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Workbench(SMALL, tmp_path)
    _, expected = run_model(config(method), plain)
    assert expected["cost"]["warm_up_seconds"] == 0.0
    monkeypatch.setattr(warming, "DEVICES", {"cpu"})
    bench = Workbench(SMALL, tmp_path)
    rows = [run_model(config(name), bench)[1] for name in (method, f"{method}@1.5")]
    assert told(rows[0]) == told(expected)
    assert rows[0]["cost"]["warm_up_seconds"] > 0 and rows[1]["cost"]["warm_up_seconds"] == 0.0


class Clock:
    """Goes on by 1 with each step and by 1000 with each capture."""

    def __init__(self) -> None:
        self.time, self.captures = 0.0, 0

    def __call__(self) -> float:
        return self.time

    def step(self) -> None:
        self.time += 1.0


class Steps(Silent):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def dense(self, seed: int, steps: int) -> Any:
        return self.clock.step

    def run(self, config: RunConfig, steps: int) -> Any:
        return self.clock.step


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Graphs are imitated on the CPU, see tests/pruners/replay.py."""
    file = Path(__file__).parents[1] / "pruners" / "replay.py"
    if "replay" not in sys.modules:
        spec = importlib.util.spec_from_file_location("replay", file)
        assert spec and spec.loader
        sys.modules["replay"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["replay"])
    replay, clock = sys.modules["replay"], Clock()

    class Graph(replay.Graph):
        def capture(self, work: Any) -> Any:
            clock.time, clock.captures = clock.time + 1000.0, clock.captures + 1
            return super().capture(work)

    class Graphs(replay.Graphs):
        def clock(self) -> float:
            return clock()

        def new(self) -> Graph:
            return Graph()

    def check(self: Any, flag: torch.Tensor, message: str) -> None:
        self._problems[message] = flag

    monkeypatch.setattr(Recipe, "__post_init__", lambda self: None)  # which refuses graphs on a CPU
    monkeypatch.setattr(capture, "CudaGraphs", Graphs)
    monkeypatch.setattr(capture.Captured, "_device", lambda self, pruner: torch.device("cuda"))
    monkeypatch.setattr(base.BasePruner, "_check", check)
    return clock


@pytest.mark.parametrize(
    "method, captures", [("imp", 3), ("imp-budget", 3), ("gmp", 1), ("bip", 3), ("bip-1pass", 3), ("spode", 2)]
)
def test_captures_are_on_no_clock(method: str, captures: int, tmp_path: Path, clock: Clock) -> None:
    plain = run_model(config(method), Workbench(SMALL, tmp_path))[1]
    recipe = replace(SMALL, graphs=True)
    bench = Workbench(recipe, tmp_path / "graphs")
    bench.clock = clock  # pyright: ignore[reportAttributeAccessIssue]
    _, row = run_model(config(method, recipe), bench, Steps(clock))
    cost, dense = row["cost"], row["dense"]
    assert dense["seconds"] == dense["passes"] == 5 and dense["capture_seconds"] == 1000.0
    assert cost["seconds"] == cost["steps"] == plain["cost"]["steps"]
    assert cost["capture_seconds"] == 1000.0 * captures and clock.captures == captures + 1
    assert row["result"]["kept"] == plain["result"]["kept"]


def test_rungs_of_a_chain_know_their_own_captures(tmp_path: Path, clock: Clock) -> None:
    recipe = replace(SMALL, graphs=True)
    bench = Workbench(recipe, tmp_path)
    bench.clock = clock  # pyright: ignore[reportAttributeAccessIssue]
    high = RunConfig("imp", SPARSITY, 0, recipe)
    low = RunConfig("imp", imp_ladder(SPARSITY, recipe.imp_rate)[0], 0, recipe)
    seen: dict[str, Any] = {}
    _, row = run_model(high, bench, Steps(clock), [low], lambda rung, found: seen.update({rung.id: found}))
    assert seen[low.id]["cost"]["capture_seconds"] == 1000.0 and row["cost"]["capture_seconds"] == 3000.0
    assert seen[low.id]["cost"]["seconds"] == seen[low.id]["cost"]["steps"] == 10
