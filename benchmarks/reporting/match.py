# SPDX-License-Identifier: Apache-2.0
"""Time to match: the least cost at which a method is as accurate as the reference, and what that saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sparsekit.benchmarks.recipe import split_name
from sparsekit.benchmarks.reporting.runs import Run
from sparsekit.benchmarks.reporting.speedup import Clock, Factors, factors_of, ratio_of_sums
from sparsekit.benchmarks.reporting.verdict import BySeed, Judgement, Reason
from sparsekit.benchmarks.statistics import Verdict

Status = Literal["matched", "never", "inconclusive"]


@dataclass(frozen=True)
class Saving:
    """What a method costs less than another, over paired seeds; ratios above 1 favour the method.

    Args:
        method, against: names with budgets.
        seeds: seeds that both finished; the ratios of work are over these.
        timed: those of them that both finished on one and the same machine; the ratios of seconds are over these.
        checkpoint: given a dense checkpoint, which is not counted.
        pretraining: with the dense pretraining counted on both sides, end to end.
        factors: of the checkpoint clock in seconds; None where they do not exist.
    """

    method: str
    against: str
    seeds: tuple[int, ...]
    timed: tuple[int, ...]
    checkpoint: Clock
    pretraining: Clock
    factors: Factors | None


@dataclass(frozen=True)
class Match:
    """What a sweep over a method's budgets says at one sparsity.

    Args:
        method: own name, without a budget.
        status: "matched" if a budget is non-inferior, "never" if every budget is inferior, else "inconclusive".
        reasons: why budgets are inconclusive, each reason once; empty unless the status is "inconclusive".
        work: name of the non-inferior budget with the least mean dense-equivalent epochs; None without one.
        seconds: likewise with the least mean seconds on the machine with most runs; None without a timed one.
        tried: names of all budgets with runs, the smallest first.
        open: budgets smaller than the found one that are neither non-inferior nor inferior: the true one may be there.
    """

    method: str
    status: Status
    reasons: tuple[Reason, ...]
    work: str | None
    seconds: str | None
    tried: tuple[str, ...]
    open: tuple[str, ...]


def time_to_match(
    method: str,
    judged: Mapping[str, Judgement],
    runs: Mapping[str, BySeed],
    machine: str | None,
) -> Match:
    """The least cost over the budgets of a method whose verdict is "non-inferior"; the smaller budget of equals.

    Args:
        method: own name.
        judged: verdict of each of its budgets at one sparsity.
        runs: finished runs by seed of these.
        machine: canonical text of the machine whose seconds count; None for no seconds.
    """
    budgets = sorted((name for name in judged if split_name(name)[0] == method), key=lambda name: split_name(name)[1])
    good = [name for name in budgets if judged[name].verdict == "non-inferior"]
    timed = {name: [run for run in runs[name].values() if run.machine == machine] for name in good}
    work = min(good, key=lambda name: _mean([run.work for run in runs[name].values()]), default=None)
    seconds = min(
        (name for name in good if timed[name]), key=lambda name: _mean([r.seconds for r in timed[name]]), default=None
    )
    status = _status([judged[name].verdict for name in budgets])
    chosen = split_name(work)[1] if work else 0.0
    return Match(
        method=method,
        status=status,
        reasons=tuple(dict.fromkeys(judged[name].reason for name in budgets if judged[name].reason))
        if status == "inconclusive"
        else (),
        work=work,
        seconds=seconds,
        tried=tuple(name for name in budgets if runs[name]),
        open=tuple(n for n in budgets if split_name(n)[1] < chosen and judged[n].verdict == "inconclusive"),
    )


def _status(verdicts: Sequence[Verdict]) -> Status:
    if "non-inferior" in verdicts:
        return "matched"
    return "never" if verdicts and all(verdict == "inferior" for verdict in verdicts) else "inconclusive"


def saving(against: BySeed, ours: BySeed, names: tuple[str, str]) -> Saving | None:
    """Ratios of cost over paired seeds.

    Args:
        against: finished runs by seed of what the method is compared with.
        ours: those of the method.
        names: (against, method).

    Returns:
        The ratios, or None without a paired seed.
    """
    pairs = [(against[seed], ours[seed]) for seed in sorted(against.keys() & ours.keys())]
    if not pairs:
        return None
    timed = [(b, m) for b, m in pairs if b.machine == m.machine]
    base, fast = [b for b, _ in timed], [m for _, m in timed]
    return Saving(
        method=names[1],
        against=names[0],
        seeds=tuple(b.seed for b, _ in pairs),
        timed=tuple(b.seed for b in base),
        checkpoint=_clock(timed, pairs, 0),
        pretraining=_clock(timed, pairs, 1),
        factors=factors_of(base, fast) if timed else None,
    )


def _clock(timed: Sequence[tuple[Run, Run]], pairs: Sequence[tuple[Run, Run]], dense: int) -> Clock:
    """Ratios of seconds over `timed` and of work over `pairs`, with `dense` times the pretraining on both sides."""
    seconds = [[run.seconds + dense * run.pretraining_seconds for run in side] for side in zip(*timed, strict=True)]
    work = [[run.work + dense * run.pretraining_epochs for run in side] for side in zip(*pairs, strict=True)]
    return Clock(ratio_of_sums(*seconds) if seconds else None, ratio_of_sums(*work))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
