# SPDX-License-Identifier: Apache-2.0
"""The lines of the tables of a speed-up report, as text: one for each method and sparsity, one for each budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass

from sparsekit.benchmarks.recipe import split_name
from sparsekit.benchmarks.reporting.claims import REASONS
from sparsekit.benchmarks.reporting.entries import Entry
from sparsekit.benchmarks.reporting.levels import Level, Report, Verdicts
from sparsekit.benchmarks.reporting.match import Saving
from sparsekit.benchmarks.reporting.naming import budget, name_of, ratio_text
from sparsekit.benchmarks.reporting.speedup_bars import shown_saving
from sparsekit.benchmarks.reporting.speedup_curves import shown
from sparsekit.benchmarks.reporting.wording import MISSING, number, points, points_range, seconds_text, spread, times


@dataclass(frozen=True)
class VerdictLine:
    """One method at one sparsity, at its time to match, or where it has none on the recipe's budget.

    Args:
        method: own name. name, accuracy, seeds, difference, interval: for readers; seeds as "9 of 10".
        status, reason: of the sweep. tried: its budgets.
        time, epochs: cost of a run at its time to match; "never" or "open" without one.
        given, end_to_end: baseline's cost over the method's; matched: whether at equal accuracy.
        budgeted: cost of budgeted IMP at its time to match over that of the method's; MISSING without both.
    """

    method: str
    name: str
    accuracy: str
    seeds: str
    difference: str
    interval: str
    status: str
    reason: str
    tried: str
    time: str
    epochs: str
    given: str
    end_to_end: str
    matched: bool
    budgeted: str


def verdict_lines(report: Report, level: Level) -> Iterator[VerdictLine]:
    """One line for each method of the suite at one sparsity."""
    for verdicts in level.verdicts:
        match, gain = verdicts.match, verdicts.seconds or verdicts.work
        at = gain.method if gain else next(n for n in shown(report) if split_name(n)[0] == match.method)
        entry = level.entry(at)
        difference = entry.judgement.difference if entry.judgement else None
        time, epochs = _cost(level, verdicts)
        given, end_to_end = clocks(
            shown_saving(report, level, verdicts), bool(entry.seeds) and at == report.suite.baseline
        )
        against = gain.budgeted.checkpoint if gain and gain.budgeted else None
        yield VerdictLine(
            method=match.method,
            name=name_of(at),
            accuracy=spread(entry.accuracy),
            seeds=f"{len(entry.seeds)} of {report.suite.seeds}",
            difference=MISSING if difference is None else points(difference.mean),
            interval=points_range(difference.interval) if difference and difference.interval else "",
            status="reference" if level.reference and at == level.reference.method else match.status,
            reason="; ".join(REASONS[reason] for reason in match.reasons),
            tried=", ".join(budget(name) for name in match.tried) or MISSING,
            time=time,
            epochs=epochs,
            given=given,
            end_to_end=end_to_end,
            matched=match.status == "matched",
            budgeted=ratio_text((against.seconds or against.work) if against else None),
        )


def _cost(level: Level, verdicts: Verdicts) -> tuple[str, str]:
    """Time and epochs to match, given a dense checkpoint."""
    match = verdicts.match
    if match.status != "matched":
        word = "never" if match.status == "never" else "open"
        return word, word
    seconds = level.entry(match.seconds).checkpoint.seconds if match.seconds else None
    work = level.entry(match.work).checkpoint.work if match.work else None
    return seconds_text(seconds.mean if seconds else None), number(work.mean if work else None)


def clocks(saving: Saving | None, baseline: bool = False) -> tuple[str, str]:
    """Both ratios of a saving, in seconds or where nothing was timed in epochs."""
    if baseline:
        return "baseline", "baseline"
    if saving is None:
        return MISSING, MISSING
    found = (saving.checkpoint, saving.pretraining)
    return tuple(ratio_text(clock.seconds or clock.work) for clock in found)  # pyright: ignore[reportReturnType]


def factor_texts(saving: Saving | None) -> tuple[str, ...]:
    """The four factors."""
    return tuple(times(x) for x in astuple(saving.factors)) if saving and saving.factors else (MISSING,) * 4


def verdict_of(level: Level, entry: Entry) -> str:
    """Verdict on one budget: "reference", "non-inferior", "inferior" or "inconclusive"; MISSING without runs."""
    if level.reference and entry.method == level.reference.method:
        return "reference"
    return entry.judgement.verdict if entry.judgement and entry.seeds else MISSING


def notes(report: Report, entry: Entry) -> tuple[str, ...]:
    """Reasons of the failed runs of one method with its budget at one sparsity, with their seeds."""
    return tuple(
        f"seed {failure.seed} failed: {failure.error}"
        for failure in report.failures
        if (failure.method, failure.sparsity) == (entry.method, entry.sparsity) and not failure.recovered
    )
