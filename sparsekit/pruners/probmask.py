# SPDX-License-Identifier: Apache-2.0
"""ProbMask: masks drawn with learned probabilities (Zhou, Zhang, Xu, Zhang, CVPR 2021).

    min over theta and p    E[ l(m * theta) ],   m_i ~ Bernoulli(p_i),   sum p <= K,   0 <= p <= 1

In every step, with soft samples m = sigmoid(T (log p - log(1 - p) + noise)), z = m * theta, dz = dl/dz, and means over samples,

    theta <- by the user's optimizer from   m * dz
    p     <- by Adam from                   theta * dz * dm/dp,   then the nearest point with sum p <= K_t, 0 <= p <= 1

K_t falls along a cubic ramp and T rises, so that at the end most p are 0 or 1. The masks keep the largest p.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.gradients import Loss, check_reached
from sparsekit.nn import effective_weights
from sparsekit.ops import replicas
from sparsekit.patterns import Unstructured
from sparsekit.probabilities import logistic_noise, onto_budget, soft_mask
from sparsekit.projection import Projection
from sparsekit.pruners.checks import check_plain, checked_count, checked_number, checked_share
from sparsekit.pruners.cost import batch_size
from sparsekit.pruners.learned import LearnedPruner, score_dtype
from sparsekit.pruners.learning_rate import Curve, as_curve
from sparsekit.pruners.optimizer_state import OptimizerFactory
from sparsekit.pruners.phases import Phase, beginning
from sparsekit.pruners.ramp import as_ramp


@dataclass(frozen=True)
class ProbMaskOptions:
    """Constants of the source that are rarely changed.

    samples: masks drawn in a step, >= 1.
    clip: largest norm of the gradients of weights and probabilities together, > 0; ``math.inf`` leaves them.
    warm_up, ramp: fractions of the steps between which K_t falls from n to its end, 0 <= warm_up < ramp <= 1.
    coolest: temperature 1/T at the end of the learning, in (0, 1]; it falls to it from 1, linearly.
    finetune_rate: learning rate of the fine-tuning as a fraction of the optimizer's own, > 0, constant.
    seed: of the noise, >= 0; the same noise on all processes.
    """

    samples: int = 2
    clip: float = 3.0
    warm_up: float = 0.16
    ramp: float = 0.6
    coolest: float = 0.03
    finetune_rate: float = 0.01
    seed: int = 0


def _checked_options(options: ProbMaskOptions) -> ProbMaskOptions:
    """The options, or an error that names the argument; ``warm_up`` and ``ramp`` are the ramp's to check."""
    checked_count("ProbMask", "samples", options.samples)
    checked_count("ProbMask", "seed", options.seed, 0)
    checked_number("ProbMask", "finetune_rate", options.finetune_rate)
    if options.clip != math.inf:
        checked_number("ProbMask", "clip", options.clip)
    checked_share("ProbMask", "coolest", options.coolest)
    return options


