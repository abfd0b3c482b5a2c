# SPDX-License-Identifier: Apache-2.0
"""WoodFisher: pruning by the inverse empirical Fisher matrix (Singh and Alistarh, NeurIPS 2020).

A pruning, at weights theta whose kept ones have m gradients g_1 .. g_m, each the mean over one batch:

    F       = lambda I + (1/m) sum g_i g_i'      in blocks along the diagonal, in place of the Hessian
    score_q = theta_q^2 / (2 [F^-1]_qq)          the loss that removing q costs, the others answering in the best way
    m       <- the budget's largest scores among the kept weights
    theta   <- theta - sum over the removed q of theta_q F^-1 e_q / [F^-1]_qq

``sparsekit.fisher`` says how F^-1 is had. Pruning and training alternate within one run, as in GMP.
"""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit import fisher, ops
from sparsekit.gradients import Loss
from sparsekit.nn import frozen_batchnorm
from sparsekit.projection import Projection
from sparsekit.pruners.checks import check_plain, checked_count, checked_number
from sparsekit.pruners.learning_rate import Curve
from sparsekit.pruners.optimizer_state import OptimizerFactory
from sparsekit.pruners.ramp import Ramp, RampPruner, as_ramp
from sparsekit.schedules import Constant, Schedule

UPDATES = ("sum", "joint", "none")
# Of the first pruning, as in the source.
FIRST = 0.05


