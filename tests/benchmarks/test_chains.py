# SPDX-License-Identifier: Apache-2.0
"""One run of iterative magnitude pruning that serves several sparsities, and folders that several processes share."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")

from sparsekit.benchmarks.chains import in_chains, passed_at  # noqa: E402
from sparsekit.benchmarks.claims import Claims  # noqa: E402
from sparsekit.benchmarks.compare import ROWS, Workbench, compare  # noqa: E402
from sparsekit.benchmarks.keeper import Interrupted, TimeIsUp  # noqa: E402
from sparsekit.benchmarks.one_run import Silent  # noqa: E402
from sparsekit.benchmarks.recipe import Recipe, RunConfig  # noqa: E402
from sparsekit.benchmarks.rows import read_rows  # noqa: E402
from sparsekit.benchmarks.speedup_suites import LADDER  # noqa: E402

# So short a training leaves layers that are pruned empty.
pytestmark = pytest.mark.filterwarnings("ignore::sparsekit.CollapseWarning")

SMALL = Recipe(limit=200, network="mlp", dense_epochs=1, epochs=1, batch_size=50)
CHAINED = ("imp", "imp-lth", "imp-finetune")


def runs(method: str, seed: int = 0, levels: tuple[float, ...] = LADDER[:3]) -> list[RunConfig]:
    return [RunConfig(method, sparsity, seed, SMALL) for sparsity in levels]


def told(row: dict[str, Any]) -> dict[str, Any]:
    """All of a row that is the same whenever and wherever it is made."""
    cost = {k: v for k, v in row["cost"].items() if "seconds" not in k and k != "selection_factor"}
    return {"id": row["id"], "result": row["result"], "cost": cost}


def test_only_rungs_of_the_same_ladder_are_passed() -> None:
    low, middle, high = runs("imp")
    odd = RunConfig("imp", 0.5, 0, SMALL)
    assert in_chains([high, odd, low, middle]) == {high: [low, middle], odd: []}
    for apart in (RunConfig("imp", LADDER[0], 1, SMALL), runs("imp-lth")[0], runs("imp@2")[0]):
        assert in_chains([high, apart]) == {high: [], apart: []}
    for method in ("imp-budget", "bip", "omp"):
        assert all(rungs == [] for rungs in in_chains(runs(method)).values())
    assert in_chains([RunConfig("imp", x, 0, Recipe(imp_rate=0.5)) for x in LADDER[:2]]).popitem()[1] == []


@pytest.mark.parametrize("method", CHAINED)
def test_a_chain_gives_what_its_runs_give_alone(method: str, tmp_path: Path) -> None:
    together = compare(runs(method), tmp_path / "chain")
    alone = [compare([config], tmp_path / "alone")[0] for config in runs(method)]
    assert [told(row) for row in together] == [told(row) for row in alone]
    assert [row["cost"]["epochs"] for row in together] == [3.0, 6.0, 9.0]
    seconds = [row["cost"]["seconds"] for row in together]
    assert seconds == sorted(seconds) and seconds[0] > 0
    assert len(read_rows(tmp_path / "chain" / ROWS)) == 3


def test_a_chain_that_is_cut_goes_on(tmp_path: Path) -> None:
    whole = compare(runs("imp"), tmp_path / "whole")
    cut = None
    for at in (7, 15, 16, 30, 99):  # rounds end after 12, 24 and 36 steps
        bench = Workbench(SMALL, tmp_path / "cut")

        class Cutting(Silent):
            def run(self, config: RunConfig, steps: int, at: int = at, stop: Any = bench.stop) -> Any:
                seen = count(1)
                return lambda: setattr(stop, "number", 2) if next(seen) == at else None

        with nullcontext() if at > 36 else pytest.raises(Interrupted):
            cut = compare(runs("imp"), tmp_path / "cut", Cutting(), bench)
    assert cut and [told(row) for row in cut] == [told(row) for row in whole]
    assert len(read_rows(tmp_path / "cut" / ROWS)) == 3


def test_a_rung_asked_for_later_is_run(tmp_path: Path) -> None:
    low, _, high = runs("imp")
    compare([high], tmp_path)
    assert [row["id"] for row in compare([low, high], tmp_path)] == [low.id, high.id]


def test_rungs_need_rounds() -> None:
    with pytest.raises(TypeError, match="compare: rungs: expected a pruner that works in rounds, got object"):
        passed_at(object(), runs("imp")[:1])  # pyright: ignore[reportArgumentType]


def test_time_that_is_up_keeps_what_is_begun(tmp_path: Path) -> None:
    bench = Workbench(SMALL, tmp_path)
    bench.dense(0)
    bench.stop.deadline = time.perf_counter()
    with pytest.raises(TimeIsUp):
        compare(runs("bip")[:1], tmp_path, bench=bench)
    assert list((tmp_path / "unfinished").iterdir())
    assert "result" in compare(runs("bip")[:1], tmp_path)[0]


def test_what_another_process_has_is_left_to_it(tmp_path: Path) -> None:
    low, _, high = runs("bip")
    hold = "import sys; from pathlib import Path; from sparsekit.benchmarks.claims import Claims\n"
    hold += f"c = Claims(Path({str(tmp_path)!r})); c._take({low.id!r}); print('held', flush=True); sys.stdin.read()"
    piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", hold], **piped) as other:  # pyright: ignore[reportCallIssue]
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        assert [row["id"] for row in compare([low, high], tmp_path)] == [high.id]
        other.kill()  # the system gives back what it had
    assert [row["id"] for row in compare([low, high], tmp_path)] == [low.id, high.id]


def test_waiting_for_a_claim_looks_up(tmp_path: Path) -> None:
    claims, looks = Claims(tmp_path), []
    with claims.waited_for("dense", lambda: looks.append(1)), claims.mine("dense") as mine:
        assert mine and not looks
    claims.close()


PROGRAM = """
import sys
from pathlib import Path
from sparsekit.benchmarks.compare import compare
from sparsekit.benchmarks.recipe import Recipe, RunConfig
from sparsekit.benchmarks.speedup_suites import LADDER
recipe = Recipe(limit=200, network="mlp", dense_epochs=1, epochs=1, batch_size=50)
compare([RunConfig(m, s, 0, recipe) for m in ("bip", "omp", "imp") for s in LADDER[:3]], Path(sys.argv[1]))
"""


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "two")]
    workers = [subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) for _ in range(2)]
    assert [worker.wait(timeout=200) for worker in workers] == [0, 0]
    rows = read_rows(tmp_path / "two" / ROWS)
    configs = [RunConfig(m, s, 0, SMALL) for m in ("bip", "omp", "imp") for s in LADDER[:3]]
    assert sorted(row["id"] for row in rows) == sorted(config.id for config in configs)
    alone = compare(configs, tmp_path / "one")
    assert {row["id"]: told(row) for row in rows} == {row["id"]: told(row) for row in alone}


def test_a_rung_asked_for_when_the_run_is_past_it_is_run_at_once(tmp_path: Path) -> None:
    low, middle, high = runs("imp")
    bench = Workbench(SMALL, tmp_path)

    class Cutting(Silent):
        def run(self, config: RunConfig, steps: int) -> Any:
            seen = count(1)
            return lambda: setattr(bench.stop, "number", 2) if next(seen) == 30 else None

    with pytest.raises(Interrupted):
        compare([high], tmp_path, Cutting(), bench)  # in the third level, rounds end after 12, 24 and 36 steps
    rows = compare([low, middle, high], tmp_path)
    assert [row["id"] for row in rows] == [low.id, middle.id, high.id]
    alone = compare([low, middle, high], tmp_path / "alone")
    assert [told(row) for row in rows] == [told(row) for row in alone]


def test_a_chain_that_blows_up_says_so_at_every_rung_it_did_not_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    low, middle, high = runs("imp")
    bench, real, seen = Workbench(SMALL, tmp_path), None, count(1)
    bench.dense(0)
    real = bench.loss

    def loss(model: Any, batch: Any) -> Any:
        return real(model, batch) * (float("nan") if next(seen) > 15 else 1.0)

    bench.loss = loss
    bench._warm.add("dense")
    rows = compare([low, middle, high], tmp_path, bench=bench)
    assert ["result" in row for row in rows] == [True, False, False]
    assert all("expected a finite value" in row["error"] for row in rows[1:])
    assert [row["id"] for row in read_rows(tmp_path / ROWS)] == [low.id, high.id, middle.id]
    bench.loss = real
    again = compare([low, middle, high], tmp_path, bench=bench)
    assert all("result" in row for row in again)