class ProbMask(LearnedPruner):
    """Learns weights and probabilities together, then masks by the probabilities and fine-tunes if wanted.

    Args:
        model: sparsified, masks full; as initialised (the source) or trained.
        loss: (model, batch) -> scalar.
        sparsity: final fraction removed, in [0, 1).
        optimizer: list of trainable parameters -> fresh optimizer of the weights, called for either phase.
        steps: steps of learning, each on one batch with ``options.samples`` passes.
        finetune_steps: steps of fine-tuning under the final masks, each on one batch with one pass.
        rewind_state: state_dict of the plain or sparsified model to start from; None starts from what the model has.
        score_lr: of Adam on the probabilities.
        curve, score_curve: learning-rate curves of weights and probabilities ("constant", "cosine", "linear", "step" or
            callable).
        projection: allocation, for single weights; global by default, as the source. With budgets for each layer every layer
            has a sum of its own.
        options: see ProbMaskOptions.

    Metrics: loss (mean over samples), target (sparsity of K_t), expected (sum of all p over the number of weights), flips
    and regrown (0 but for the last step of learning, which sets the masks).

    Raises:
        ValueError, TypeError: arguments out of range or of a wrong kind; nothing to prune; DTensors.

    While it learns, the masks are full and passes use soft samples in their place; the last step of learning sets them to the
    exact number of largest p (ties to the lowest index). The source draws ten masks there and takes the one that is best on
    the training set, whose count is right on average alone. Pruned theta: trained as far as samples let it take part, then
    moved by weight decay of the fine-tuning alone. p starts at 1, where samples are 1 and have no slope, so that all p stay
    equal until the ramp begins. Noise is a function of seed and step. The projection is exact.
    Source's settings: 300 epochs, Adam 6e-3 and SGD 0.1 with cosine, 2 samples, norm 3, ramp from 16 % to 60 %, temperature
    from 1 to 0.03 by epochs (here by steps); 20 epochs of fine-tuning at 1e-3.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        sparsity: float,
        *,
        optimizer: OptimizerFactory,
        steps: int,
        finetune_steps: int = 0,
        rewind_state: Mapping[str, Any] | None = None,
        score_lr: float = 6e-3,
        curve: str | Curve = "cosine",
        score_curve: str | Curve = "cosine",
        projection: Projection | None = None,
        options: ProbMaskOptions | None = None,
    ) -> None:
        checked_count("ProbMask", "steps", steps)
        checked_count("ProbMask", "finetune_steps", finetune_steps, 0)
        self.options = own = _checked_options(options or ProbMaskOptions())
        self._score_lr = checked_number("ProbMask", "score_lr", score_lr)
        self.ramp = as_ramp("ProbMask", sparsity, "cubic", steps, 1, own.ramp, beyond=True, start=own.warm_up)
        _check_projection(projection)
        rewind, states = beginning(rewind_state)
        learning = Phase(steps, as_curve("ProbMask", "curve", curve), rewind=rewind)
        super().__init__(
            model,
            loss,
            sparsity,
            projection,
            (learning, Phase(finetune_steps, lambda _: own.finetune_rate)),
            optimizer,
            learner=lambda learned: torch.optim.Adam(learned, lr=self._score_lr),
            score_curve=score_curve,
            states=states,
        )
        self.ranks.alike("arguments", lambda: None, **asdict(own))

    def _first_scores(self) -> dict[str, Tensor]:
        check_plain("ProbMask", self.model)
        return {name: torch.ones_like(w, dtype=score_dtype(w)) for name, w in self.weights.items()}

    @property
    def probabilities(self) -> dict[str, Tensor]:
        """Live p, detached: layer name -> tensor of the weight's shape, in [0, 1]."""
        return {name: p.detach() for name, p in self.scores.items()}

    @property
    def target(self) -> float:
        return self.ramp.latest(self._step) if self.learning else self.sparsity

    def _inputs(self) -> list[Any]:
        cooled = self._step / self.ends[0]
        coolest = self.options.coolest
        sharpness = 1 / ((1 - coolest) * (1 - cooled) + coolest)
        mixed = hashlib.sha256(f"{self.options.seed} {self._step}".encode()).digest()
        first = next(iter(self.scores.values()))
        generator = torch.Generator(first.device).manual_seed(int.from_bytes(mixed[:8], "big") >> 1)
        noise = [
            [logistic_noise(p, generator) for p in self.probabilities.values()] for _ in range(self.options.samples)
        ]
        return [torch.full((), sharpness, dtype=first.dtype, device=first.device), noise]

    def _gradients(self, drawn: list[Any]) -> list[Tensor]:
        assert self._optimizer is not None
        batch, sharpness, noise = drawn
        self._optimizer.zero_grad(set_to_none=True)
        others = self._others()
        samples = [self._sampled(batch, sharpness, own, others) for own in noise]
        self._loss_value = torch.stack([loss for loss, _ in samples]).mean()
        means = [torch.stack(own).mean(0) for own in zip(*(found for _, found in samples), strict=True)]
        # All of them together, as the source clips; a norm below the bound leaves the bits alone.
        norm = torch.nn.utils.get_total_norm(means)
        means = [g * (self.options.clip / (norm + 1e-6)).clamp(max=1) for g in means]
        weights = [layer.weight for layer in self.layers.values()]
        for p, gradient in zip([*weights, *others], means[len(weights) :], strict=True):
            p.grad = gradient.to(p.dtype)
        self._optimizer.step()
        return means[: len(weights)]

    def _others(self) -> list[nn.Parameter]:
        """Trainable parameters without a mask."""
        masked = {id(layer.weight) for layer in self.layers.values()}
        return [p for p in self.model.parameters() if p.requires_grad and id(p) not in masked]

    def _sampled(
        self, batch: Any, sharpness: Tensor, noise: list[Tensor], others: list[nn.Parameter]
    ) -> tuple[Tensor, list[Tensor]]:
        """The loss under one sample of masks, and its gradients by p, by theta and by the other parameters."""
        theta = self.weights
        soft = {n: soft_mask(p, own, sharpness) for (n, p), own in zip(self.probabilities.items(), noise, strict=True)}
        z = {n: (soft[n][0] * w).to(w.dtype).requires_grad_() for n, w in theta.items()}
        with torch.enable_grad(), effective_weights(self.model, z), replicas.local_gradients(self.model):
            value = self._evaluate(self.model, batch)
            found = torch.autograd.grad(value, [*z.values(), *others], allow_unused=True)
        check_reached("ProbMask", value, found[: len(z)])
        self.cost.count_pass(batch_size(batch))
        wanted = [*z.values(), *others]
        found = [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True)]
        # Averaged before they meet p and theta, so that all processes have the bits that one would have.
        found = replicas.averages(found, self.ranks.group)
        dz = dict(zip(z, found, strict=False))
        by_p = [soft[n][1] * theta[n] * g for n, g in dz.items()]
        by_theta = [soft[n][0] * g for n, g in dz.items()]
        return self._loss_value, [*by_p, *by_theta, *found[len(z) :]]

    @torch.no_grad()
    def _after(self) -> dict[str, Tensor]:
        broken = torch.stack([p.isnan().any() for p in self.scores.values()]).any()
        self._check(broken, "ProbMask: scores: expected numbers, got NaN")
        with self.cost.selection():
            self._fit_budget()
        total = torch.stack([p.sum(dtype=torch.float64) for p in self.scores.values()]).sum()
        values = {"expected": total / sum(p.numel() for p in self.scores.values())}
        return values | (self._project(self.probabilities, self.sparsity, "value") if self.last_of_learning else {})

    def _fit_budget(self) -> None:
        shapes = {name: tuple(p.shape) for name, p in self.scores.items()}
        budget = self.projection.budget(shapes, self.target)
        if isinstance(budget, int):
            fitting = onto_budget(list(self.scores.values()), budget)
        else:
            fitting = [onto_budget([p], budget[name])[0] for name, p in self.scores.items()]
        for p, value in zip(self.scores.values(), fitting, strict=True):
            p.copy_(value)

    def _config(self) -> dict[str, Any]:
        return super()._config() | {"score_lr": self._score_lr, "options": asdict(self.options)} | self.ramp.described()


def _check_projection(projection: Projection | None) -> None:
    """Raise ValueError for what has no probabilities of single weights, or no budget beforehand."""
    if not isinstance(projection, Projection):
        return
    if not isinstance(projection.pattern, Unstructured) or projection.group is not None:
        raise ValueError(f"ProbMask: projection: expected single weights and no group, got {projection!r}")