class WoodFisher(RampPruner):
    """Second-order pruning; a step trains on one batch, and those of the ramp prune first, by ``fisher_batches`` more.

    Args:
        model: trained and sparsified, masks full.
        loss: (model, batch) -> scalar, the mean over the batch.
        sparsity: final fraction removed, in [0, 1).
        optimizer: list of trainable parameters -> fresh optimizer; there is one for the whole run.
        steps: training steps, each on one batch.
        fisher_batches: m, batches that each pruning draws, and gradients that it forms (the source has 400, each the mean of
            400 images for ImageNet). Their memory is m times that of the masked weights.
        block: weights of a layer, in the order of memory, that share a block of F; the last block has what is left.
        damping: lambda, > 0.
        update: change of the kept weights with a pruning. "sum" is the source's: exact for one removed weight in a block;
            of several, each is answered as if the others stayed. "joint" (not of the source) solves for all of a block
            together, which is exact for this F. "none" leaves theta.
        ramp: fraction of the steps after which ``sparsity`` is reached, in [0, 1]; 0 prunes once, before the first step.
        every: steps between two prunings, >= 1; the one that ends the ramp always takes place. A twentieth of the steps is
            the source's.
        schedule: a name ("cubic", "linear", "geometric", "inverse_geometric", "constant"), from 5 % on, or a function
            step -> sparsity that never falls and ends at ``sparsity``.
        curve: learning-rate curve over all steps ("constant", "cosine", "linear", "step" or callable).
        projection: pattern and allocation; global (the source's joint) and unstructured by default, "uniform" is its
            independent one. Units rank by the sum of their weights' scores, an extension.

    Metrics: loss, target (sparsity of the masks that the step trained with), flips and regrown (mask entries that changed or
    came back; regrown is always 0).

    Raises:
        ValueError, TypeError: arguments out of range or of a wrong kind; nothing to prune; DTensors, whose shards would cut
            through blocks.

    Pruned theta: out of F, never ranked again, and moved by weight decay and momentum of the optimizer alone. The Fisher
    passes normalise by their batches and leave the BatchNorm statistics; each counts as a pass in ``cost``. In
    DistributedDataParallel a gradient is the mean over the batches of all processes. Defaults are the source's for
    ResNet-50 on ImageNet as the specification has them; unknown are the mode of BatchNorm in its Fisher passes and what
    becomes of the optimizer's momentum, which here goes on.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        sparsity: float,
        *,
        optimizer: OptimizerFactory,
        steps: int,
        fisher_batches: int = 400,
        block: int = 2000,
        damping: float = 1e-5,
        update: str = "sum",
        ramp: float = 0.4,
        every: int = 1,
        schedule: str | Schedule = "cubic",
        curve: str | Curve = "cosine",
        projection: Projection | None = None,
    ) -> None:
        self.fisher_batches = checked_count("WoodFisher", "fisher_batches", fisher_batches)
        self.block = checked_count("WoodFisher", "block", block)
        self.damping = checked_number("WoodFisher", "damping", damping)
        if update not in UPDATES:
            raise ValueError(f"WoodFisher: update: expected one of {', '.join(UPDATES)}, got {update!r}")
        self.update = update
        self._fisher: list[Any] = []
        plan = _plan(sparsity, schedule, steps, every, ramp)
        check_plain("WoodFisher", model)
        super().__init__(model, loss, sparsity, projection, optimizer=optimizer, steps=steps, curve=curve, ramp=plan)

    def _advance(self, batches: Iterator[Any]) -> dict[str, Tensor]:
        prunes = self.ramp.target(self._step) is not None
        *self._fisher, last = self._draw(batches, 1 + prunes * self.fisher_batches)
        try:
            return super()._advance(iter([last]))
        finally:
            self._fisher = []

    def _begin(self, index: int, drawn: list[Any]) -> dict[str, Tensor]:
        target = self.ramp.target(self._step)
        if target is None:
            return {}
        gradients = self._gradients()
        with self.cost.selection():
            diagonals = {n: fisher.inverse_diagonal(g, self.damping, self.block) for n, g in gradients.items()}
            scores = self._saliencies(diagonals)
            before = {name: layer.mask_words.clone() for name, layer in self.layers.items()}
        # Sums, not norms, of what single weights cost; whatever is pruned ranks below all that is kept.
        moved = self._project(scores, target, "value")
        if self.update != "none":
            with self.cost.selection():
                self._answer(before, diagonals, gradients)
        return moved

    def _gradients(self) -> dict[str, Tensor]:
        """One row for each Fisher batch, zero where the masks are: layer name -> [m, n]."""
        rows = {n: w.new_empty(self.fisher_batches, w.numel()) for n, w in self.weights.items()}
        for i, batch in enumerate(self._fisher):
            for name, gradient in self._on_device("fisher", None, [batch], self._gradient).items():
                rows[name][i] = gradient.reshape(-1)
        bad = ~torch.stack([g.isfinite().all() for g in rows.values()]).all()
        self._check(bad, f"{self.name}: gradients: expected finite values, got NaN or inf")
        return rows

    def _gradient(self, drawn: list[Any]) -> dict[str, Tensor]:
        with frozen_batchnorm(self.model):
            dense = self._dense_gradients(drawn[0])
        return {name: ops.mask_weight(g, self.layers[name].mask_words) for name, g in dense.items()}

    def _saliencies(self, diagonals: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, layer in self.layers.items():
            theta = layer.weight.detach()
            score = fisher.saliency(theta.reshape(-1), diagonals[name]).reshape(theta.shape)
            found[name] = torch.where(ops.unpack_mask(layer.mask_words, theta.shape), score, -1.0)
        return found

    @torch.no_grad()
    def _answer(self, before: dict[str, Tensor], diagonals: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
        """Change what the pruning has left, in answer to what it has removed."""
        for name, layer in self.layers.items():
            shape, theta = layer.weight.shape, layer.weight.detach().reshape(-1)
            kept = ops.unpack_mask(layer.mask_words, shape).reshape(-1)
            removed = ops.unpack_mask(before[name], shape).reshape(-1) & ~kept
            own = gradients[name], self.damping, self.block
            if self.update == "joint":
                change = fisher.joint_update(theta, removed, kept, *own)
            else:
                change = fisher.summed_update(theta, removed, diagonals[name], *own)
            # Gradients that are not finite have been reported; on a GPU nobody has looked yet.
            change = torch.where(kept & change.isfinite(), change, 0)
            layer.weight.copy_((theta + change).reshape(shape))

    def _config(self) -> dict[str, Any]:
        own = {"fisher_batches": self.fisher_batches, "block": self.block, "damping": self.damping}
        return super()._config() | own | {"update": self.update}


def _plan(sparsity: float, schedule: str | Schedule, steps: int, every: int, ramp: float) -> Ramp:
    """The ramp; for a fraction of 0 the one pruning before the first step."""
    if isinstance(ramp, bool) or not isinstance(ramp, Real) or not 0 <= ramp <= 1:
        raise ValueError(f"WoodFisher: ramp: expected a number in [0, 1], got {ramp!r}")
    plan = as_ramp("WoodFisher", sparsity, schedule, steps, every, ramp or 1, beyond=False, initial=FIRST)
    return plan if ramp else Ramp("WoodFisher", plan.sparsity, Constant(plan.sparsity), 1, 0)
