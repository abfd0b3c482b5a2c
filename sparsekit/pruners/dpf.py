# SPDX-License-Identifier: Apache-2.0
"""DPF: dynamic model pruning with feedback (Lin, Stich, Barba, Dmitriev, Jaggi, ICLR 2020).

    every p-th step   m     <- the (1 - s_t) n largest |theta| of all weights, pruned or not
    every step        theta <- theta - alpha * h,   h = dl/dz at z = m * theta, for every entry, kept or not

So theta is a dense model whose gradient is taken at its pruned copy z: the error theta - z that pruning makes is kept and
fed back, and a pruned weight whose theta grows comes back. s_t is the cubic ramp of Zhu and Gupta, 2017.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.gradients import Loss
from sparsekit.nn import dense_gradient
from sparsekit.patterns import Key
from sparsekit.projection import Projection
from sparsekit.pruners.learning_rate import Curve
from sparsekit.pruners.optimizer_state import OptimizerFactory
from sparsekit.pruners.ramp import RampPruner, as_ramp
from sparsekit.schedules import Schedule


class DPF(RampPruner):
    """Dynamic pruning with feedback; a step trains all weights on one batch, and every p-th one chooses the masks anew first.

    Args:
        model: sparsified, masks full; as initialised or trained.
        loss: (model, batch) -> scalar.
        sparsity: final fraction removed, in [0, 1).
        optimizer: list of trainable parameters -> fresh optimizer, which has to move pruned weights too: no ``MaskedSGD``
            or ``MaskedAdamW``, nothing under ``guard_``. There is one for the whole run.
        steps: training steps, each on one batch.
        ramp: fraction of the steps after which ``sparsity`` is reached, in (0, 1]; masks go on changing afterwards.
        every: p, steps between two choices of the masks, >= 1; the one that ends the ramp always takes place.
        schedule: a name ("cubic", "linear", "geometric", "inverse_geometric", "constant") or a function step -> sparsity
            that ends at ``sparsity``.
        curve: learning-rate curve over all steps ("constant", "cosine", "linear", "step" or callable).
        projection: pattern and allocation; global and unstructured by default.

    Metrics: loss, target (sparsity of the masks that the step trained with), flips and regrown (mask entries that changed or
    came back).

    Raises:
        ValueError, TypeError: arguments out of range or of a wrong kind; nothing to prune.

    Pruned theta: trained like the rest, by the gradient at its masked copy, weight decay and momentum; only z is used, and
    the run ends with the masks that its last steps have trained with. p = 16 is the period commonly given for the paper;
    neither its appendix nor the authors' code could be read, so that unknown remain: their ramp's length and start, their
    learning rates, which layers they leave dense, and whether they keep the last or the best masks. Here the ramp begins at
    step 0, all masked layers take part and the last masks stay.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        sparsity: float,
        *,
        optimizer: OptimizerFactory,
        steps: int,
        ramp: float = 0.6,
        every: int = 16,
        schedule: str | Schedule = "cubic",
        curve: str | Curve = "cosine",
        projection: Projection | None = None,
    ) -> None:
        plan = as_ramp("DPF", sparsity, schedule, steps, every, ramp, beyond=True)
        super().__init__(model, loss, sparsity, projection, optimizer=optimizer, steps=steps, curve=curve, ramp=plan)

    def _scores(self) -> tuple[dict[str, Tensor], Key]:
        return self.weights, "magnitude"

    def _train_step(self, optimizer: torch.optim.Optimizer, batch: Any) -> Tensor:
        with dense_gradient(self.model):
            return super()._train_step(optimizer, batch)
