# SPDX-License-Identifier: Apache-2.0
"""Hydra: which weights of a trained network to keep, learned by scores (Sehwag, Wang, Mittal, Jana, NeurIPS 2020).

The weights theta stay as they are. Every weight has a score s, and in every step, with z = m * theta and h = dl/dz,

    s <- s - beta * (sign(s) * theta * h + weight decay + momentum)      for every entry, kept or not
    m <- the largest |s| of each layer

The mask stands for |s| in the backward pass (straight through), so what is pruned has a gradient and may come back. The
scores start as s = sqrt(6 / fan_in) * theta / max|theta| of each layer. Then the weights are fine-tuned under the last masks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsekit import criteria
from sparsekit.allocation import Uniform
from sparsekit.gradients import Loss
from sparsekit.ops import shards
from sparsekit.projection import Projection
from sparsekit.pruners.checks import checked_count, checked_number
from sparsekit.pruners.learned import LearnedPruner, score_dtype
from sparsekit.pruners.learning_rate import Curve, as_curve
from sparsekit.pruners.optimizer_state import OptimizerFactory
from sparsekit.pruners.phases import Phase

STARTS = ("scaled", "raw")


class Hydra(LearnedPruner):
    """Pruning of a trained, sparsified model by learned scores; its weights do not move until it is fine-tuned.

    Args:
        model: trained and sparsified, masks full.
        loss: (model, batch) -> scalar.
        sparsity: fraction removed, in [0, 1), from the first step on.
        steps: steps of learning scores, each on one batch.
        finetune_steps: steps of fine-tuning all parameters under the last masks, each on one batch.
        optimizer: list of trainable parameters -> fresh optimizer; needed when there are ``finetune_steps``.
        score_lr, score_momentum, score_weight_decay: of the SGD on the scores and on what BatchNorm learns.
        start: "scaled" as above, or "raw": s = theta, so that the first masks are those of magnitude under any allocation.
        score_curve, curve: learning-rate curves of the scores and of the fine-tuning ("constant", "cosine", "linear",
            "step" or callable).
        projection: pattern and allocation; by default single weights, layer by layer alike, as the source has it. The
            comparisons of BiP rank all layers together: ``Projection()``. Filters, channels and blocks go by the L2 norm of
            their scores.

    Metrics: loss, target (``sparsity``), flips and regrown (mask entries that changed or came back).

    Raises:
        ValueError, TypeError: arguments out of range or of a wrong kind; nothing to prune.

    BatchNorm while scores are learned, as in the authors' code: statistics move as in any training, weight and bias of
    BatchNorm are moved by the optimizer of the scores, and every other parameter keeps its bits. Pruned theta: unchanged while
    scores are learned, then moved by weight decay of the fine-tuning alone; it is used again if its score brings it back.
    Source's settings: 20 epochs, SGD 0.1 with cosine, momentum 0.9, weight decay 1e-4, batches of 128; fine-tuning for
    100 epochs at 0.01. Its count is floor((1 - k) n) removed in a layer, here ``kept_count``. A layer of zeros starts with
    scores of 0. Its L1 norms of filters are not public as code; how it chose its epochs is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        sparsity: float,
        *,
        steps: int,
        finetune_steps: int = 0,
        optimizer: OptimizerFactory | None = None,
        score_lr: float = 0.1,
        score_momentum: float = 0.9,
        score_weight_decay: float = 1e-4,
        start: str = "scaled",
        score_curve: str | Curve = "cosine",
        curve: str | Curve = "cosine",
        projection: Projection | None = None,
    ) -> None:
        checked_count("Hydra", "steps", steps)
        checked_count("Hydra", "finetune_steps", finetune_steps, 0)
        if start not in STARTS:
            raise ValueError(f"Hydra: start: expected one of {', '.join(STARTS)}, got {start!r}")
        self.start = start
        rates = {"lr": score_lr, "momentum": score_momentum, "weight_decay": score_weight_decay}
        self._rates = {
            name: checked_number("Hydra", f"score_{name}", value, strict=False) for name, value in rates.items()
        }
        super().__init__(
            model,
            loss,
            sparsity,
            Projection(allocation=Uniform()) if projection is None else projection,
            (Phase(steps, None), Phase(finetune_steps, as_curve("Hydra", "curve", curve))),
            optimizer,
            learner=lambda learned: torch.optim.SGD(learned, **self._rates),  # pyright: ignore[reportArgumentType]
            score_curve=score_curve,
        )
        self._project(self._detached(), self.sparsity)

    def _first_scores(self) -> dict[str, Tensor]:
        return {name: self._first_score(name, w) for name, w in self.weights.items()}

    def _first_score(self, name: str, weight: Tensor) -> Tensor:
        score = weight.to(score_dtype(weight), copy=True)
        whole = shards.gathered(score)
        largest = float(whole.abs().max()) if whole.numel() else 0.0
        if self.start == "raw" or not largest:
            return score
        fan_in = weight.shape[0] if self.layers[name].transposed else whole[0].numel()
        return score.mul_(math.sqrt(6 / fan_in) / largest)

    def _learned_beside(self) -> list[Tensor]:
        norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm)]
        found = {id(p): p for norm in norms for p in norm.parameters() if p.requires_grad}
        return list(found.values())

    def _gradients(self, drawn: list[Any]) -> list[Tensor]:
        h, found = self._dense_pass(drawn[0]), []
        for name, theta in self.weights.items():
            parts = theta, h[name], self.scores[name]
            found.append(shards.on_parts(criteria.hydra, *parts, shape=theta.shape))
        beside = self._learned[len(found) :]
        found += [torch.zeros_like(p) if p.grad is None else p.grad for p in beside]
        for p in self.model.parameters():
            p.grad = None
        return found

    def _after(self) -> dict[str, Tensor]:
        return self._project(self._detached(), self.sparsity)

    def _detached(self) -> dict[str, Tensor]:
        return {name: s.detach() for name, s in self.scores.items()}

    def _config(self) -> dict[str, Any]:
        own = {f"score_{name}": value for name, value in self._rates.items()}
        return super()._config() | own | {"start": self.start}
