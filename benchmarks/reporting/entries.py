# SPDX-License-Identifier: Apache-2.0
"""One method on one budget at one sparsity: its accuracy, its costs and what the machine measured beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sparsekit.benchmarks.recipe import split_name
from sparsekit.benchmarks.reporting.match import Saving
from sparsekit.benchmarks.reporting.runs import OUTSIDE, Run
from sparsekit.benchmarks.reporting.verdict import BySeed, Judgement
from sparsekit.benchmarks.statistics import Estimate, describe


@dataclass(frozen=True)
class Spending:
    """What one run costs on one clock, on average; None where no run has the number.

    Args:
        work: dense-equivalent epochs.
        seconds: wall time, over the runs of the machine with most runs.
        flops, energy: operations and joules.
        peak_memory: bytes, the largest of all runs.
    """

    work: Estimate | None
    seconds: Estimate | None
    flops: float | None
    peak_memory: float | None
    energy: float | None


@dataclass(frozen=True)
class Entry:
    """One method on one budget at one sparsity.

    Args:
        method: name with its budget, as in the rows. own, factor: its two parts.
        seeds: of the finished runs, ascending.
        accuracy, before: test accuracy of the final network, and after the final mask before fine-tuning.
        checkpoint, end_to_end: cost without and with the dense pretraining.
        judgement: against the reference; None for dense training.
        saving: against the suite's baseline; None without a paired seed, and for dense training.
        outside: mean seconds of a run that no clock holds, by name; without those that no row knows.
    """

    method: str
    own: str
    factor: float
    sparsity: float
    seeds: tuple[int, ...]
    accuracy: Estimate | None
    before: Estimate | None
    checkpoint: Spending
    end_to_end: Spending
    judgement: Judgement | None
    saving: Saving | None
    outside: Mapping[str, float]


def entry_of(
    method: str,
    sparsity: float,
    by_seed: BySeed,
    machine: str | None,
    judgement: Judgement | None,
    saving: Saving | None,
) -> Entry:
    """The entry of the finished runs of one method with its budget at one sparsity, of which there may be none."""
    runs = list(by_seed.values())
    own, factor = split_name(method)
    return Entry(
        method=method,
        own=own,
        factor=factor,
        sparsity=sparsity,
        seeds=tuple(by_seed),
        accuracy=_describe([run.accuracy for run in runs]),
        before=_describe([run.accuracy_before for run in runs if run.accuracy_before is not None]),
        checkpoint=_spending(runs, machine, 0),
        end_to_end=_spending(runs, machine, 1),
        judgement=judgement,
        saving=saving,
        outside=_outside(runs),
    )


def _outside(runs: Sequence[Run]) -> dict[str, float]:
    known = {name: [x for run in runs if (x := getattr(run, name)) is not None] for name in OUTSIDE}
    return {name: sum(values) / len(values) for name, values in known.items() if values}


def _spending(runs: Sequence[Run], machine: str | None, dense: int) -> Spending:
    """Mean costs, with `dense` times the pretraining."""
    flops = _sums(((run.flops, run.dense_flops) for run in runs), dense)
    energy = _sums(((run.energy, run.dense_energy) for run in runs if run.machine == machine), dense)
    memory = [x for run in runs for x in (run.peak_memory, run.dense_peak_memory)[: 1 + dense] if x is not None]
    return Spending(
        work=_describe([run.work + dense * run.pretraining_epochs for run in runs]),
        seconds=_describe([run.seconds + dense * run.pretraining_seconds for run in runs if run.machine == machine]),
        flops=sum(flops) / len(flops) if flops else None,
        peak_memory=max(memory, default=None),
        energy=sum(energy) / len(energy) if energy else None,
    )


def _sums(pairs: Iterable[tuple[float | None, float | None]], dense: int) -> list[float]:
    """pruning + `dense` times pretraining of every run that has what is needed."""
    return [
        own + dense * (before or 0.0) for own, before in pairs if own is not None and (before is not None or not dense)
    ]


def _describe(values: Sequence[float]) -> Estimate | None:
    return describe(values) if values else None
