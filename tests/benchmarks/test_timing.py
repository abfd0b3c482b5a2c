# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsekit import clocks
from sparsekit.benchmarks import timing
from sparsekit.benchmarks.checks import require_close, require_equal, snapshot
from sparsekit.benchmarks.timing import compare_times, compare_with_pytest, quantiles

FAST = {"repeats": 4, "warmup": 0, "min_block_s": 0.0}


class Ticks:
    """A perf_counter that moves only when a function says how long it took."""

    def __init__(self, monkeypatch) -> None:
        self.now = 0.0
        self.order: list[str] = []
        monkeypatch.setattr(clocks, "perf_counter", lambda: self.now)

    def function(self, name: str, *seconds: float):
        """A function whose calls take `seconds` in turn."""
        calls = iter(range(10**9))

        def call() -> None:
            self.order.append(name)
            self.now += seconds[next(calls) % len(seconds)]

        return call


def test_rounds_are_interleaved_in_rotating_order(monkeypatch):
    ticks = Ticks(monkeypatch)
    functions = {name: ticks.function(name, 1.0) for name in "abc"}
    compare_times(functions, **FAST, check=None)
    assert "".join(ticks.order) == "abc" + "abc" + "bca" + "cab" + "abc"  # calibration first


def test_medians_quantiles_and_pairwise_ratios(monkeypatch):
    ticks = Ticks(monkeypatch)
    # The machine slows down by 10 in the last round; calibration takes the first call.
    functions = {"old": ticks.function("old", 2, 2, 2, 20), "new": ticks.function("new", 1, 1, 1, 10)}
    result = compare_times(functions, repeats=3, warmup=0, min_block_s=0, check=None)
    assert result["old"].rounds == (2, 2, 20) and result["new"].rounds == (1, 1, 10)
    assert result["new"].median == 1 and result["new"].baseline == "old" and result["new"].eager == 1
    assert result["new"].ratios() == {"speedup": 2, "speedup_low": 2, "speedup_high": 2}
    assert result["old"].ratios() == {"speedup": 1, "speedup_low": 1, "speedup_high": 1}
    assert (
        compare_times(functions, repeats=3, warmup=0, min_block_s=0, check=None, baseline="new")["old"].speedup == 0.5
    )


def test_blocks_last_as_long_as_asked(monkeypatch):
    ticks = Ticks(monkeypatch)
    functions = {"long": ticks.function("long", 1.0), "short": ticks.function("short", 1e-3)}
    result = compare_times(functions, repeats=1, warmup=0, min_block_s=0.05, check=None)
    assert result["long"].calls == 1 and 50 <= result["short"].calls <= 60
    assert result["short"].median == pytest.approx(1e-3)
    free = compare_times({"free": lambda: None}, repeats=1, warmup=0, min_block_s=1.0, check=None)
    assert free["free"].calls == clocks.CpuClock.max_calls


def test_quantiles():
    assert quantiles([3.0]) == (3.0, 3.0, 3.0)
    assert quantiles([5.0, 1.0, 2.0, 3.0, 4.0, 0.0]) == (1.0, 2.5, 4.0)


def test_a_wrong_result_is_never_timed(monkeypatch):
    monkeypatch.setattr(timing, "_time_all", lambda *_: pytest.fail("timed a wrong function"))
    x = torch.arange(4.0)
    with pytest.raises(
        ValueError, match="compare_times: bad: result: expected the baseline's 4 values, got 3 different"
    ):
        compare_times({"good": lambda: x, "bad": lambda: x * 2}, **FAST)


def test_checks_see_results_before_others_overwrite_them():
    room = torch.zeros(2)
    functions = {"one": lambda: room.fill_(1), "two": lambda: room.fill_(2)}
    with pytest.raises(ValueError, match="two: result"):
        compare_times(functions, **FAST)


@pytest.mark.parametrize(
    "result, message",
    [
        (torch.zeros(3), r"result: expected torch.float32 \(2,\) on cpu, got torch.float32 \(3,\) on cpu"),
        (torch.zeros(2).double(), "got torch.float64"),
        (None, "expected Tensor, got NoneType"),
        (torch.tensor([0.0, float("nan")]), "got 1 different"),
    ],
)
def test_require_equal_refuses(result, message):
    with pytest.raises(ValueError, match=message):
        require_equal("f", result, torch.zeros(2))


