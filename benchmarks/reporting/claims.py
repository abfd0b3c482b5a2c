# SPDX-License-Identifier: Apache-2.0
"""What a suite has shown, in sentences that say no more than its numbers do."""

from __future__ import annotations

from sparsekit.benchmarks.recipe import split_name
from sparsekit.benchmarks.reporting.levels import BUDGETED, Gain, Level, Report, Verdicts
from sparsekit.benchmarks.reporting.naming import budget, hardware, listed, name_of, ratio_text, setting
from sparsekit.benchmarks.reporting.paper import compressed
from sparsekit.benchmarks.reporting.speedup import Ratio
from sparsekit.benchmarks.reporting.verdict import is_imp
from sparsekit.benchmarks.reporting.wording import count, number_plain, sparsity_text
from sparsekit.benchmarks.statistics import MINIMUM_PAIRS

HEADLINE_SEEDS = 10
"""Paired seeds from which a result is not called preliminary."""

LEVEL = "one-sided 95\N{NO-BREAK SPACE}%"
GIVEN, END = "given a dense checkpoint", "end to end"

REASONS = {
    "no reference": "there is no IMP variant to judge by",
    "no runs": "a budget has no finished run",
    "no paired seed": "no seed is shared with the reference",
    "other sparsity": "more weights are kept than the reference keeps",
    "few seeds": f"fewer than {MINIMUM_PAIRS} paired seeds",
    "wide interval": "interval of the difference too wide",
}


def headline(report: Report, level: Level) -> str:
    """The verdict at one sparsity: the fastest method that matches the best IMP variant, or that none is shown to.

    The sentence stands for itself when followed by ``stamp_line``.
    """
    where = f"At {sparsity_text(level.sparsity)} sparsity"
    if not any(entry.seeds for entry in level.entries):
        return f"{where} no run has finished: nothing is known."
    if level.reference is None:
        return f"{where} nothing is judged: no IMP variant on at least the recipe's budget has a finished seed that all share."
    rivals = [v for v in level.verdicts if not is_imp(v.match.method)]
    matched = [v for v in rivals if v.match.status == "matched"]
    if matched:
        lead = sentence(report, level, min(matched, key=lambda v: _cost(level, v)))
        others = f" It is the fastest of {len(matched)} methods that match." if len(matched) > 1 else ""
        return lead + others
    if not rivals:
        best = name_of(level.reference.method)
        return (
            f"{where} only variants of IMP were asked for, the most accurate of which is {best}: nothing is compared."
        )
    return f"{where} no method is shown to match {_target(report, level)}{_outcomes(rivals)}."


def _outcomes(rivals: list[Verdicts]) -> str:
    """ ": BiP never does; OMP and GMP are inconclusive (fewer than 5 paired seeds)"."""
    never = [name_of(v.match.method) for v in rivals if v.match.status == "never"]
    unsure = [v.match for v in rivals if v.match.status == "inconclusive"]
    parts = [f"{listed(never)} never {'does' if len(never) == 1 else 'do'} on the budgets tried"] if never else []
    if unsure:
        reasons = dict.fromkeys(REASONS[reason] for match in unsure for reason in match.reasons)
        verb = "is" if len(unsure) == 1 else "are"
        parts.append(f"{listed(name_of(m.method) for m in unsure)} {verb} inconclusive ({'; '.join(reasons)})")
    return f": {'; '.join(parts)}" if parts else ""


