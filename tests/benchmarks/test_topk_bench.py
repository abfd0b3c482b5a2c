# SPDX-License-Identifier: Apache-2.0
"""The benchmark of top-k masks on tiny problems: who takes part, what rows say, and that nothing wrong is ever timed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_topk
import torch
from torch import Tensor

from sparsekit import ops
from sparsekit.benchmarks import bench_rows, gpu, timing, topk_checks, topk_providers
from sparsekit.benchmarks import bench_topk_mask as bench
from sparsekit.benchmarks.rows import read_rows
from sparsekit.benchmarks.topk_checks import CONTRACT
from sparsekit.benchmarks.topk_problems import TopkProblem, choose_problems
from sparsekit.benchmarks.topk_providers import FLOOR, PACKED, Provider, providers

IDIOMS = ["kthvalue + compare", "topk + scatter", "sort + scatter", "np.partition + compare"]
RADIX = "sparsekit radix"
OURS = [PACKED, "sparsekit, bool", "sparsekit, warm"]
VECTOR = TopkProblem("8", ((8,),), "float32", "normal", 0.5)
LIST = TopkProblem("small", tiny_topk.LISTS["small"], "float32", "normal", 0.5)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_topk.shrink(monkeypatch)


def names(problem: TopkProblem, device: str = "cpu") -> list[str]:
    return [provider.name for provider in providers(problem, device)]


def test_who_takes_part() -> None:
    assert names(VECTOR) == [*IDIOMS, RADIX, FLOOR, *OURS]
    assert names(LIST) == [*IDIOMS, "BiP as released", RADIX, FLOOR, *OURS]
    pair = TopkProblem("pair", tiny_topk.OVERHEAD["pair"], "float32", "normal", 0.5)
    assert names(pair) == ["sparsekit, one tensor", "topk + scatter", RADIX, FLOOR, *OURS]
    assert "np.partition + compare" not in names(VECTOR, "cuda")


def test_rows() -> None:
    rows = list(bench.run(2))
    assert list(dict.fromkeys(row["problem"] for row in rows)) == tiny_topk.QUICK_NAMES
    by_name = {problem.name: problem for problem in choose_problems("cpu")}
    for row in rows:
        assert json.loads(json.dumps(row, allow_nan=False)) == row
        problem = by_name[row["problem"]]
        assert (row["bench"], row["kind"], row["device"], row["torch"]) == (
            "topk_mask",
            "bench",
            "cpu",
            torch.__version__,
        )
        assert (row["n"], row["tensors"], row["kept"]) == (problem.numel, len(problem.shapes), problem.kept)
        assert (row["dtype"], row["contents"]) == (problem.dtype, problem.contents)
        assert row["kept_fraction"] == problem.kept_fraction and row["rounds"] == 2
        floor = next(r for r in rows if r["problem"] == row["problem"] and r["provider"] == FLOOR)
        assert row["floor_ratio"] == row["median_s"] / floor["median_s"] and ("kept_found" in row) == (row is not floor)
    for problem in by_name.values():
        found = [row for row in rows if row["problem"] == problem.name]
        assert [r["provider"] for r in found] == names(problem)
        assert {row["baseline"] for row in found} == {found[0]["provider"]}


def test_who_keeps_all_ties_is_marked() -> None:
    rows = {row["provider"]: row for row in bench.run(1, only="*/two/*")}
    marked = {name for name, row in rows.items() if "note" in row}
    assert marked == {"kthvalue + compare", "np.partition + compare"}
    assert rows["kthvalue + compare"]["note"] == "not exact under ties"
    assert rows["kthvalue + compare"]["kept_found"] > 20 == rows["sort + scatter"]["kept_found"] == rows[PACKED]["kept"]


def test_the_copy_moves_the_bytes_of_a_selection() -> None:
    for scores, moved in (([torch.ones(33)], 33 * 4 + 5), ([torch.ones(64).bfloat16(), torch.ones(3)], 136 + 13)):
        copy = topk_providers._copy(scores, 1)
        (target,) = copy()
        assert target.dtype == torch.uint8 and target.numel() == -(-moved // 2) and bool((target == 1).all())


# What others than this library, or a later version of it, may offer


def select(provider: Provider, problem: TopkProblem = LIST) -> Sequence[Tensor]:
    scores = problem.scores("cpu")
    masks = provider.prepare(scores, problem.kept)()
    check = topk_checks.TopkCheck(scores, problem.kept)
    check(PACKED, ops.topk_mask(scores, problem.kept).masks, CONTRACT)
    assert provider.rule is not None and check(provider.name, masks, provider.rule) == problem.kept
    return masks


def find(name: str, problem: TopkProblem = LIST, device: str = "cpu") -> Provider:
    return next(provider for provider in providers(problem, device) if provider.name == name)


def test_radix_and_warm_keep_the_contract() -> None:
    for name in (RADIX, "sparsekit, warm"):
        assert find(name).rule == CONTRACT and len(select(find(name))) == 2


def test_warm_begins_where_an_earlier_selection_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    real, given = ops.topk_mask, []

    def watched(scores: list[Tensor], kept: int, *, warm: Tensor) -> ops.Selection:
        given.append(warm.clone())
        return real(scores, kept, warm=warm)

    monkeypatch.setattr(ops, "topk_mask", watched)
    problem = TopkProblem("vector", ((5000,),), "float32", "normal", 0.5)
    function = find("sparsekit, warm", problem).prepare(problem.scores("cpu"), problem.kept)
    assert [int(w[0, 2]) for w in given] == [0]  # the first selection is not timed
    function()
    assert int(given[1][0, 2]) == 1


def test_cupy_takes_part_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk_providers.importlib.util, "find_spec", lambda name: None)
    assert "cupy.partition + compare" not in names(VECTOR, "cuda")
    monkeypatch.setattr(topk_providers.importlib.util, "find_spec", lambda name: name == "cupy" or None)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(from_dlpack=np.from_dlpack, partition=np.partition))
    assert "cupy.partition + compare" in names(VECTOR, "cuda")
    for problem in (LIST, replace(LIST, dtype="bfloat16", sparsity=0.99)):
        select(find("cupy.partition + compare", problem, "cuda"), problem)


# Slow ones

Slow = dict[Any, float]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    """Selections by the seconds that they are said to take; the others take none."""
    chosen: Slow = {}

    def seconds(function: Any, device: torch.device) -> tuple[float, Any]:
        return chosen.get(getattr(function, "func", None), 0.0), function()

    monkeypatch.setattr(bench, "_seconds", seconds)
    return chosen


def test_slow_idioms_get_three_rounds_beside_the_baseline(slow: Slow) -> None:
    slow[topk_providers._sort] = 2.0
    rows = bench.measure(LIST, 5, "cpu")
    assert [row["provider"] for row in rows][:3] == IDIOMS[:3]
    assert {row["provider"]: row["rounds"] for row in rows if row["rounds"] != 5} == {"sort + scatter": 3}
    assert [row["rounds"] for row in bench.measure(LIST, 2, "cpu")] == [2] * len(rows)


def test_beside_a_slow_baseline_all_get_three_rounds(slow: Slow) -> None:
    slow[topk_providers._kthvalue] = 2.0
    rows = bench.measure(VECTOR, 5, "cpu")
    assert {row["rounds"] for row in rows} == {3} and {row["baseline"] for row in rows} == {"kthvalue + compare"}


def test_of_very_large_problems_slow_idioms_are_left_out(monkeypatch: pytest.MonkeyPatch, slow: Slow) -> None:
    monkeypatch.setattr(bench, "LARGEST", 7)
    monkeypatch.setattr(bench, "PROBE", 4)
    # On a sample of half the entries: what takes 0.6 s there would take 1.2 s.
    slow |= {topk_providers._kthvalue: 0.6, topk_providers._partition: 2.0, topk_providers._packed: 2.0}
    slow[topk_providers._topk] = 0.4
    problem = replace(VECTOR, sparsity=0.2)  # keeps more than the sample has
    rows = bench.measure(problem, 2, "cpu")
    found = [row["provider"] for row in rows]
    assert found == ["topk + scatter", "sort + scatter", RADIX, FLOOR, *OURS]
    assert {row["baseline"] for row in rows} == {"topk + scatter"}
    slow |= {topk_providers._topk: 0.6, topk_providers._sort: 0.6}
    assert {row["baseline"] for row in bench.measure(problem, 2, "cpu")} == {RADIX}


# Nothing wrong is timed


def one_more(select: Callable[[list[Tensor], int], Any]) -> Callable[[list[Tensor], int], Any]:
    return lambda scores, kept: select(scores, kept + 1)


@pytest.mark.parametrize("limit", [topk_checks.SORTED_LIMIT, 0], ids=["sorted", "proven"])
@pytest.mark.parametrize(
    "function", ["_kthvalue", "_topk", "_sort", "_partition", "_released_bip", "_packed", "_bool", "_one_tensor"]
)
def test_who_keeps_one_more_is_refused(monkeypatch: pytest.MonkeyPatch, function: str, limit: int) -> None:
    monkeypatch.setattr(topk_checks, "SORTED_LIMIT", limit)
    monkeypatch.setattr(timing, "_time_all", lambda *a: pytest.fail("timed"))
    monkeypatch.setattr(topk_providers, function, one_more(getattr(topk_providers, function)))
    with pytest.raises(ValueError, match=r"^bench topk: .*: expected .*, got "):
        list(bench.run(2, only="pair/*" if function == "_one_tensor" else "small/*"))


# Its own command line


def test_the_program_appends_rows(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "rows.jsonl"
    arguments = ["--out", str(out), "--repeats", "1", "--full", "--only", "8/*/equal/?0%"]
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    bench_rows.main("Selection", bench.run, bench.add_options)
    assert {row["problem"] for row in read_rows(out)} == {
        f"8/{dtype}/equal/{kept}%" for dtype in ("float32", "bfloat16") for kept in (20, 50, 80)
    }


def test_its_help_can_be_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--help"])
    with pytest.raises(SystemExit) as caught:
        bench_rows.main(bench.__doc__ or "", bench.run, bench.add_options)
    assert caught.value.code == 0 and "'1e7/*/20%'" in capsys.readouterr().out


def test_it_is_a_job_of_make_gpu_and_its_parts_are_not() -> None:
    jobs = [job.name for job in gpu.find_jobs(gpu.ROOT) if "topk" in job.name and job.name.startswith("benchmarks")]
    assert jobs == ["benchmarks/bench_topk_mask.py"]
