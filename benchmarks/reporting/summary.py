# SPDX-License-Identifier: Apache-2.0
"""What the rows of a comparison say: accuracy, cost, paired differences and speed-ups for each recipe."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsekit.benchmarks.recipe import split_name
from sparsekit.benchmarks.reporting.runs import Failure, Run, collect
from sparsekit.benchmarks.reporting.speedup import Speedup, paired, speedup_of_runs
from sparsekit.benchmarks.rows import Row
from sparsekit.benchmarks.statistics import (
    MARGIN,
    Estimate,
    Verdict,
    describe,
    noninferiority,
    paired_difference,
)


@dataclass(frozen=True)
class Cell:
    """One method at one sparsity.

    Args:
        method, sparsity: which.
        seeds: seeds of the finished runs, ascending.
        accuracy: final test accuracy, in [0, 1].
        before: test accuracy after the final mask and before fine-tuning; None if no run has it.
        work: dense-equivalent epochs after the dense checkpoint.
        seconds: wall time after the dense checkpoint; over the runs of the machine that has most of them.
        difference: accuracy minus that of the baseline, over paired seeds; None for the baseline or without a pair.
        verdict: of the difference; None where there is no difference.
        matched: every pair keeps the same number of the same number of weights; None without a pair.
    """

    method: str
    sparsity: float
    seeds: tuple[int, ...]
    accuracy: Estimate
    before: Estimate | None
    work: Estimate
    seconds: Estimate
    difference: Estimate | None
    verdict: Verdict | None
    matched: bool | None


@dataclass(frozen=True)
class Group:
    """All runs of one recipe.

    Args:
        config: what the recipe fixes.
        baseline: name of the method that the others are compared with.
        margin: loss of accuracy that counts as equal, as a fraction.
        methods: baseline first, then in order of first appearance.
        sparsities, seeds: ascending.
        dense: test accuracy of the dense networks, one per seed; None if no run finished.
        dense_epochs, dense_seconds: mean cost of the pretraining, likewise.
        cells, speedups: where there is something to say; absent combinations are absent.
        runs: the finished runs.
        failures: runs that ended in an error.
        missing: (method, sparsity, seed) without a finished run.
        environments: the different machines, one full stamp of each.
    """

    config: Mapping[str, Any]
    baseline: str
    margin: float
    methods: tuple[str, ...]
    sparsities: tuple[float, ...]
    seeds: tuple[int, ...]
    dense: Estimate | None
    dense_epochs: float | None
    dense_seconds: float | None
    cells: tuple[Cell, ...]
    speedups: tuple[Speedup, ...]
    runs: tuple[Run, ...]
    failures: tuple[Failure, ...]
    missing: tuple[tuple[str, float, int], ...]
    environments: tuple[Mapping[str, Any], ...]

    def cell(self, method: str, sparsity: float) -> Cell | None:
        """The cell, or None if no run of it finished."""
        return next((c for c in self.cells if c.method == method and c.sparsity == sparsity), None)

    def methods_at(self, sparsity: float) -> tuple[str, ...]:
        """The methods to be compared at a sparsity: dense training goes on at 0 alone, where nothing else has to."""
        return _methods_at((*self.runs, *self.failures), self.methods, sparsity)

    def speedup(self, method: str, sparsity: float) -> Speedup | None:
        """The speed-up, or None if no seed is paired."""
        return next((s for s in self.speedups if s.method == method and s.sparsity == sparsity), None)


@dataclass(frozen=True)
class Summary:
    """All groups. `superseded`: finished rows that a later row of the same run replaced."""

    groups: tuple[Group, ...]
    superseded: int


def summarise(rows: Iterable[Row], baseline: str = "imp", margin: float = MARGIN) -> Summary:
    """Groups the rows by recipe and works out every number of a report.

    Args:
        rows: rows of kind "compare"; other kinds are passed over.
        baseline: method that the others are compared with.
        margin: loss of accuracy that counts as equal, as a fraction.

    Raises:
        ValueError: a row lacks a number.
    """
    runs = collect(rows)
    groups = []
    for name in runs.recipes():
        finished = tuple(run for run in runs.finished if run.recipe == name)
        groups.append(_group(name, finished, runs.failed.get(name, ()), baseline, margin))
    return Summary(tuple(groups), runs.superseded)


def _group(recipe: str, runs: tuple[Run, ...], failures: tuple[Failure, ...], baseline: str, margin: float) -> Group:
    """Summary of one recipe."""
    wanted = [*runs, *failures]
    methods = tuple(dict.fromkeys(x.method for x in wanted))
    methods = (*(m for m in methods if m == baseline), *(m for m in methods if m != baseline))
    sparsities = tuple(sorted({x.sparsity for x in wanted}))
    seeds = tuple(sorted({x.seed for x in wanted}))
    grid = [(method, sparsity) for sparsity in sparsities for method in _methods_at(wanted, methods, sparsity)]
    cells = [_cell(runs, method, baseline, sparsity, margin) for method, sparsity in grid]
    ratios = [speedup_of_runs(runs, method, baseline, sparsity) for method, sparsity in grid if method != baseline]
    done = {(run.method, run.sparsity, run.seed) for run in runs}
    dense = {run.seed: run for run in runs}.values()
    return Group(
        config=json.loads(recipe),
        baseline=baseline,
        margin=margin,
        methods=methods,
        sparsities=sparsities,
        seeds=seeds,
        dense=describe([run.dense_accuracy for run in dense]) if dense else None,
        dense_epochs=_mean([run.dense_epochs for run in dense]),
        dense_seconds=_mean([run.dense_seconds for run in dense]),
        cells=tuple(cell for cell in cells if cell),
        speedups=tuple(ratio for ratio in ratios if ratio),
        runs=runs,
        failures=failures,
        missing=tuple((m, s, seed) for m, s in grid for seed in seeds if (m, s, seed) not in done),
        environments=tuple({run.machine: run.environment for run in reversed(runs)}.values())[::-1],
    )


def _methods_at(tried: Sequence[Run | Failure], methods: tuple[str, ...], sparsity: float) -> tuple[str, ...]:
    here = {x.method for x in tried if x.sparsity == sparsity}
    pruned = any(split_name(method)[0] != "dense" for method in here)
    return tuple(m for m in methods if m in here or (pruned and split_name(m)[0] != "dense"))


def _cell(runs: Sequence[Run], method: str, baseline: str, sparsity: float, margin: float) -> Cell | None:
    """Cell of one method at one sparsity, or None if nothing finished."""
    here = sorted((r for r in runs if r.method == method and r.sparsity == sparsity), key=lambda run: run.seed)
    if not here:
        return None
    pairs = paired(runs, method, baseline, sparsity) if method != baseline else []
    ours, base = [m.accuracy for _, m in pairs], [b.accuracy for b, _ in pairs]
    before = [run.accuracy_before for run in here if run.accuracy_before is not None]
    machine = Counter(run.machine for run in here).most_common(1)[0][0]
    return Cell(
        method=method,
        sparsity=sparsity,
        seeds=tuple(run.seed for run in here),
        accuracy=describe([run.accuracy for run in here]),
        before=describe(before) if before else None,
        work=describe([run.work for run in here]),
        seconds=describe([run.seconds for run in here if run.machine == machine]),
        difference=paired_difference(ours, base) if pairs else None,
        verdict=noninferiority([m - b for m, b in zip(ours, base, strict=True)], margin) if pairs else None,
        matched=all((b.kept, b.total) == (m.kept, m.total) for b, m in pairs) if pairs else None,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
