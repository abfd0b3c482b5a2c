# SPDX-License-Identifier: Apache-2.0
"""GMP: gradual magnitude pruning within one training run (Zhu and Gupta, "To prune, or not to prune", 2017).

Before step t of the ramp, every k-th one:

    m     <- the (1 - s_t) n largest |theta| among the kept weights     s_t = s (1 - (1 - t / t_end)^3)

and in every step, with z = m * theta and h = dl/dz,

    theta <- theta - alpha * m * h     (one optimizer for the whole run, so its momentum goes on through the prunings)
"""

from __future__ import annotations

from torch import nn

from sparsekit.gradients import Loss
from sparsekit.projection import Projection
from sparsekit.pruners.learning_rate import Curve
from sparsekit.pruners.optimizer_state import OptimizerFactory
from sparsekit.pruners.ramp import RampPruner, as_ramp
from sparsekit.schedules import Schedule


class GMP(RampPruner):
    """Gradual magnitude pruning; a step trains on one batch, and those of the ramp prune first.

    Args:
        model: sparsified, masks full; as initialised or trained.
        loss: (model, batch) -> scalar.
        sparsity: final fraction removed, in [0, 1).
        optimizer: list of trainable parameters -> fresh optimizer; there is one for the whole run.
        steps: training steps, each on one batch.
        ramp: fraction of the steps after which ``sparsity`` is reached, in (0, 1]; the rest trains with the final masks,
            one step at least.
        every: steps between two prunings, >= 1; the one that ends the ramp always takes place.
        schedule: a name ("cubic", "linear", "geometric", "inverse_geometric", "constant") or a function step -> sparsity
            that never falls and ends at ``sparsity``.
        curve: learning-rate curve over all steps ("constant", "cosine", "linear", "step" or callable).
        projection: pattern and allocation; global and unstructured by default.

    Metrics: loss, target (sparsity of the masks that the step trained with), flips and regrown (mask entries that changed or
    came back; regrown is always 0).

    Raises:
        ValueError, TypeError: arguments out of range or of a wrong kind; nothing to prune.

    Pruned theta: moved by weight decay and momentum of the optimizer alone; it is never used or ranked again. ``Gradual``
    prunes in the same way within a training that somebody else runs. The source leaves the length of the ramp, the steps
    between prunings (it advises 100 to 1000) and the learning rates to the user.
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
        every: int = 1,
        schedule: str | Schedule = "cubic",
        curve: str | Curve = "cosine",
        projection: Projection | None = None,
    ) -> None:
        plan = as_ramp("GMP", sparsity, schedule, steps, every, ramp, beyond=False)
        super().__init__(model, loss, sparsity, projection, optimizer=optimizer, steps=steps, curve=curve, ramp=plan)
