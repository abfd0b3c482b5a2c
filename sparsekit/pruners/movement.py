# SPDX-License-Identifier: Apache-2.0
"""Movement pruning: keep the weights that training moves away from zero (Sanh, Wolf, Rush, NeurIPS 2020).

Every weight has a score S, which starts at 0. In every step, with z = m * theta and h = dl/dz,

    m     <- the largest S of each layer, (1 - s_t) n of them     s_t cubic, 0 at first
    S     <- S - alpha_S * theta * h                              for every entry, kept or not
    theta <- theta - alpha * m * h                                by the user's optimizer

so S = -sum alpha_S * theta * h: it rises where a step of descent makes |theta| larger, and falls where it makes it smaller.
One forward and backward pass gives h for both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsekit import criteria, ops
from sparsekit.allocation import Uniform
from sparsekit.gradients import Loss
from sparsekit.projection import Projection
from sparsekit.pruners.checks import checked_count, checked_number
from sparsekit.pruners.learned import LearnedPruner, score_dtype
from sparsekit.pruners.learning_rate import Curve, as_curve
from sparsekit.pruners.optimizer_state import OptimizerFactory
from sparsekit.pruners.phases import Phase
from sparsekit.pruners.ramp import as_ramp, check_pattern
from sparsekit.schedules import Schedule


class Movement(LearnedPruner):
    """Hard movement pruning while the weights train; each step chooses the masks, then trains on one batch.

    Args:
        model: sparsified, masks full; usually trained, as the source fine-tunes.
        loss: (model, batch) -> scalar.
        sparsity: final fraction removed, in [0, 1).
        optimizer: list of trainable parameters -> fresh optimizer of the weights; there is one for the whole run.
        steps: training steps, each on one batch.
        score_lr: alpha_S, > 0. As scores start at 0 and only their order counts, it matters by its curve alone.
        warm_up: fraction of the steps in which nothing is pruned while scores gather.
        ramp: fraction of the steps after which ``sparsity`` is reached, in (warm_up, 1]; masks go on changing afterwards.
        schedule: a name ("cubic", "linear", "geometric", "inverse_geometric", "constant") or a function step -> sparsity
            that ends at ``sparsity``.
        curve, score_curve: learning-rate curves of weights and scores ("constant", "cosine", "linear", "step" or callable).
        projection: pattern and allocation; by default single weights, layer by layer alike, as the source's code has it.
            Filters, channels and blocks go by the sums of their scores.

    Metrics: loss, target (sparsity of the masks that the step trained with), flips and regrown (mask entries that changed or
    came back).

    Raises:
        ValueError, TypeError: arguments out of range or of a wrong kind; nothing to prune.

    All scores are 0 at first, and a cut among equal scores would keep the first entries of each layer. Nothing is cut then:
    the ramp leaves 0 after the warm-up, when scores differ; of its source's 10 epochs the first one keeps everything and the
    last two keep the final count, hence 0.1 and 0.8. Weights without any gradient keep S = 0 and so outrank those that shrank.
    Pruned theta: unchanged by the gradient (it is masked), moved by weight decay and momentum of the optimizer; its score goes
    on. The source's equation is plain descent on S, which this is; its code uses AdamW at 1e-2 for S. Its soft variant, which
    cuts at a threshold and reaches no exact count, is not here.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        sparsity: float,
        *,
        optimizer: OptimizerFactory,
        steps: int,
        score_lr: float = 1e-2,
        warm_up: float = 0.1,
        ramp: float = 0.8,
        schedule: str | Schedule = "cubic",
        curve: str | Curve = "cosine",
        score_curve: str | Curve = "constant",
        projection: Projection | None = None,
    ) -> None:
        checked_count("Movement", "steps", steps)
        self._score_lr = checked_number("Movement", "score_lr", score_lr)
        self.ramp = as_ramp("Movement", sparsity, schedule, steps, 1, ramp, beyond=True, start=warm_up)
        check_pattern(self.ramp, projection)
        super().__init__(
            model,
            loss,
            sparsity,
            Projection(allocation=Uniform()) if projection is None else projection,
            (Phase(steps, as_curve("Movement", "curve", curve)),),
            optimizer,
            learner=lambda learned: torch.optim.SGD(learned, lr=self._score_lr),
            score_curve=score_curve,
        )

    def _first_scores(self) -> dict[str, Tensor]:
        return {name: torch.zeros_like(w, dtype=score_dtype(w)) for name, w in self.weights.items()}

    @property
    def target(self) -> float:
        return self.ramp.latest(self._step)

    def _before(self) -> dict[str, Tensor]:
        return self._project({name: s.detach() for name, s in self.scores.items()}, self.target, "value")

    def _gradients(self, drawn: list[Any]) -> list[Tensor]:
        assert self._optimizer is not None
        h = self._dense_pass(drawn[0])
        # Of the theta that the loss was taken at, before the optimizer moves it.
        found = [criteria.gate_gradient(theta, h[name]) for name, theta in self.weights.items()]
        words = [layer.mask_words for layer in self.layers.values()]
        masked = ops.mask_weights([h[name] for name in self.layers], words)
        for layer, gradient in zip(self.layers.values(), masked, strict=True):
            layer.weight.grad = gradient
        self._optimizer.step()
        return found

    def _config(self) -> dict[str, Any]:
        return super()._config() | {"score_lr": self._score_lr} | self.ramp.described()
