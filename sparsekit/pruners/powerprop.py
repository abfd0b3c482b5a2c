# SPDX-License-Identifier: Apache-2.0
"""Powerprop: weights that learn the faster the larger they are (Schwarz et al., NeurIPS 2021).

    w = phi * |phi|^(alpha - 1)                       dL/dphi = alpha * |phi|^(alpha - 1) * dL/dw
    phi <- sign(u) * |u|^(1 / alpha) at the start, for initial or trained weights u

Small weights are left behind near zero, whence little is lost when they go. Zero is never left again (alpha > 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sparsekit.gradients import Loss
from sparsekit.projection import Projection
from sparsekit.pruners.checks import checked_number
from sparsekit.pruners.learning_rate import Curve
from sparsekit.pruners.optimizer_state import OptimizerFactory
from sparsekit.pruners.ramp import as_ramp
from sparsekit.pruners.reparametrised import ReparametrisedPruner
from sparsekit.reparametrisations import powered, powered_gradient, rooted
from sparsekit.schedules import Schedule


class Powerprop(ReparametrisedPruner):
    """Training in phi, pruned by |w| at its end or along a ramp, then fine-tuning if wanted; a step trains on one batch.

    Args:
        model: sparsified, masks full; as initialised or trained.
        loss: (model, batch) -> scalar.
        sparsity: fraction removed, in [0, 1).
        optimizer: list of parameters -> fresh optimizer; it is given phi in place of the masked weights, in their shapes and
            places, so that its weight decay acts on phi. Called again for fine-tuning, with the model's own parameters.
        steps: training steps in phi, each on one batch.
        alpha: power, >= 1; 1 is ordinary training. The source tries 2 to 5.
        finetune_steps: training steps on the ordinary weights that are left.
        ramp: None prunes once, after the last step in phi. A fraction in (0, 1] prunes by |w| along a ramp of so many of the
            ``steps``, as GMP does.
        every, schedule: of the ramp, as of GMP.
        curve: learning-rate curve over all steps, fine-tuning included ("constant", "cosine", "linear", "step" or callable).
        rewind_state: state_dict of the plain or sparsified model to train from, usually as initialised; None trains the
            weights that the model has.
        projection: pattern and allocation; global and unstructured by default.

    Metrics: loss, flips and regrown (mask entries that changed or came back; regrown is always 0), and with a ramp target
    (sparsity of the masks that the step trained with).

    Raises:
        ValueError, TypeError: arguments out of range or of a wrong kind; nothing to prune; DTensors; a step after somebody
            else has changed the weights.

    Between steps the model's weights hold w, so it may be evaluated, saved or finalized at any time; afterwards they are
    ordinary weights. Pruned theta: its phi gets no gradient and is moved by weight decay and momentum alone; it is never
    used or ranked again. Public code of the source is for MNIST alone: how its ImageNet results were pruned is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        sparsity: float,
        *,
        optimizer: OptimizerFactory,
        steps: int,
        alpha: float = 2.0,
        finetune_steps: int = 0,
        ramp: float | None = None,
        every: int = 1,
        schedule: str | Schedule = "cubic",
        curve: str | Curve = "cosine",
        rewind_state: Mapping[str, Any] | None = None,
        projection: Projection | None = None,
    ) -> None:
        self.alpha = checked_number("Powerprop", "alpha", alpha, 1, strict=False)
        plan = as_ramp("Powerprop", sparsity, schedule, steps, every, 1.0 if ramp is None else ramp, beyond=False)
        super().__init__(
            model,
            loss,
            sparsity,
            projection,
            optimizer=optimizer,
            steps=steps,
            finetune_steps=finetune_steps,
            curve=curve,
            rewind_state=rewind_state,
            ramp=None if ramp is None else plan,
            projects_last=ramp is None,
        )

    def _leaf(self, weight: Tensor) -> Tensor:
        return rooted(weight, self.alpha)

    def _effective(self, name: str) -> Tensor:
        return powered(self._leaves[name].detach(), self.alpha)

    def _pull_back(self, gradients: dict[str, Tensor]) -> None:
        for name, dw in gradients.items():
            leaf = self._leaves[name]
            leaf.grad = powered_gradient(leaf.detach(), self.alpha, dw)

    def _climb(self, target: float) -> dict[str, Tensor]:
        scores, key = self._scores()
        return self._project(scores, target, key)

    def _config(self) -> dict[str, Any]:
        return super()._config() | {"alpha": self.alpha}
