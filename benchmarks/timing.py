# SPDX-License-Identifier: Apache-2.0
"""The one timing protocol: side by side, interleaved, checked first, ratios taken round by round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from sparsekit.benchmarks.checks import Check, require_equal, snapshot
from sparsekit.clocks import Clock, Function, Rounds, interleave, make_clock, quantiles, ratios


@dataclass(frozen=True)
class Timing:
    """What compare_times found out about one function. Times are seconds per call.

    Args:
        name, baseline: of this function and of the one it is compared with.
        rounds: time of each round.
        calls: calls per round, of which the time of the round is the mean.
        median, low, high: median, 20 % and 80 % quantile of `rounds`.
        speedup: median over rounds of (baseline's time / own time) in that round; 1 for the baseline itself.
        speedup_low, speedup_high: its 20 % and 80 % quantile.
        eager: median wall time per call of back-to-back eager calls, launches included; on a CPU equal to `median`.
    """

    name: str
    baseline: str
    rounds: tuple[float, ...]
    calls: int
    median: float
    low: float
    high: float
    speedup: float
    speedup_low: float
    speedup_high: float
    eager: float

    def as_row(self) -> dict[str, Any]:
        """The figures for a benchmark row; names say the unit."""
        return {
            "provider": self.name,
            "baseline": self.baseline,
            "rounds": len(self.rounds),
            "calls": self.calls,
            "median_s": self.median,
            "low_s": self.low,
            "high_s": self.high,
            "eager_s": self.eager,
            **self.ratios(),
        }

    def ratios(self) -> dict[str, float]:
        """The speed-up over the baseline with its quantiles."""
        return {"speedup": self.speedup, "speedup_low": self.speedup_low, "speedup_high": self.speedup_high}


def compare_times(
    functions: Mapping[str, Function],
    *,
    baseline: str | None = None,
    repeats: int = 50,
    warmup: int = 3,
    min_block_s: float = 0.01,
    device: torch.device | str = "cpu",
    check: Check | None = require_equal,
    graph: bool = False,
    flush: bool = True,
) -> dict[str, Timing]:
    """Times functions against each other in one process.

    First every result is checked against the baseline's; only then each round times one block of calls of every
    function, and each round starts with the next function, so that drift of the clock speed hits all alike.

    Args:
        functions: name -> function without arguments; the result is used for the check alone.
        baseline: the function that speed-ups refer to; None means the first.
        repeats: rounds, >= 1.
        warmup: calls of each function before its first block, >= 0 (the check and the calibration call it as well).
        min_block_s: a block has enough calls to last this many seconds, >= 0.
        device: "cpu" is timed by perf_counter, "cuda" by device events around each call.
        check: called with (name, result, baseline's result) before anything is timed and raises if they disagree; None
            only for functions whose results cannot be compared.
        graph: CUDA only: capture each function in a graph and time its replay, which leaves launch overhead out.
        flush: CUDA only: evict the L2 cache before each timed call.

    Raises:
        ValueError: an argument out of range, or whatever the check raises.
    """
    baseline = _baseline_of(functions, baseline)
    for argument, value, least in (("repeats", repeats, 1), ("warmup", warmup, 0), ("min_block_s", min_block_s, 0)):
        if not value >= least:
            raise ValueError(f"compare_times: {argument}: expected a number >= {least}, got {value}")
    clock = make_clock(torch.device(device), graph=graph, flush=flush)
    if check is not None:
        _check_all(functions, baseline, check)
    return _time_all(functions, baseline, clock, repeats, warmup, min_block_s)


def _baseline_of(functions: Mapping[str, Function], baseline: str | None) -> str:
    """The name of the baseline."""
    if not functions:
        raise ValueError("compare_times: functions: expected at least one, got none")
    if baseline is None:
        return next(iter(functions))
    if baseline not in functions:
        raise ValueError(f"compare_times: baseline: expected one of {', '.join(functions)}, got {baseline!r}")
    return baseline


def _check_all(functions: Mapping[str, Function], baseline: str, check: Check) -> None:
    """Runs every function once and compares its result with the baseline's."""
    expected = snapshot(functions[baseline]())  # a copy: others may write to the same storage
    for name, function in functions.items():
        if name != baseline:
            check(name, function(), expected)


def _time_all(
    functions: Mapping[str, Function], baseline: str, clock: Clock, repeats: int, warmup: int, min_block_s: float
) -> dict[str, Timing]:
    """The interleaved rounds."""
    found = interleave(functions, clock, repeats=repeats, warmup=warmup, min_block_s=min_block_s)
    return {name: _summary(name, baseline, rounds, found[baseline].measured) for name, rounds in found.items()}


def _summary(name: str, baseline: str, rounds: Rounds, reference: Sequence[float]) -> Timing:
    """Quantiles of the times and of the ratios."""
    low, median, high = quantiles(rounds.measured)
    slow, speedup, fast = quantiles(ratios(reference, rounds.measured))
    if name == baseline:
        slow = speedup = fast = 1.0
    return Timing(
        name=name,
        baseline=baseline,
        rounds=tuple(rounds.measured),
        calls=rounds.calls,
        median=median,
        low=low,
        high=high,
        speedup=speedup,
        speedup_low=slow,
        speedup_high=fast,
        eager=statistics.median(rounds.eager),
    )


class PedanticBenchmark(Protocol):
    """What compare_with_pytest needs of pytest-benchmark's fixture."""

    disabled: bool
    extra_info: dict[str, Any]

    def pedantic(self, target: Function, *, rounds: int, iterations: int, warmup_rounds: int) -> Any:
        """Times `rounds` blocks of `iterations` calls."""
        ...


def compare_with_pytest(
    benchmark: PedanticBenchmark, functions: Mapping[str, Function], *, subject: str, repeats: int = 50, **options: Any
) -> dict[str, Timing]:
    """Runs compare_times inside a pytest-benchmark test and puts the figures of `subject` into `extra_info`.

    pytest-benchmark's own columns show the eager call time of `subject` (on a GPU with synchronisation); the claim is
    the speed-up in `extra_info`. Under --benchmark-disable every function is checked and timed once.

    Args:
        benchmark: the fixture.
        functions: as in compare_times.
        subject: the function that the test is about.
        repeats: rounds, >= 1.
        options: other arguments of compare_times.
    """
    if subject not in functions:
        raise ValueError(f"compare_with_pytest: subject: expected one of {', '.join(functions)}, got {subject!r}")
    if benchmark.disabled:
        repeats, options = 1, {**options, "warmup": 0, "min_block_s": 0.0}
    timings = compare_times(functions, repeats=repeats, **options)
    benchmark.extra_info.update(timings[subject].as_row())
    function = functions[subject]
    if torch.device(options.get("device", "cpu")).type == "cuda":
        function = _synchronised(function)
    benchmark.pedantic(function, rounds=repeats, iterations=timings[subject].calls, warmup_rounds=0)
    return timings


def _synchronised(function: Function) -> Callable[[], None]:
    def call() -> None:
        function()
        torch.cuda.synchronize()

    return call
