# SPDX-License-Identifier: Apache-2.0
"""How much less a method costs than a baseline: two clocks, and four factors whose product is the total."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sparsekit.benchmarks.reporting.runs import Run, collect
from sparsekit.benchmarks.rows import Row
from sparsekit.benchmarks.statistics import Interval, ratio_interval


@dataclass(frozen=True)
class Ratio:
    """Cost of the baseline over cost of the method, both summed over the paired seeds; above 1 the method is cheaper.

    Args:
        value: the ratio.
        interval: 95 % bootstrap interval over the pairs; None below 3 pairs.
        baseline, method: mean cost of one run.
    """

    value: float
    interval: Interval | None
    baseline: float
    method: float


@dataclass(frozen=True)
class Clock:
    """One way of counting, in seconds and in dense-equivalent epochs (which no machine changes)."""

    seconds: Ratio | None
    work: Ratio | None


@dataclass(frozen=True)
class Factors:
    """Baseline over method for each part of the time given a dense checkpoint; their product is that clock's ratio.

    Args:
        epochs: epochs of optimiser steps.
        passes_per_step: forward+backward passes for each step, counted in samples.
        time_per_pass: seconds outside selection for forward and backward over equally many samples.
        selection: factor by which scores and masks lengthen the run.
    """

    epochs: float
    passes_per_step: float
    time_per_pass: float
    selection: float

    @property
    def product(self) -> float:
        """The total, up to rounding."""
        return self.epochs * self.passes_per_step * self.time_per_pass * self.selection


@dataclass(frozen=True)
class Speedup:
    """One method against the baseline at one sparsity.

    Args:
        method, baseline, sparsity: what is compared.
        seeds: seeds that both have finished on one and the same machine.
        checkpoint: cost given a dense checkpoint, which is not counted.
        pretraining: cost with the dense pretraining counted on both sides.
        factors: of the checkpoint clock in seconds; None if a run took no step, no pass or nothing but selection.
    """

    method: str
    baseline: str
    sparsity: float
    seeds: tuple[int, ...]
    checkpoint: Clock
    pretraining: Clock
    factors: Factors | None


def speedup(rows: Iterable[Row], method: str, baseline: str = "imp", *, sparsity: float) -> Speedup | None:
    """Compares the cost of two methods over the seeds that both have.

    Args:
        rows: rows of kind "compare", all of one recipe.
        method, baseline: names as in the rows.
        sparsity: wanted sparsity as in the rows.

    Returns:
        The comparison, or None if no seed is paired.

    Raises:
        ValueError: the rows hold several recipes.
    """
    runs = collect(rows)
    if len(runs.recipes()) > 1:
        raise ValueError(f"speedup: rows: expected one recipe, got {len(runs.recipes())}")
    return speedup_of_runs(runs.finished, method, baseline, sparsity)


def speedup_of_runs(runs: Sequence[Run], method: str, baseline: str, sparsity: float) -> Speedup | None:
    """`speedup` over runs of one recipe."""
    pairs = [(b, m) for b, m in paired(runs, method, baseline, sparsity) if b.machine == m.machine]
    if not pairs:
        return None
    base, ours = [b for b, _ in pairs], [m for _, m in pairs]
    return Speedup(
        method=method,
        baseline=baseline,
        sparsity=sparsity,
        seeds=tuple(run.seed for run in base),
        checkpoint=Clock(
            ratio_of_sums([r.seconds for r in base], [r.seconds for r in ours]),
            ratio_of_sums([r.work for r in base], [r.work for r in ours]),
        ),
        pretraining=Clock(
            ratio_of_sums(
                [r.seconds + r.pretraining_seconds for r in base], [r.seconds + r.pretraining_seconds for r in ours]
            ),
            ratio_of_sums([r.work + r.pretraining_epochs for r in base], [r.work + r.pretraining_epochs for r in ours]),
        ),
        factors=factors_of(base, ours),
    )


def paired(runs: Sequence[Run], method: str, baseline: str, sparsity: float) -> list[tuple[Run, Run]]:
    """(baseline run, method run) of every seed that both have, by ascending seed."""
    wanted = round(sparsity, 9)
    here = [run for run in runs if run.sparsity == wanted]
    base = {run.seed: run for run in here if run.method == baseline}
    ours = {run.seed: run for run in here if run.method == method}
    return [(base[seed], ours[seed]) for seed in sorted(base.keys() & ours.keys())]


def ratio_of_sums(baseline: list[float], method: list[float]) -> Ratio | None:
    """The ratio of the sums, or None where something cost nothing."""
    if min(*baseline, *method) <= 0:
        return None
    n = len(baseline)
    return Ratio(sum(baseline) / sum(method), ratio_interval(baseline, method), sum(baseline) / n, sum(method) / n)


def factors_of(baseline: list[Run], method: list[Run]) -> Factors | None:
    """The four factors over paired runs of one machine, or None if something took no step, pass or time."""
    sides = [_parts(runs) for runs in (baseline, method)]
    if any(min(side) <= 0 for side in sides):
        return None
    (epochs_b, work_b, plain_b, seconds_b), (epochs_m, work_m, plain_m, seconds_m) = sides
    # Epochs of steps and dense-equivalent epochs stand for steps and passes over equally many samples: a method that
    # takes a few passes over large batches is not charged a slow pass.
    return Factors(
        epochs=epochs_b / epochs_m,
        passes_per_step=(work_b / epochs_b) / (work_m / epochs_m),
        time_per_pass=(plain_b / work_b) / (plain_m / work_m),
        selection=(seconds_b / plain_b) / (seconds_m / plain_m),
    )


def _parts(runs: list[Run]) -> tuple[float, float, float, float]:
    """Sums of epochs, dense-equivalent epochs, seconds outside selection, seconds."""
    seconds = sum(run.seconds for run in runs)
    plain = seconds - sum(run.selection_seconds for run in runs)
    return sum(run.epochs for run in runs), sum(run.work for run in runs), plain, seconds
