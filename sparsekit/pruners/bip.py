# SPDX-License-Identifier: Apache-2.0
"""BiP: bi-level pruning (Zhang et al., NeurIPS 2022).

    upper:  min over masks m with exactly the budget of ones   l(m * theta*(m))
    lower:  theta*(m) = argmin over theta                      l(m * theta) + gamma/2 |theta|^2

With z = m * theta and h = dl/dz (for every entry, kept or not), one iteration is

    lower (A3)   theta <- theta - alpha * m * h                        on one batch, mask fixed
    upper (A4)   s <- s - beta * sign(s) * (theta*h - (1/gamma) m*h^2) on another batch, at the new theta
    (A5)         m <- the budget's largest |s|

The second term of the upper step is the implicit gradient through theta*(m), with the Hessian of l in z taken as zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit import ops
from sparsekit.allocation import Global
from sparsekit.gradients import Loss
from sparsekit.nn import dense_gradient, prepared_weights
from sparsekit.ops import shards
from sparsekit.projection import Projection
from sparsekit.pruners.base import BasePruner
from sparsekit.pruners.bip_options import BiPOptions, batchnorm_policy, checked_lower, checked_options
from sparsekit.pruners.bip_scores import first_scores, scores_of_masks, tied_gradients, update_scores
from sparsekit.pruners.checks import check_tensors, checked_count, described
from sparsekit.pruners.cost import batch_size
from sparsekit.pruners.learning_rate import Curve, LearningRate, as_curves, curve_text
from sparsekit.pruners.optimizer_state import check_optimizer_state, load_optimizer_state, optimizer_state


class BiP(BasePruner):
    """Bi-level pruning of a pretrained, sparsified model.

    Args:
        model: pretrained and sparsified; its weights are theta.
        loss: (model, batch) -> scalar.
        sparsity: final fraction removed, in [0, 1).
        steps: iterations; each pulls ``options.lower_steps`` batches and, with two passes, ``options.upper_batches`` more for
            its upper step.
        lower: optimizer over the model's parameters, among them every masked weight; its learning rate follows
            ``lower_curve`` and is left where that ends (alpha is its learning rate; the paper uses SGD, 0.01, momentum 0.9).
        upper_lr: beta, learning rate of the scores.
        gamma: strength of the lower regulariser, > 0; ``math.inf`` drops the implicit gradient (the Hydra gradient).
        projection: pattern and allocation; global and unstructured by default (variant "released" floors the count).
        schedule: iteration -> sparsity during the run; constant by default. The last iteration always ends at ``sparsity``.
        lower_curve, upper_curve: learning-rate curves over the run ("constant", "cosine", "linear", "step" or callable).
        options: what the paper leaves open or does otherwise, see BiPOptions.

    Raises:
        ValueError, TypeError: arguments out of range or of a wrong kind; nothing to prune.

    Pruned theta: unchanged by the gradient (it is masked); weight decay and momentum of ``lower`` still act on it unless
    ``sparsekit.guard_`` protects it. The scores start as a copy of theta, so the first mask is that of global magnitude
    (unless ``options.start`` is "masks").

    Metrics: loss_lower, flips and regrown (mask entries that changed or came back), and loss_upper of an upper step.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        sparsity: float,
        *,
        steps: int,
        lower: torch.optim.Optimizer,
        upper_lr: float = 0.1,
        gamma: float = 1.0,
        projection: Projection | None = None,
        schedule: Callable[[int], float] | None = None,
        lower_curve: str | Curve = "cosine",
        upper_curve: str | Curve = "step",
        options: BiPOptions | None = None,
    ) -> None:
        if projection is None and options is not None and options.variant == "released":
            projection = Projection(allocation=Global(rounding="floor"))
        super().__init__(model, loss, sparsity, projection)
        self.steps = checked_count("BiP", "steps", steps)
        if not (schedule is None or callable(schedule)):
            raise TypeError(f"BiP: schedule: expected a callable iteration -> sparsity, got {schedule!r}")
        self.options = checked_options(options or BiPOptions(), upper_lr, gamma, lower)
        self.gamma, self._upper_lr = float(gamma), float(upper_lr)
        self.lower = checked_lower(lower, self._parameters())
        curves = as_curves("BiP", lower_curve=lower_curve, upper_curve=upper_curve)
        self._functions = described(schedule=schedule) | {name: curve_text(curve) for name, curve in curves.items()}
        self.schedule = schedule or (lambda step: sparsity)
        self.scores = self._initial_scores()
        self.upper = torch.optim.SGD(
            list(self.scores.values()),
            lr=float(upper_lr),
            momentum=self.options.upper_momentum,
            weight_decay=self.options.upper_weight_decay,
        )
        self._rates = LearningRate(lower, curves["lower_curve"]), LearningRate(self.upper, curves["upper_curve"])
        if not self._unfit:
            self._project(self.scores_for_ranking(), self.schedule(0), self.options.key)

    def _initial_scores(self) -> dict[str, Tensor]:
        """Trainable scores: theta itself when tied, else a copy, or what reproduces the present masks."""
        self._unfit = ""
        if self.options.tied:
            return dict(self._parameters())
        magnitude = self.options.start == "magnitude"
        start = first_scores(self.weights, self.options.key) if magnitude else self._scores_of_masks()
        return {name: s.requires_grad_() for name, s in start.items()}

    def _scores_of_masks(self) -> dict[str, Tensor]:
        sparsity, key, before = self.schedule(0), self.options.key, self.masks
        budget = self.projection.budget({name: tuple(w.shape) for name, w in self.weights.items()}, sparsity)
        start = scores_of_masks(self.layers, self.projection.pattern, key, isinstance(budget, int))
        projected = self.ranks.project(self.projection, start, sparsity, key).masks
        if all(torch.equal(shards.gathered(projected[n].words), before[n].words) for n in before):
            return start
        expected = f"masks that a projection to sparsity {sparsity} can give"
        self._unfit = f"BiP: start: expected {expected}, got {before.count():,} of {before.numel:,} kept"
        if before.count() < before.numel:
            raise ValueError(self._unfit)
        # Full masks are those of a model whose state has yet to be loaded, which an interrupted run goes on from.
        return first_scores(self.weights, key)

    def scores_for_ranking(self) -> dict[str, Tensor]:
        """Live scores, detached: layer name -> tensor of the weight's shape."""
        return {name: s.detach() for name, s in self.scores.items()}

    @property
    def done(self) -> bool:
        return self._step >= self.steps

    def _advance(self, batches: Iterator[Any]) -> dict[str, Tensor]:
        drawn, target = self._prepare(batches)
        if target is None:
            values = self._on_device("lower", None, drawn, self._lower_steps)
            none = torch.zeros((), dtype=torch.int64, device=values["loss_lower"].device)
            return values | {"flips": none, "regrown": none.clone()}
        (group,) = self.upper.param_groups
        values = self._on_device("both", group["lr"], drawn, self._both_steps)
        return values | self._project(self.scores_for_ranking(), target, self.options.key)

    def _prepare(self, batches: Iterator[Any]) -> tuple[list[Any], float | None]:
        """What the host does before an iteration: sets the rates, draws the batches, looks up the sparsity it ends with.

        The sparsity is None where the iteration has no upper step.
        """
        if self._unfit:
            raise ValueError(self._unfit)
        for rate in self._rates:
            rate.set(self._step / self.steps)
        last = self._step + 1 == self.steps
        upper = last or (self._step + 1) % self.options.upper_every == 0
        # Drawn before anything changes, so that a step without its batches can be repeated.
        more = self.options.upper_batches if upper and self.options.passes == 2 else 0
        drawn = self._draw(batches, self.options.lower_steps + more)
        if not upper:
            return drawn, None
        return drawn, self.sparsity if last else self.schedule(self._step + 1)

    def _lower_steps(self, drawn: list[Any]) -> dict[str, Tensor]:
        return {"loss_lower": [self._train_step(self.lower, batch) for batch in drawn][-1]}

    def _both_steps(self, drawn: list[Any]) -> dict[str, Tensor]:
        """The steps of both levels, which a GPU does without the host; the projection follows."""
        if self.options.passes == 1:
            lower_loss = upper_loss = self._both_levels(drawn[0])
        else:
            count = self.options.lower_steps
            lower_loss = self._lower_steps(drawn[:count])["loss_lower"]
            upper_loss, h = self._upper_passes(drawn[count:])
            self._update_scores(h)
        return {"loss_lower": lower_loss, "loss_upper": upper_loss}

    def _upper_passes(self, batches: list[Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss and h = dl/dz over the batches at the present theta and mask, dense; a pass for each of them."""
        losses, total = list[Tensor](), dict[str, Tensor]()
        for batch in batches:
            with batchnorm_policy(self.model, self.options.upper_batchnorm):
                h = self._dense_gradients(batch)
            losses.append(self._loss_value)
            total = {name: total[name] + part for name, part in h.items()} if total else h
        if len(batches) == 1:
            return losses[0], total
        return torch.stack(losses).mean(), {name: part / len(batches) for name, part in total.items()}

    def _both_levels(self, batch: Any) -> Tensor:
        """One dense h for both levels, both at the theta before the step; the lower one takes m * h of it."""
        self.lower.zero_grad(set_to_none=True)
        with dense_gradient(self.model), prepared_weights(self.model):
            self._evaluate(self.model, batch).backward()
        self.cost.count_pass(batch_size(batch))
        h = {n: torch.zeros_like(w) if w.grad is None else w.grad for n, w in self._parameters().items()}
        words = [layer.mask_words for layer in self.layers.values()]
        masked = ops.mask_weights([h[name] for name in self.layers], words)
        # Tied scores move with theta, so their gradient has to be kept until the lower step is done.
        released, tied = self.options.variant == "released", self.options.tied
        gradients = tied_gradients(self.layers, h, self.gamma, released) if tied else self._update_scores(h)
        for layer, gradient in zip(self.layers.values(), masked, strict=True):
            layer.weight.grad = gradient
        self.lower.step()
        if gradients:
            for name, s in self.scores.items():
                s.grad = gradients[name].to(s.dtype)
            self.upper.step()
            self.upper.zero_grad(set_to_none=True)
        return self._loss_value

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {name: layer.weight for name, layer in self.layers.items()}

    def _update_scores(self, h: Mapping[str, Tensor]) -> None:
        key = "released" if self.options.variant == "released" else self.options.key
        update_scores(self.upper, self.scores, self.layers, h, self.gamma, key)

    def state_dict(self) -> dict[str, Any]:
        """See BasePruner; adds the scores and both optimizers."""
        scores = {} if self.options.tied else {name: s.clone() for name, s in self.scores_for_ranking().items()}
        own = {"scores": scores, "upper": optimizer_state(self.upper), "lower": optimizer_state(self.lower)}
        return super().state_dict() | own

    def _config(self) -> dict[str, Any]:
        own = {"steps": self.steps, "gamma": self.gamma, "upper_lr": self._upper_lr, "options": asdict(self.options)}
        return super()._config() | own | self._functions

    def _check_state(self, where: str, state: Any) -> None:
        super()._check_state(where, state)
        check_tensors(f"{where}: scores", state["scores"], {} if self.options.tied else self.scores)
        for optimizer, key in ((self.upper, "upper"), (self.lower, "lower")):
            check_optimizer_state(optimizer, state[key])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See BasePruner."""
        super().load_state_dict(state)
        self._unfit = ""
        with torch.no_grad():
            for name, value in state["scores"].items():
                self.scores[name].copy_(value)
        load_optimizer_state(self.upper, state["upper"])
        load_optimizer_state(self.lower, state["lower"])
