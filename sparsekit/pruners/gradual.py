# SPDX-License-Identifier: Apache-2.0
"""Gradual: magnitude pruning along a schedule, of a model that somebody else trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.projection import Projection
from sparsekit.pruners.base import BasePruner
from sparsekit.pruners.checks import checked_count, checked_sparsity
from sparsekit.pruners.ramp import Ramp
from sparsekit.pruners.remaining import remaining_magnitudes
from sparsekit.schedules import Schedule, as_schedule


class Gradual(BasePruner):
    """Raise the sparsity step by step, removing the smallest weights; a step takes no batch and trains nothing.

    For loops that belong to somebody else: call ``step()`` before (or after) each training step, or let the callbacks of
    ``sparsekit.integrations`` do so. What has been pruned stays pruned.

    Args:
        model: sparsified.
        sparsity: final fraction removed, in [0, 1).
        steps: steps until it is reached, exactly; the pruner is done then.
        every: steps between two prunings, >= 1; the last step always prunes.
        schedule: a name ("cubic", "linear", "geometric", "inverse_geometric", "constant") or a function step -> sparsity
            that never falls and ends at ``sparsity``.
        projection: pattern and allocation; global and unstructured by default.

    Metrics: target (the sparsity asked for), flips and regrown (mask entries that changed; regrown is 0).

    Raises:
        ValueError, TypeError: arguments out of range or of a wrong kind; nothing to prune.

    Source: Zhu and Gupta, "To prune, or not to prune", 2017 (cubic). Pruned theta: moved by weight decay and momentum of
    the user's optimizer alone (see ``guard_``); it is never used or ranked again. ``GMP`` also trains.
    """

    trains = False

    def __init__(
        self,
        model: nn.Module,
        sparsity: float,
        *,
        steps: int,
        every: int = 1,
        schedule: str | Schedule = "cubic",
        projection: Projection | None = None,
    ) -> None:
        self.steps = checked_count("Gradual", "steps", steps)
        self.every = checked_count("Gradual", "every", every)
        sparsity = checked_sparsity("Gradual", sparsity)
        self.schedule = as_schedule(schedule, sparsity, end=steps - 1)
        self._ramp = Ramp("Gradual", sparsity, self.schedule, every, end=steps - 1)
        super().__init__(model, _no_loss, sparsity, projection)

    @property
    def done(self) -> bool:
        """Has the last step been taken?"""
        return self._step >= self.steps

    def step(self, batches: Iterator[Any] = iter(())) -> Any:  # noqa: B008 (it is never drawn from)
        """Advance by one step; ``batches`` is not used. See BasePruner."""
        return super().step(batches)

    def _advance(self, batches: Iterator[Any]) -> dict[str, Tensor]:
        target = self._ramp.target(self._step)
        if target is None:
            return {}
        scores, key = remaining_magnitudes(self.layers, self.projection)
        return {"target": torch.tensor(target, dtype=torch.float64), **self._project(scores, target, key)}

    def _config(self) -> dict[str, Any]:
        return super()._config() | {"steps": self.steps, **self._ramp.described()}


def _no_loss(model: nn.Module, batch: Any) -> Tensor:
    raise NotImplementedError
