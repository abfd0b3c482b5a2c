# SPDX-License-Identifier: Apache-2.0
"""What the rows of a suite say, sparsity by sparsity: every number of the speed-up report, and what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sparsekit.benchmarks.recipe import Recipe, as_json, from_json, split_name
from sparsekit.benchmarks.reporting.entries import Entry, entry_of
from sparsekit.benchmarks.reporting.match import Match, Saving, saving, time_to_match
from sparsekit.benchmarks.reporting.paper import Published, published
from sparsekit.benchmarks.reporting.runs import PER_RUN_KEYS, Failure, Run, Runs, collect
from sparsekit.benchmarks.reporting.verdict import BySeed, Reference, choose_reference, judge
from sparsekit.benchmarks.rows import Row
from sparsekit.benchmarks.speedup_suites import Suite
from sparsekit.benchmarks.statistics import MARGIN, Estimate, describe

BUDGETED = "imp-budget"
"""IMP on a fixed total of retraining: what a fast method has to beat, beside textbook IMP."""


@dataclass(frozen=True)
class Gain:
    """What a method saves at its time to match.

    Args:
        method: name with the budget at which it matches.
        baseline: against the suite's baseline on the recipe's budget; None without a paired seed.
        budgeted: against budgeted IMP at its own time to match; None unless that matches too.
    """

    method: str
    baseline: Saving | None
    budgeted: Saving | None


@dataclass(frozen=True)
class Verdicts:
    """Time to match of one method at one sparsity.

    Args:
        match: the sweep over its budgets.
        seconds, work: what it saves at the budget with the least seconds, and with the least dense-equivalent epochs.
    """

    match: Match
    seconds: Gain | None
    work: Gain | None


@dataclass(frozen=True)
class Level:
    """One sparsity.

    Args:
        sparsity: wanted fraction removed.
        reference: the IMP variant to match; None if there is none.
        entries: every method with its budget, in the suite's order, also those without runs.
        verdicts: every method without its budget, in the suite's order.
    """

    sparsity: float
    reference: Reference | None
    entries: tuple[Entry, ...]
    verdicts: tuple[Verdicts, ...]

    def entry(self, method: str) -> Entry:
        """The entry of a method with its budget; raises KeyError if the suite has none."""
        return {entry.method: entry for entry in self.entries}[method]


@dataclass(frozen=True)
class Report:
    """Everything that the report of a suite says.

    Args:
        suite: what was asked for. margin: loss of accuracy that counts as equal, as a fraction.
        levels: by rising sparsity. continued: dense training continued, at sparsity 0.
        dense: test accuracy of the dense networks, one per seed; None without a run.
        dense_epochs, dense_seconds: mean cost of the pretraining; seconds on the machine with most runs.
        runs, failures: finished runs, and attempts that ended in an error.
        missing: (method, sparsity, seed) without a finished run. wanted: number of runs of the suite.
        machine: the machine with most runs. environments: one full stamp of each machine.
        superseded, other_recipe, outside: rows left out: repeated later; of another recipe; not of this suite.
        published: the paper's own curves, if it has any for this setting.
    """

    suite: Suite
    margin: float
    levels: tuple[Level, ...]
    continued: tuple[Entry, ...]
    dense: Estimate | None
    dense_epochs: float | None
    dense_seconds: float | None
    runs: tuple[Run, ...]
    failures: tuple[Failure, ...]
    missing: tuple[tuple[str, float, int], ...]
    wanted: int
    machine: str | None
    environments: tuple[Mapping[str, Any], ...]
    superseded: int
    other_recipe: int
    outside: int
    published: Published | None


def summarise_suite(rows: Iterable[Row], suite: Suite, margin: float = MARGIN) -> Report:
    """Works out every number of the report of a suite.

    Args:
        rows: rows of kind "compare"; other kinds are passed over, those of other recipes or runs counted.
        suite: methods, sparsities, seeds and recipe.
        margin: loss of accuracy that counts as equal, as a fraction.

    Raises:
        ValueError: a row of the suite lacks a number.
    """
    wanted = {(c.method, round(c.sparsity, 9), c.seed): None for c in suite.configs()}
    chosen, other, outside = _of_suite(rows, suite.recipe, wanted)
    found = collect(chosen)
    runs, failures = found.finished, tuple(f for group in found.failed.values() for f in group)
    machines = Counter(run.machine for run in runs)
    machine = machines.most_common(1)[0][0] if machines else None
    done = {(run.method, run.sparsity, run.seed) for run in runs}
    dense = {run.seed: run for run in runs}.values()
    timed = {run.seed: run for run in runs if run.machine == machine}.values()
    return Report(
        suite=suite,
        margin=margin,
        levels=tuple(_level(found, suite, round(s, 9), machine, margin) for s in sorted(suite.sparsities)),
        continued=_continued(found, suite, machine),
        dense=describe([run.dense_accuracy for run in dense]) if dense else None,
        dense_epochs=_mean([run.dense_epochs for run in dense]),
        dense_seconds=_mean([run.dense_seconds for run in timed]),
        runs=runs,
        failures=failures,
        missing=tuple(key for key in wanted if key not in done),
        wanted=len(wanted),
        machine=machine,
        environments=tuple({run.machine: run.environment for run in runs}.values()),
        superseded=found.superseded,
        other_recipe=other,
        outside=outside,
        published=published(suite.recipe),
    )


def _of_suite(rows: Iterable[Row], recipe: Recipe, wanted: Mapping[Any, None]) -> tuple[list[Row], int, int]:
    """(rows of the suite under one and the same config, number of another recipe, number of other runs)."""
    chosen, other, outside = [], 0, 0
    for row in rows:
        if row.get("kind") != "compare":
            continue
        if not _same_recipe(row, recipe):
            other += 1
        elif (row.get("method"), round(float(row.get("sparsity") or 0.0), 9), row.get("seed")) not in wanted:
            outside += 1
        else:
            chosen.append({**row, "config": as_json(recipe)})
    return chosen, other, outside


def _same_recipe(row: Row, recipe: Recipe) -> bool:
    """Whether a row was made under a recipe; settings that the row does not know are at their defaults."""
    try:
        return from_json({k: v for k, v in row.get("config", {}).items() if k not in PER_RUN_KEYS}) == recipe
    except (ValueError, TypeError, AttributeError):
        return False


def _level(found: Runs, suite: Suite, sparsity: float, machine: str | None, margin: float) -> Level:
    names = tuple(dict.fromkeys(m for m in suite.methods if split_name(m)[0] != "dense"))
    runs = {name: _by_seed(found, name, sparsity) for name in names}
    reference = choose_reference(runs)
    against = runs[reference.method] if reference else None
    judged = {name: judge(runs[name], against, margin) for name in names}
    base = suite.baseline
    savings = {name: saving(runs.get(base, {}), runs[name], (base, name)) for name in names}
    matches = [time_to_match(own, judged, runs, machine) for own in dict.fromkeys(split_name(n)[0] for n in names)]
    budgeted = next((match for match in matches if match.method == BUDGETED), None)

    def gain(method: str | None, rival: str | None) -> Gain | None:
        if method is None:
            return None
        own = split_name(method)[0] == BUDGETED
        other = saving(runs[rival], runs[method], (rival, method)) if rival and not own else None
        return Gain(method, savings[method], other)

    return Level(
        sparsity=sparsity,
        reference=reference,
        entries=tuple(entry_of(name, sparsity, runs[name], machine, judged[name], savings[name]) for name in names),
        verdicts=tuple(
            Verdicts(
                match,
                gain(match.seconds, budgeted.seconds if budgeted else None),
                gain(match.work, budgeted.work if budgeted else None),
            )
            for match in matches
        ),
    )


def _continued(found: Runs, suite: Suite, machine: str | None) -> tuple[Entry, ...]:
    names = dict.fromkeys(m for m in suite.methods if split_name(m)[0] == "dense")
    return tuple(entry_of(name, 0.0, _by_seed(found, name, 0.0), machine, None, None) for name in names)


def _by_seed(found: Runs, method: str, sparsity: float) -> BySeed:
    here = [run for run in found.finished if run.method == method and run.sparsity == sparsity]
    return {run.seed: run for run in sorted(here, key=lambda run: run.seed)}


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
