# SPDX-License-Identifier: Apache-2.0
"""STR: soft threshold reparametrisation (Kusupati et al., ICML 2020).

    w = sign(u) * relu(|u| - sigmoid(s_l))      u and one number s_l for each layer l are trained

    dL/du   = dL/dw where w is not zero, else 0
    dL/ds_l = - sigmoid'(s_l) * sum of sign(u) * dL/dw where w is not zero

s_l begins far below zero, where the sigmoid is zero and so is its gradient. Weight decay pulls it up, thresholds grow, and
the loss pulls back where they hurt. So sparsity is what comes of the first s and the weight decay; nothing aims at it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.allocation import kept_count
from sparsekit.gradients import Loss
from sparsekit.patterns import Key, Unstructured
from sparsekit.projection import Projection
from sparsekit.pruners.checks import checked_number
from sparsekit.pruners.learning_rate import Curve
from sparsekit.pruners.optimizer_state import OptimizerFactory
from sparsekit.pruners.ramp import as_ramp
from sparsekit.pruners.reparametrised import ReparametrisedPruner
from sparsekit.reparametrisations import crossing, soft_threshold, soft_threshold_gradients, threshold_margin
from sparsekit.schedules import Schedule

SCOPES = ("layer", "global")


class STR(ReparametrisedPruner):
    """Learned thresholds, an exact projection after them, then fine-tuning if wanted; a step trains on one batch.

    Args:
        model: sparsified, masks full; as initialised or trained.
        loss: (model, batch) -> scalar.
        sparsity: fraction removed at the end, in [0, 1); without ``ramp`` the thresholds know nothing of it.
        optimizer: list of parameters -> fresh optimizer; it is given u in place of the masked weights, in their shapes and
            places, and last the vector of all s, on which its weight decay has to act as well: a factory that spares
            vectors stops the thresholds. Called again for fine-tuning, with the model's own parameters.
        steps: training steps of u and s, each on one batch.
        first: s at the start, finite. The source has -3200 for ResNet-50 on ImageNet at a weight decay of 2.25e-5, and
            advises some -100 and more decay than 5e-4 for CIFAR.
        scope: one s for each "layer", or one in all ("global").
        finetune_steps: training steps on the thresholded weights that the projection has left.
        ramp: None is the source. A fraction in (0, 1], which is not the source's, shifts the thresholds: w is thresholded by
            sigmoid(s_l + b) with one b for all layers, chosen as the one at which a cubic ramp's fraction of all masked
            weights is zero, from ``sparsity`` 0 to the final one over so many of the ``steps``, and at the final one from
            then on. Differences between layers are still learned; how far all thresholds are is not.
        every: steps between two choices of b. schedule: of the ramp; a name ("cubic", "linear", "geometric",
            "inverse_geometric", "constant") or a function step -> sparsity.
        curve: learning-rate curve over all steps, fine-tuning included ("constant", "cosine", "linear", "step" or callable).
        rewind_state: state_dict of the plain or sparsified model to train from, usually as initialised; None trains the
            weights that the model has.
        projection: pattern and allocation of the last masks; global and unstructured by default.

    Metrics: loss, flips and regrown (mask entries that changed; masks do not before the last step of u), reached while u is
    trained (fraction of the weights that the thresholds have made zero after the step, before any projection: in the last
    of these steps, how far the run missed ``sparsity``), and with a ramp target (what it asked for).

    Raises:
        ValueError, TypeError: arguments out of range or of a wrong kind; nothing to prune; DTensors; a step after somebody
            else has changed the weights.

    Between steps the model's weights hold w, so it may be evaluated, saved or finalized at any time. After the last step of
    u the masks keep exactly the budget: where the thresholds left too many, those with the largest |w|; where too few, also
    the next ones by |u| - sigmoid(s_l), whose weights are then zero until fine-tuning moves them. Pruned theta: zero, then
    moved by weight decay and momentum of the fine-tuning alone; it is never used.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        sparsity: float,
        *,
        optimizer: OptimizerFactory,
        steps: int,
        first: float = -3200.0,
        scope: str = "layer",
        finetune_steps: int = 0,
        ramp: float | None = None,
        every: int = 1,
        schedule: str | Schedule = "cubic",
        curve: str | Curve = "cosine",
        rewind_state: Mapping[str, Any] | None = None,
        projection: Projection | None = None,
    ) -> None:
        self.first = checked_number("STR", "first", first, -math.inf)
        if scope not in SCOPES:
            raise ValueError(f"STR: scope: expected one of {', '.join(SCOPES)}, got {scope!r}")
        self.scope = scope
        plan = as_ramp("STR", sparsity, schedule, steps, every, 1.0 if ramp is None else ramp, beyond=True)
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
            projects_last=True,
        )

    @property
    def thresholds(self) -> dict[str, Tensor]:
        """sigmoid(s_l + b) by layer name: 0-d, detached."""
        return {name: torch.sigmoid(self._level(name)) for name in self.layers}

    def _leaf(self, weight: Tensor) -> Tensor:
        return weight.clone()

    def _make_leaves(self) -> None:
        super()._make_leaves()
        weight = next(iter(self.weights.values()))
        dtype = torch.promote_types(weight.dtype, torch.float32)
        count = len(self.layers) if self.scope == "layer" else 1
        self._places = {name: i % count for i, name in enumerate(self.layers)}
        self._s = nn.Parameter(torch.full((count,), self.first, dtype=dtype, device=weight.device))
        self._shift = torch.zeros((), dtype=dtype, device=weight.device)

    def _extra(self) -> list[nn.Parameter]:
        return [self._s]

    def _level(self, name: str) -> Tensor:
        """s_l + b."""
        return self._s.detach()[self._places[name]] + self._shift

    def _effective(self, name: str) -> Tensor:
        return soft_threshold(self._leaves[name].detach(), self._level(name))

    def _pull_back(self, gradients: dict[str, Tensor]) -> None:
        total = torch.zeros_like(self._s)
        for name, dw in gradients.items():
            leaf = self._leaves[name]
            leaf.grad, ds = soft_threshold_gradients(leaf.detach(), self._level(name), dw)
            total[self._places[name]] += ds
        self._s.grad = total

    @torch.no_grad()
    def _climb(self, target: float) -> dict[str, Tensor]:
        """Shift all thresholds to where they make the target's number of weights zero."""
        with self.cost.selection():
            s = self._s.detach()
            crossings = [crossing(leaf, s[self._places[name]]).reshape(-1) for name, leaf in self._leaves.items()]
            joined = torch.cat(crossings).to(s.dtype)
            zero = joined.numel() - kept_count(joined.numel(), target)
            # Just below the first |u| that stays, rounding may decide over one weight; the last projection counts again.
            self._shift.copy_(joined.kthvalue(zero).values if zero else torch.full_like(self._shift, -math.inf))
        self._write()
        return {}

    def _scores(self) -> tuple[dict[str, Tensor], Key]:
        if not isinstance(self.projection.pattern, Unstructured):
            return self.weights, "magnitude"
        return {n: threshold_margin(leaf.detach(), self._level(n)) for n, leaf in self._leaves.items()}, "value"

    def _train_on(self, drawn: list[Any]) -> dict[str, Tensor]:
        values = super()._train_on(drawn)
        if not self._on_leaves:
            return values
        zeros = torch.stack([(w == 0).sum() for w in self.weights.values()]).sum()
        return values | {"reached": zeros.double() / sum(w.numel() for w in self.weights.values())}

    def _trained(self) -> dict[str, Tensor]:
        # Names of modules have dots for slashes, so these are nobody's.
        return super()._trained() | {"thresholds/s": self._s.detach(), "thresholds/shift": self._shift}

    def _config(self) -> dict[str, Any]:
        return super()._config() | {"first": self.first, "scope": self.scope}
