# SPDX-License-Identifier: Apache-2.0
"""What a report of a suite lacks, and what limits what it can show: measured from its rows, not recited."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from sparsekit.benchmarks.recipe import split_name
from sparsekit.benchmarks.reporting.claims import HEADLINE_SEEDS
from sparsekit.benchmarks.reporting.entries import Entry
from sparsekit.benchmarks.reporting.levels import Level, Report
from sparsekit.benchmarks.reporting.naming import budget, listed, name_of
from sparsekit.benchmarks.reporting.paper import compressed, schedule
from sparsekit.benchmarks.reporting.runs import RESOURCES, canonical
from sparsekit.benchmarks.reporting.wording import count, number, number_plain, seconds_text, sparsity_text
from sparsekit.benchmarks.statistics import MINIMUM_PAIRS

OUTSIDE = {"warm_up_seconds": "warm-up", "capture_seconds": "capture of graphs", "evaluation_seconds": "evaluations"}
MEASURED = {"flops": "training FLOPs", "peak_memory": "peak memory", "energy": "energy"}


def gaps(report: Report) -> tuple[str, ...]:
    """What is missing from a complete report; empty if nothing is."""
    return (*_missing(report), *_uncompared(report), *_seeds(report), *_unmeasured(report))


def _missing(report: Report) -> Iterator[str]:
    if report.missing:
        by_method: dict[str, int] = {}
        for method, _, _ in report.missing:
            own = split_name(method)[0]
            by_method[own] = by_method.get(own, 0) + 1
        parts = ", ".join(f"{n} of {name_of(method)}" for method, n in by_method.items())
        yield f"{len(report.missing)} of {count(report.wanted, 'run')} have not finished: {parts}."
    lost = {(f.method, f.sparsity, f.seed) for f in report.failures if not f.recovered}
    if lost:
        yield f"{count(len(lost), 'run')} among them failed; each is listed with its reason below."


def _uncompared(report: Report) -> Iterator[str]:
    base = report.suite.baseline
    without = [sparsity_text(level.sparsity) for level in report.levels if not _has(level, base)]
    if without and report.runs:
        yield f"The baseline {name_of(base)} has no finished run at {listed(without)}: no saving is known there."
    for level in report.levels:
        if level.reference and level.reference.left_out:
            names = listed(name_of(name) for name in level.reference.left_out)
            yield (
                f"At {sparsity_text(level.sparsity)} too few seeds of {names} finished to be a candidate for the best "
                "IMP variant; with them the reference might be better."
            )


def _has(level: Level, method: str) -> bool:
    return any(entry.method == method and entry.seeds for entry in level.entries)


def _seeds(report: Report) -> Iterator[str]:
    pairs = [
        entry.judgement.difference.n
        for level in report.levels
        for entry in level.entries
        if entry.judgement and entry.judgement.difference
    ]
    if not pairs:
        return
    least = min(pairs)
    if least < MINIMUM_PAIRS:
        yield f"Down to {count(least, 'paired seed')}; a verdict needs {MINIMUM_PAIRS}, a headline {HEADLINE_SEEDS}."
    elif least < HEADLINE_SEEDS:
        yield f"Down to {count(least, 'paired seed')}; below {HEADLINE_SEEDS} a result is preliminary."


def _unmeasured(report: Report) -> Iterator[str]:
    absent = [MEASURED[name] for name in RESOURCES if not any(getattr(run, name) is not None for run in report.runs)]
    if absent and report.runs:
        yield f"Not measured in these runs: {listed(absent)}."
    if report.runs and not any(environment.get("gpu") for environment in report.environments):
        yield "No GPU: the times are those of a CPU and say nothing about one."


def cautions(report: Report) -> tuple[str, ...]:
    """What in these very rows limits what they can show; empty if nothing does."""
    parts = (_schedule, _machines, _resolution, _sweeps, _baseline, _outside, _left_out)
    return tuple(text for part in parts for text in part(report))


def _schedule(report: Report) -> Iterator[str]:
    recipe, paper = report.suite.recipe, schedule()
    if compressed(recipe):
        yield (
            f"Compressed schedule: {recipe.dense_epochs} dense epochs and {recipe.epochs} for each phase. The paper's is "
            f"{paper.dense_epochs} dense epochs, {paper.imp_epochs} for each round of IMP and {paper.bip_epochs} of BiP "
            "(CIFAR). Another schedule gives other ratios."
        )
    if recipe.limit is not None:
        yield f"Only {recipe.limit} images of each split are used."


def _machines(report: Report) -> Iterator[str]:
    if len(report.environments) > 1:
        yield (
            f"The runs come from {len(report.environments)} environments. Seconds are those of the one with most runs, and "
            "ratios of seconds pair runs of one environment only."
        )
    sources = {canonical(dict(run.environment.get("git") or {})) for run in report.runs}
    if len(sources) > 1:
        yield f"The runs come from {len(sources)} states of the source code."


def _resolution(report: Report) -> Iterator[str]:
    """Accuracies of a small test set come in steps, of which the margin may hold few, and equal differences by chance."""
    images = _test_images([run.accuracy for run in report.runs], math.ceil(3 / report.margin))
    if images:
        yield (
            f"Accuracies are multiples of 1/{images}, as on a test set of few images: the margin of "
            f"{number_plain(100 * report.margin)} points is worth {number(report.margin * images)} of them."
        )
    flat = [
        f"{name_of(entry.method)} at {sparsity_text(level.sparsity)}"
        for level in report.levels
        for entry in level.entries
        if level.reference and entry.method != level.reference.method and _is_flat(entry)
    ]
    if flat:
        yield f"Every paired difference is the same, so that its interval has no width, for {listed(flat)}."


def _test_images(accuracies: Sequence[float], limit: int) -> int | None:
    """Least number below `limit` of which all accuracies are fractions; None without one or from too few values."""
    found = {round(accuracy, 12) for accuracy in accuracies}
    if len(found) < 4:
        return None
    return next((n for n in range(2, limit) if all(abs(a * n - round(a * n)) < 1e-6 for a in found)), None)


def _is_flat(entry: Entry) -> bool:
    difference = entry.judgement.difference if entry.judgement else None
    return bool(difference and difference.sd is not None and difference.sd < 1e-9)


def _sweeps(report: Report) -> Iterator[str]:
    budgets: dict[str, set[str]] = {}
    for level in report.levels:
        for verdicts in level.verdicts:
            budgets.setdefault(verdicts.match.method, set()).update(verdicts.match.tried)
            if verdicts.match.open:
                smaller = listed(budget(name) for name in verdicts.match.open)
                yield (
                    f"At {sparsity_text(level.sparsity)} {name_of(verdicts.match.method)} may match on less than the "
                    f"budget found: {smaller} is undecided."
                )
    single = [name_of(method) for method, tried in budgets.items() if len(tried) == 1]
    if single:
        yield f"On one budget only, so that their time to match is not searched for: {', '.join(single)}."


def _baseline(report: Report) -> Iterator[str]:
    worse = [
        sparsity_text(level.sparsity)
        for level in report.levels
        for entry in level.entries
        if entry.method == report.suite.baseline and entry.judgement and entry.judgement.verdict == "inferior"
    ]
    if worse:
        margin = number_plain(100 * report.margin)
        yield (
            f"The baseline of the costs, {name_of(report.suite.baseline)}, is itself less accurate than the best IMP variant "
            f"by more than {margin} points at {listed(worse)}."
        )


def _outside(report: Report) -> Iterator[str]:
    """What the clocks leave out, where it was measured: methods differ in it, as IMP captures graphs in every round."""
    sums = {words: sum(getattr(run, name) or 0.0 for run in report.runs) for name, words in OUTSIDE.items()}
    parts = [f"{words} {seconds_text(total)}" for words, total in sums.items() if total > 0]
    if parts:
        whole = count(len(report.runs), "run")
        yield f"Outside of the clocks, over all {whole}: {listed(parts)}; the JSON has the mean of each method."


def _left_out(report: Report) -> Iterator[str]:
    if report.superseded:
        yield f"{count(report.superseded, 'row')} left out, of runs that were repeated later."
    if report.other_recipe:
        yield f"{count(report.other_recipe, 'row')} of another recipe left out."
    if report.outside:
        yield f"{count(report.outside, 'row')} left out, of runs that the suite {report.suite.name} does not have."