def test_require_equal_walks_nested_results():
    result = ({"a": torch.ones(2)}, [3, "x"])
    require_equal("f", result, snapshot(result))
    with pytest.raises(ValueError, match=r"result\[1\]\[0\]: expected 3, got 4"):
        require_equal("f", ({"a": torch.ones(2)}, [4, "x"]), snapshot(result))
    with pytest.raises(ValueError, match=r"result\[0\]: expected 1 parts"):
        require_equal("f", ({"b": torch.ones(2)}, [3, "x"]), snapshot(result))


def test_require_close_allows_its_tolerance_only():
    check = require_close(rtol=0, atol=1e-3)
    check("f", torch.tensor([1.0005]), torch.tensor([1.0]))
    for wrong in (1.002, float("nan")):
        with pytest.raises(ValueError, match="within rtol 0 and atol 0.001"):
            check("f", torch.tensor([wrong]), torch.tensor([1.0]))


def test_the_collector_is_off_inside_a_block_and_restored():
    seen: list[bool] = []
    compare_times({"f": lambda: seen.append(gc.isenabled())}, **FAST, check=None)
    assert not any(seen) and gc.isenabled()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"repeats": 0}, "repeats: expected a number >= 1, got 0"),
        ({"warmup": -1}, "warmup: expected a number >= 0, got -1"),
        ({"min_block_s": float("nan")}, "min_block_s: expected a number >= 0, got nan"),
        ({"baseline": "x"}, "baseline: expected one of f, got 'x'"),
        ({"device": "meta"}, "device: expected cpu or cuda, got meta"),
        ({"graph": True}, "graph: expected False on a CPU, got True"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        compare_times({"f": lambda: None}, **options)


def test_no_functions():
    with pytest.raises(ValueError, match="functions: expected at least one, got none"):
        compare_times({})


def test_rows_are_complete(monkeypatch):
    ticks = Ticks(monkeypatch)
    row = compare_times({"f": ticks.function("f", 1.0)}, **FAST, check=None)["f"].as_row()
    assert row["provider"] == row["baseline"] == "f" and row["rounds"] == 4 and row["calls"] == 1
    assert row["median_s"] == row["low_s"] == row["high_s"] == row["eager_s"] == 1.0 and row["speedup"] == 1.0


@pytest.mark.parametrize("disabled, rounds", [(False, 4), (True, 1)])
def test_the_protocol_inside_pytest_benchmark(disabled: bool, rounds: int):
    seen: dict[str, object] = {}
    fixture: Any = SimpleNamespace(
        disabled=disabled, extra_info={}, pedantic=lambda target, **options: seen.update(options)
    )
    functions = {"old": lambda: 1, "new": lambda: 1}
    result = compare_with_pytest(fixture, functions, subject="new", **FAST)
    assert seen == {"rounds": rounds, "iterations": 1, "warmup_rounds": 0}
    assert fixture.extra_info == result["new"].as_row() and result["new"].baseline == "old"
    with pytest.raises(ValueError, match="subject: expected one of old, new, got 'x'"):
        compare_with_pytest(fixture, functions, subject="x")


def test_the_real_fixture(benchmark):
    compare_with_pytest(benchmark, {"old": lambda: 1, "new": lambda: 1}, subject="new", **FAST)
    assert benchmark.extra_info["provider"] == "new"


@pytest.mark.gpu
@pytest.mark.parametrize("graph", [False, True])
def test_gpu_times_are_plausible(graph: bool):
    x = torch.randn(64, 2**20, device="cuda")
    functions = {"four": lambda: x + x + x + x, "one": lambda: x + x}
    result = compare_times(functions, repeats=5, device="cuda", graph=graph, check=None)
    assert 1e-5 < result["one"].median < result["four"].median < 1
    assert result["one"].speedup > 1.5 and result["one"].eager > 1e-5
