# SPDX-License-Identifier: Apache-2.0
"""Which IMP variant a method has to match at a sparsity, and whether the method on one budget does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sparsekit.benchmarks.recipe import split_name
from sparsekit.benchmarks.reporting.runs import Run
from sparsekit.benchmarks.statistics import (
    MARGIN,
    MINIMUM_PAIRS,
    Estimate,
    Verdict,
    describe,
    noninferiority,
    paired_difference,
)

LEVEL = 0.95
"""One-sided confidence of every verdict."""

KEPT = 1.01
"""A method that keeps more than this many times the reference's weights is not at its sparsity."""

Reason = Literal["", "no reference", "no runs", "no paired seed", "other sparsity", "few seeds", "wide interval"]

BySeed = Mapping[int, Run]


@dataclass(frozen=True)
class Reference:
    """The IMP variant that the others are judged against at one sparsity.

    Args:
        method: the most accurate of the candidates: IMP variants on at least the recipe's budget.
        seeds: the seeds that all candidates have finished, over which they are compared.
        candidates: (method, mean accuracy over these seeds), in the suite's order.
        left_out: IMP variants on at least the recipe's budget with less than half of the fullest candidate's seeds.
    """

    method: str
    seeds: tuple[int, ...]
    candidates: tuple[tuple[str, float], ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Judgement:
    """A method on one budget against the reference at one sparsity.

    Args:
        difference: accuracy minus that of the reference over the paired seeds, as a fraction, with its two-sided 95 %
            t interval; None without a pair.
        bound: one-sided lower 95 % bound of the difference; None below 2 pairs.
        verdict: of the difference at the margin.
        reason: why the verdict is "inconclusive"; empty otherwise.
    """

    difference: Estimate | None
    bound: float | None
    verdict: Verdict
    reason: Reason


def is_imp(method: str) -> bool:
    """Whether a name, with or without a budget, is that of an IMP variant."""
    return split_name(method)[0].startswith("imp")


def choose_reference(runs: Mapping[str, BySeed]) -> Reference | None:
    """The most accurate IMP variant at one sparsity; the first of equals.

    The choice is made on the very seeds that the others are then judged on, so it favours the reference: at equal true
    accuracy the best of several means lies above the truth, and a method has to make up for that.

    Args:
        runs: finished runs by seed for each method with its budget, in the suite's order.

    Returns:
        The reference, or None if no IMP variant finished or the candidates share no seed.
    """
    found = {name: by_seed for name, by_seed in runs.items() if is_imp(name) and split_name(name)[1] >= 1}
    most = max((len(by_seed) for by_seed in found.values()), default=0)
    candidates = {name: by_seed for name, by_seed in found.items() if 2 * len(by_seed) >= most}
    if not candidates:
        return None
    shared = tuple(sorted(set.intersection(*(set(by_seed) for by_seed in candidates.values()))))
    if not shared:
        return None
    means = [(name, _mean([by_seed[seed].accuracy for seed in shared])) for name, by_seed in candidates.items()]
    best = max(means, key=lambda pair: pair[1])[0]
    return Reference(best, shared, tuple(means), tuple(name for name in found if name not in candidates))


def judge(ours: BySeed, reference: BySeed | None, margin: float = MARGIN) -> Judgement:
    """Verdict on a method from the seeds that it shares with the reference; the reference itself differs by nothing.

    Args:
        ours: finished runs of the method by seed.
        reference: those of the reference; None if there is none.
        margin: loss that still counts as equal, as a fraction.
    """
    if reference is None:
        return Judgement(None, None, "inconclusive", "no reference")
    if not ours:
        return Judgement(None, None, "inconclusive", "no runs")
    seeds = sorted(ours.keys() & reference.keys())
    if not seeds:
        return Judgement(None, None, "inconclusive", "no paired seed")
    a, b = ([runs[seed].accuracy for seed in seeds] for runs in (ours, reference))
    differences = [x - y for x, y in zip(a, b, strict=True)]
    fair = all(_as_sparse(ours[seed], reference[seed]) for seed in seeds)
    verdict = noninferiority(differences, margin, LEVEL) if fair else "inconclusive"
    one_sided = describe(differences, 2 * LEVEL - 1).interval
    return Judgement(
        difference=paired_difference(a, b),
        bound=one_sided.low if one_sided else None,
        verdict=verdict,
        reason=_reason(verdict, len(seeds)) if fair else "other sparsity",
    )


def _as_sparse(run: Run, reference: Run) -> bool:
    return run.total == reference.total and run.kept <= KEPT * reference.kept


def _reason(verdict: Verdict, pairs: int) -> Reason:
    if verdict != "inconclusive":
        return ""
    return "few seeds" if pairs < MINIMUM_PAIRS else "wide interval"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
