# SPDX-License-Identifier: Apache-2.0
"""One-shot magnitude pruning of a trained network: OMP, which restarts from the initial weights, and OneShotMagnitude,
which goes on with the trained ones. Papers mix the two up; they are different methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from sparsekit.gradients import Loss
from sparsekit.patterns import NM
from sparsekit.projection import Projection
from sparsekit.pruners.checks import checked_count
from sparsekit.pruners.learning_rate import Curve, as_curve
from sparsekit.pruners.optimizer_state import OptimizerFactory
from sparsekit.pruners.phases import Phase
from sparsekit.pruners.remaining import kept_units
from sparsekit.pruners.rounds import RoundPruner


class OMP(RoundPruner):
    """One-shot magnitude pruning as a lottery ticket: the mask of the trained network, the weights of the initial one.

    Args:
        model: sparsified, masks full; trained if ``dense_steps`` is 0, else as initialised.
        loss: (model, batch) -> scalar.
        sparsity: fraction removed, in [0, 1).
        optimizer: list of trainable parameters -> fresh optimizer, called for either training.
        steps: training steps after the rewind, each on one batch.
        rewind_state: without dense steps, state_dict of the plain or sparsified model at initialisation.
        dense_steps: steps of dense training before the pruning; the model as given is then the initial one.
        curve: learning-rate curve of both trainings ("constant", "cosine", "linear", "step" or callable).
        projection: pattern and allocation; global and unstructured by default.

    Metrics: loss, round (0 = dense, 1), flips and regrown (mask entries that changed or came back).

    Raises:
        ValueError, TypeError: arguments out of range, of a wrong kind, or contradictory; nothing to prune.

    Without dense steps pruning and rewind happen here, so that the masks hold before the first step. Pruned theta:
    rewound like the rest, then moved by weight decay alone; it is never used.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        sparsity: float,
        *,
        optimizer: OptimizerFactory,
        steps: int,
        rewind_state: Mapping[str, Any] | None = None,
        dense_steps: int = 0,
        curve: str | Curve = "cosine",
        projection: Projection | None = None,
    ) -> None:
        checked_count("OMP", "steps", steps)
        if checked_count("OMP", "dense_steps", dense_steps, 0) and rewind_state is not None:
            raise ValueError("OMP: rewind_state: expected None with dense_steps, got a state")
        if not dense_steps and rewind_state is None:
            raise ValueError("OMP: rewind_state: expected a state dict without dense_steps, got None")
        rate = as_curve("OMP", "curve", curve)
        pruned = Phase(steps, rate, sparsity, "init")
        phases = (Phase(dense_steps, rate), pruned) if dense_steps else (pruned,)
        states = {} if dense_steps else {"init": rewind_state}
        captures = {0: "init"} if dense_steps else {}
        super().__init__(model, loss, sparsity, projection, phases, optimizer, states, captures)


class OneShotMagnitude(RoundPruner):
    """Prune a trained network once by |theta| and, if wanted, fine-tune what is left.

    Args:
        model: trained and sparsified, masks full. Without ``steps`` and ``recalibrate`` they need not be: what is pruned
            stays so, and does not compete.
        loss: (model, batch) -> scalar.
        sparsity: fraction removed, in [0, 1).
        optimizer: list of trainable parameters -> optimizer; needed when there are ``steps``.
        steps: fine-tuning steps, each on one batch; with 0 the run is done once the model is pruned (and recalibrated).
        recalibrate: if > 0, a step of its own before fine-tuning estimates the BatchNorm statistics of the pruned
            network from so many batches; it reports no loss, and its forward passes are not in ``cost``.
        curve: learning-rate curve of the fine-tuning ("constant", "cosine", "linear", "step" or callable).
        projection: pattern and allocation; global and unstructured by default.

    Metrics: loss, round (1), flips and regrown (0: the pruning comes before the first step).

    Raises:
        ValueError, TypeError: arguments out of range or of a wrong kind; nothing to prune; masks already too sparse.

    The pruning happens here, so the network can be evaluated before any fine-tuning. Pruned theta: moved by weight
    decay alone during fine-tuning; it is never used.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        sparsity: float,
        *,
        optimizer: OptimizerFactory | None = None,
        steps: int = 0,
        recalibrate: int = 0,
        curve: str | Curve = "cosine",
        projection: Projection | None = None,
    ) -> None:
        checked_count("OneShotMagnitude", "steps", steps, 0)
        checked_count("OneShotMagnitude", "recalibrate", recalibrate, 0)
        rate, self._continues = as_curve("OneShotMagnitude", "curve", curve), not steps and not recalibrate
        phases = (Phase(steps, rate, sparsity),)
        if recalibrate:
            phases = (Phase(1, None, sparsity, recalibrate=recalibrate), Phase(steps, rate))
        super().__init__(model, loss, sparsity, projection, phases, optimizer)

    def _check_masks(self) -> None:
        if not self._continues:
            super()._check_masks()
        elif not isinstance(self.projection.pattern, NM) and self.projection.group is None:
            self._check_left()

    def _check_left(self) -> None:
        """Raise ValueError where more would have to be kept than is."""
        pattern, shapes = self.projection.pattern, {name: tuple(w.shape) for name, w in self.weights.items()}
        left = kept_units({name: mask.dense() for name, mask in self.masks.items()}, pattern)
        kept = {name: int(units.sum()) for name, units in left.items()}
        budget = self.projection.budget(shapes, self.sparsity)
        if isinstance(budget, int):
            kept, budget = {"all layers": sum(kept.values())}, {"all layers": budget}
        for name, count in kept.items():
            if count < budget[name]:
                expected = f"masks that keep at least {budget[name]:,} units of {name}"
                raise ValueError(f"{self.name}: model: expected {expected}, got {count:,} kept")
