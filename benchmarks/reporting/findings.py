# SPDX-License-Identifier: Apache-2.0
"""What a comparison found, in sentences that name the baseline and the clock, and what to beware of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsekit.benchmarks.reporting.runs import canonical
from sparsekit.benchmarks.reporting.speedup import Ratio, Speedup
from sparsekit.benchmarks.reporting.summary import Cell, Group
from sparsekit.benchmarks.reporting.wording import (
    count,
    label,
    number_plain,
    percent,
    points,
    points_range,
    sparsity_text,
    times,
    times_range,
    verdict_text,
)
from sparsekit.benchmarks.statistics import MINIMUM_PAIRS

CHECKPOINT = "given a dense checkpoint"
PRETRAINING = "with pretraining counted on both sides"
MANY = 6
"""Methods beside the baseline that a reader takes in one by one."""
LEVEL = "95\N{NO-BREAK SPACE}%"


@dataclass(frozen=True)
class Finding:
    """One method against the baseline, in words: what it cost on both clocks, and how accurate it ended."""

    method: str
    cost: str
    accuracy: str


def title(group: Group) -> str:
    """ "BiP and SpODE against IMP", or "6 methods against IMP" for more than four."""
    others = [label(method) for method in group.methods if method != group.baseline]
    if not others:
        return f"{label(group.baseline)} alone"
    if len(others) > 4:
        return f"{len(others)} methods against {label(group.baseline)}"
    names = others[0] if len(others) == 1 else f"{', '.join(others[:-1])} and {others[-1]}"
    return f"{names} against {label(group.baseline)}"


def findings(group: Group) -> tuple[Finding, ...]:
    """One finding for each method but the baseline."""
    return tuple(_finding(group, method) for method in group.methods if method != group.baseline)


def digest(group: Group) -> tuple[str, ...]:
    """For more than MANY methods, whom nobody reads one by one: a sentence for each sparsity with the methods by verdict.

    Within a verdict the most accurate comes first. Empty for fewer methods.
    """
    return tuple(_digest(group, s) for s in group.sparsities) if len(group.methods) > MANY + 1 else ()


def _digest(group: Group, sparsity: float) -> str:
    cells = [c for m in group.methods_at(sparsity) if m != group.baseline and (c := group.cell(m, sparsity))]
    cells.sort(key=lambda cell: -cell.accuracy.mean)
    base, margin = label(group.baseline), number_plain(100 * group.margin)
    words = {
        "non-inferior": f"no more than {margin} points below {base}",
        "inferior": f"more than {margin} points below {base}",
        "inconclusive": "undecided",
        None: f"without a pair of runs with {base}",
    }
    parts = []
    for verdict, what in words.items():
        own = [f"{label(cell.method)} ({percent(cell.accuracy.mean)})" for cell in cells if cell.verdict == verdict]
        if own:
            parts.append(f"{what}: {', '.join(own)}")
    best = group.cell(group.baseline, sparsity)
    lead = f"{base} {percent(best.accuracy.mean)}; " if best else ""
    return f"At {sparsity_text(sparsity)} sparsity, test accuracy in %: {lead}{'; '.join(parts)}."


def _finding(group: Group, method: str) -> Finding:
    base, name = label(group.baseline), label(method)
    cells = [c for s in group.sparsities if (c := group.cell(method, s)) and c.difference]
    if not cells:
        return Finding(method, f"No seed has finished with both {name} and {base}: nothing is compared.", "")
    speeds = [s for s in group.speedups if s.method == method]
    if len(group.sparsities) == 1:
        return Finding(method, _cost(name, base, speeds), _accuracy(group, cells[0]))
    return Finding(method, _costs(name, base, speeds), _accuracies(group, cells))


def _ratios(speeds: Sequence[Speedup], clock: str) -> list[tuple[str, Ratio]]:
    """(sparsity in words, ratio of seconds) wherever there is one."""
    found = [(speed.sparsity, getattr(speed, clock).seconds) for speed in speeds]
    return [(sparsity_text(sparsity), ratio) for sparsity, ratio in found if ratio]


def _cost(name: str, base: str, speeds: Sequence[Speedup]) -> str:
    """Sentence about the time at one sparsity."""
    given, counted = _ratios(speeds, "checkpoint"), _ratios(speeds, "pretraining")
    if not given or not counted:
        return f"No pair of runs in one environment gives a time ratio of {base} and {name}."
    where, ratio = given[0]
    return (
        f"At {where} sparsity and {CHECKPOINT}, {name} took {_pace(ratio, base)}; "
        f"{PRETRAINING} it took {_pace(counted[0][1], base)}."
    )


def _pace(ratio: Ratio, baseline: str) -> str:
    """ "2.31× less time than IMP (95 % interval 2.20× to 2.41×)", or plainly that it was slower."""
    interval = f" ({LEVEL} interval {times_range(ratio.interval)})" if ratio.interval else ""
    if ratio.interval and ratio.interval.low <= 1 <= ratio.interval.high:
        return f"about as long as {baseline}, whose time is {times(ratio.value)} its own{interval}"
    if ratio.value >= 1:
        return f"{times(ratio.value)} less time than {baseline}{interval}"
    return f"{times(1 / ratio.value)} the time of {baseline}: it was slower"


def _accuracy(group: Group, cell: Cell) -> str:
    """ "Test accuracy was 0.21 points lower (95 % interval −0.50 to +0.10; 5 paired seeds): inconclusive..."."""
    difference = cell.difference
    assert difference is not None
    size = percent(abs(difference.mean))
    word = "higher" if difference.mean > 0 else "lower"
    lead = f"{size} points {word}" if float(size) else "equal to two decimals"
    interval = f"{LEVEL} interval {points_range(difference.interval)}; " if difference.interval else ""
    verdict = verdict_text(cell.verdict, difference.n, group.margin, MINIMUM_PAIRS)
    return f"Test accuracy was {lead} ({interval}{count(difference.n, 'paired seed')}): {verdict}."


def _costs(name: str, base: str, speeds: Sequence[Speedup]) -> str:
    """Sentences about the time over several sparsities, with those at which the method loses."""
    given, counted = _ratios(speeds, "checkpoint"), _ratios(speeds, "pretraining")
    if not given or not counted:
        return f"No pair of runs in one environment gives a time ratio of {base} and {name}."
    if all(ratio.value >= 1 for _, ratio in (*given, *counted)):
        return f"{name} took {_range(given)} less time than {base} {CHECKPOINT}, and {_range(counted)} {PRETRAINING}."
    text = f"{base}'s time over {name}'s is {_range(given)} {CHECKPOINT}, and {_range(counted)} {PRETRAINING}."
    slower = []
    for found, words in ((given, CHECKPOINT), (counted, PRETRAINING)):
        lost = [where for where, ratio in found if ratio.value < 1]
        if lost:
            slower.append(f"at {', '.join(lost)} {words}")
    return f"{text} {name} was slower {' and '.join(slower)}." if slower else text


def _range(found: list[tuple[str, Ratio]]) -> str:
    """ "1.22× at 48.8 % to 6.49× at 97.2 %"."""
    (low_at, low), (high_at, high) = (pick(found, key=lambda item: item[1].value) for pick in (min, max))
    if low_at == high_at:
        return f"{times(low.value)} at {low_at}"
    return f"{times(low.value)} (at {low_at}) to {times(high.value)} (at {high_at})"


def _accuracies(group: Group, cells: list[Cell]) -> str:
    """Range of the differences, and the sparsities by verdict."""
    means = [cell.difference.mean for cell in cells if cell.difference]
    lower = sum(mean < 0 for mean in means)
    text = [
        f"Test accuracy was lower at {lower} of {count(len(means), 'sparsity', 'sparsities')}, "
        f"by mean differences from {points(min(means))} to {points(max(means))} points"
    ]
    words = {"non-inferior": "non-inferior", "inferior": "less accurate by more than the margin"}
    for verdict in ("non-inferior", "inferior", "inconclusive"):
        here = [sparsity_text(cell.sparsity) for cell in cells if cell.verdict == verdict]
        if here:
            text.append(f"{words.get(verdict, verdict)} at {', '.join(here)}")
    return "; ".join(text) + f" (margin {number_plain(100 * group.margin)} points)."


def cautions(group: Group) -> tuple[str, ...]:
    """What in these very rows limits what they can show; empty if nothing does."""
    found = []
    if group.baseline not in {cell.method for cell in group.cells}:
        found.append(f"No run of the baseline {label(group.baseline)} finished, so nothing is compared with it.")
    pairs = [cell.difference.n for cell in group.cells if cell.difference]
    if pairs and min(pairs) < MINIMUM_PAIRS:
        found.append(f"Down to {count(min(pairs), 'paired seed')}: below {MINIMUM_PAIRS} no verdict is given.")
    if group.missing:
        done = sum(len(group.methods_at(sparsity)) for sparsity in group.sparsities) * len(group.seeds)
        found.append(f"{len(group.missing)} of {done} runs are missing or failed; they are left out, not estimated.")
    unmatched = [f"{label(c.method)} at {sparsity_text(c.sparsity)}" for c in group.cells if c.matched is False]
    if unmatched:
        found.append(f"Kept weights are not as many as those of {label(group.baseline)}: {', '.join(unmatched)}.")
    if len(group.environments) > 1:
        found.append("The runs come from different environments; times are compared only within one.")
    sources = {canonical(dict(run.environment.get("git") or {})) for run in group.runs}
    if len(sources) > 1:
        found.append(f"The runs come from {len(sources)} states of the source code.")
    return tuple(found)
