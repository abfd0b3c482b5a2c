# SPDX-License-Identifier: Apache-2.0
"""Ramps: pruning step by step on the way to a sparsity, and the machine of the pruners that train meanwhile."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.gradients import Loss
from sparsekit.patterns import NM
from sparsekit.projection import Projection
from sparsekit.pruners.checks import checked_count, checked_share, checked_sparsity, described
from sparsekit.pruners.learning_rate import Curve, as_curve
from sparsekit.pruners.optimizer_state import OptimizerFactory
from sparsekit.pruners.phases import Phase
from sparsekit.pruners.rounds import RoundPruner
from sparsekit.schedules import Schedule, as_schedule


@dataclass(frozen=True)
class Ramp:
    """Which steps of a run begin with a pruning, and how far that goes.

    name: of the pruner, for errors. sparsity: at the end of the ramp. schedule: step -> sparsity. every: steps between two
    prunings. end: step of the pruning that reaches ``sparsity``, which takes place in any case. beyond: is the mask chosen
    anew every so many steps after that as well?
    """

    name: str
    sparsity: float
    schedule: Schedule
    every: int
    end: int
    beyond: bool = False

    def target(self, step: int) -> float | None:
        """Sparsity of the pruning that ``step`` (from 0) begins with; None where nothing is pruned."""
        regular = step % self.every == 0
        if step == self.end or (step > self.end and self.beyond and regular):
            return self.sparsity
        return checked_sparsity(self.name, self.schedule(step)) if step < self.end and regular else None

    def latest(self, step: int) -> float:
        """Sparsity that the masks have during ``step``; before the first pruning it is 0."""
        if step >= self.end:
            return self.sparsity
        return self.target(step // self.every * self.every) or 0.0

    def described(self) -> dict[str, Any]:
        """Part of checkpoints: never an address."""
        return {"every": self.every, "end": self.end, **described(schedule=self.schedule)}


def as_ramp(
    name: str,
    sparsity: float,
    schedule: str | Schedule,
    steps: int,
    every: int,
    fraction: float,
    beyond: bool,
    start: float = 0.0,
    initial: float = 0.0,
) -> Ramp:
    """The ramp that ends at ``fraction`` of ``steps``, or an error that names the argument of the pruner ``name``.

    Of a schedule that is given by its name, start: fraction of the steps at which it leaves its first sparsity; initial:
    that sparsity, or ``sparsity`` if that is less.
    """
    sparsity = checked_sparsity(name, sparsity)
    checked_count(name, "steps", steps)
    checked_count(name, "every", every)
    fraction = checked_share(name, "ramp", fraction)
    if isinstance(start, bool) or not isinstance(start, Real) or not 0 <= start < fraction:
        raise ValueError(f"{name}: warm_up: expected a number in [0, {fraction}) (ramp), got {start!r}")
    # The last step still trains what the last pruning has left.
    end = min(max(1, math.floor(fraction * steps + 0.5)), steps - 1)
    begin = min(math.floor(float(start) * steps + 0.5), end)
    planned = as_schedule(schedule, sparsity, initial=min(initial, sparsity), start=begin, end=end)
    return Ramp(name, sparsity, planned, every, end, beyond)


def check_pattern(ramp: Ramp, projection: Projection | None) -> None:
    """Raise ValueError for a pattern that has one sparsity only, and a ramp that begins at another."""
    pattern = projection.pattern if isinstance(projection, Projection) else None
    if isinstance(pattern, NM) and ramp.schedule(0) != ramp.sparsity:
        expected = f"'constant' for {pattern.describe()}"
        raise ValueError(f"{ramp.name}: schedule: expected {expected}, got {ramp.schedule!r}")


class RampPruner(RoundPruner):
    """One training run with one optimizer, in which some steps begin with a pruning; GMP, DPF, WoodFisher say by what scores.

    Args:
        model, loss, sparsity, projection: as of every pruner; the masks must be full.
        optimizer: list of trainable parameters -> fresh optimizer. steps, curve: of the training.
        ramp: when to prune, and how far.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        sparsity: float,
        projection: Projection | None,
        *,
        optimizer: OptimizerFactory,
        steps: int,
        curve: str | Curve,
        ramp: Ramp,
    ) -> None:
        self.ramp = ramp
        check_pattern(ramp, projection)
        phase = Phase(steps, as_curve(ramp.name, "curve", curve))
        super().__init__(model, loss, sparsity, projection, (phase,), optimizer)

    def _begin(self, index: int, drawn: list[Any]) -> dict[str, Tensor]:
        target = self.ramp.target(self._step)
        if target is None:
            return {}
        scores, key = self._scores()
        return self._project(scores, target, key)

    def _progress(self) -> dict[str, Tensor]:
        return {"target": self._number(self.ramp.latest(self._step), torch.float64)}

    def _config(self) -> dict[str, Any]:
        return super()._config() | self.ramp.described()