def sentence(report: Report, level: Level, verdicts: Verdicts) -> str:
    """The verdict on one method at one sparsity, with baseline, margin and seeds."""
    match, where = verdicts.match, f"At {sparsity_text(level.sparsity)} sparsity"
    name = name_of(match.method)
    if match.status == "never":
        tried = ", ".join(budget(name) for name in match.tried)
        return f"{where} {name} never matches {_target(report, level)}: less accurate on every budget tried ({tried})."
    if match.status == "inconclusive":
        reasons = "; ".join(REASONS[reason] for reason in match.reasons)
        return f"{where} it is inconclusive whether {name} matches the best IMP variant: {reasons}."
    gain = verdicts.seconds or verdicts.work
    assert gain is not None
    if level.reference and gain.method == level.reference.method:
        return (
            f"{where} {name_of(gain.method)} is itself the most accurate IMP variant{_comparison(report, level, gain)}."
        )
    pairs = level.entry(gain.method).judgement
    assert pairs is not None and pairs.difference is not None
    early = "" if pairs.difference.n >= HEADLINE_SEEDS else f"; preliminary, below {HEADLINE_SEEDS}"
    return (
        f"{where} {name_of(gain.method)} matches {_target(report, level)} ({LEVEL}, "
        f"{count(pairs.difference.n, 'paired seed')}{early}){_comparison(report, level, gain)}."
    )


def _target(report: Report, level: Level) -> str:
    assert level.reference is not None
    return f"{name_of(level.reference.method)}, the best IMP variant, within {number_plain(100 * report.margin)} points"


def _comparison(report: Report, level: Level, gain: Gain) -> str:
    """ " at 3.10× [2.90, 3.30] less time than IMP given a dense checkpoint, 2.00× end to end; ..."."""
    base, against = name_of(report.suite.baseline), _against_budgeted(level, gain)
    if gain.method == report.suite.baseline:
        return f", the baseline of the costs{against}"
    if gain.baseline is None:
        return f"; without a finished run of {base} on a shared seed it is unknown what that saves{against}"
    clocks = (gain.baseline.checkpoint, gain.baseline.pretraining)
    timed = all(clock.seconds for clock in clocks)
    unit = "time" if timed else "dense-equivalent epochs"
    given, end = (clock.seconds if timed else clock.work for clock in clocks)
    if given is None or end is None:
        return f"; its costs are not known{against}"
    why = "" if timed else " (no pair was timed on one machine)"
    if _saves(given) and _saves(end):
        return f" at {ratio_text(given)} less {unit} than {base} {GIVEN}, {ratio_text(end)} {END}{why}{against}"
    return (
        f", but without a clear saving: the {unit} of {base} over its own is {ratio_text(given)} {GIVEN} and "
        f"{ratio_text(end)} {END}{why}{against}"
    )


def _saves(ratio: Ratio) -> bool:
    """Whether a ratio says that the method is cheaper: the whole interval where there is one."""
    return (ratio.interval.low if ratio.interval else ratio.value) > 1


def _against_budgeted(level: Level, gain: Gain) -> str:
    """What budgeted IMP does at the same sparsity."""
    budgeted = next((v for v in level.verdicts if v.match.method == BUDGETED), None)
    if budgeted is None or split_name(gain.method)[0] == BUDGETED:
        return ""
    name = name_of(BUDGETED)
    if budgeted.match.status != "matched":
        return f"; {name} never does" if budgeted.match.status == "never" else f"; whether {name} does is inconclusive"
    own = budgeted.seconds or budgeted.work
    text = f"; {name} does so"
    if own and own.baseline and own.baseline.checkpoint.seconds:
        text += f" at {ratio_text(own.baseline.checkpoint.seconds)}"
    if gain.budgeted and gain.budgeted.checkpoint.seconds:
        text += f", in {ratio_text(gain.budgeted.checkpoint.seconds)} the time of {name_of(gain.method)}"
    return text


def _cost(level: Level, verdicts: Verdicts) -> float:
    """Mean seconds of a matching method, or infinity if it was not timed."""
    seconds = level.entry(verdicts.match.seconds).checkpoint.seconds if verdicts.match.seconds else None
    return seconds.mean if seconds else float("inf")


def stamp_line(report: Report) -> str:
    """ "CIFAR-10, ResNet-20, compressed schedule, NVIDIA H200 (driver 580.65)."."""
    schedule = ", compressed schedule" if compressed(report.suite.recipe) else ""
    return f"{setting(report.suite.recipe)}{schedule}, {hardware(report.environments)}."
