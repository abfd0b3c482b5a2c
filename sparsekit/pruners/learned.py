# SPDX-License-Identifier: Apache-2.0
"""The machine of the pruners that learn a number for every weight, and mask by it: Hydra, Movement and ProbMask.

A run is a phase of learning and, if wanted, one of fine-tuning with the masks as they are. A step of the first phase

    1. may set the masks,                                                  (``_before``)
    2. takes gradients by the learned numbers on one batch, on the device, (``_gradients``)
    3. steps the optimizer of the learned numbers,
    4. may project them or set the masks.                                  (``_after``)

Learned numbers start from the weights and are tensors of their own: nothing that moves the one ever moves the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.gradients import Loss, check_requires_grad
from sparsekit.nn import dense_gradient, prepared_weights
from sparsekit.projection import Projection
from sparsekit.pruners.checks import check_tensors
from sparsekit.pruners.cost import batch_size
from sparsekit.pruners.learning_rate import Curve, LearningRate, as_curve
from sparsekit.pruners.optimizer_state import (
    OptimizerFactory,
    check_optimizer_state,
    load_optimizer_state,
    optimizer_state,
)
from sparsekit.pruners.phases import Phase
from sparsekit.pruners.rounds import RoundPruner


class LearnedPruner(RoundPruner):
    """The machine; a pruner adds where its scores start, their gradients and when they become masks.

    Args:
        model, loss, sparsity, projection: as of every pruner; the masks must be full.
        phases: learning, then fine-tuning if wanted.
        optimizer: list of trainable parameters -> fresh optimizer; None where no phase trains the weights.
        learner: list of the learned tensors -> their optimizer.
        score_curve: learning-rate curve of that over the first phase.
        states: states to rewind to, by name.

    Attributes:
        scores: what is learned, layer name -> tensor of the weight's shape, spread as the weight is.
        learner: the optimizer of the scores.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        sparsity: float,
        projection: Projection | None,
        phases: tuple[Phase, ...],
        optimizer: OptimizerFactory | None,
        *,
        learner: Callable[[list[Tensor]], torch.optim.Optimizer],
        score_curve: str | Curve,
        states: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, loss, sparsity, projection, phases, optimizer, states)
        check_requires_grad(self.name, self.layers)
        if self._optimizer is None:
            self.first_optimizer()  # a factory that does not serve is to be known before the learning
        self.scores = {name: s.requires_grad_() for name, s in self._first_scores().items()}
        self._learned = [*self.scores.values(), *self._learned_beside()]
        self.learner = learner(self._learned)
        self._learner_rate = LearningRate(self.learner, as_curve(self.name, "score_curve", score_curve))

    def _first_scores(self) -> dict[str, Tensor]:
        """Where the scores start: tensors that share memory with nothing."""
        raise NotImplementedError

    def _gradients(self, drawn: list[Any]) -> list[Tensor]:
        """Gradients of the loss on ``drawn[0]`` by all that is learned, and whatever else only the device does."""
        raise NotImplementedError

    def _learned_beside(self) -> list[Tensor]:
        """Parameters of the model that the learner moves with the scores."""
        return []

    def _inputs(self) -> list[Any]:
        """What the device needs in this step beside a batch: tensors, which a replayed graph is given anew."""
        return []

    def _before(self) -> dict[str, Tensor]:
        return {}

    def _after(self) -> dict[str, Tensor]:
        return {}

    @property
    def learning(self) -> bool:
        """Is the next step one of the first phase?"""
        return self._step < self.ends[0]

    @property
    def last_of_learning(self) -> bool:
        """Is the step at work the last one of the first phase?"""
        return self._step + 1 == self.ends[0]

    def _advance(self, batches: Iterator[Any]) -> dict[str, Tensor]:
        if not self.learning:
            return super()._advance(batches)
        drawn = self._draw(batches, 1)
        fraction = self._step / self.ends[0]
        self._learner_rate.set(fraction)
        if self._optimizer is not None:
            self._rate.set(fraction)
        moved = {"flips": self._number(0), "regrown": self._number(0), **self._before()}
        found = self._on_device("learn", None, [*drawn, *self._inputs()], self._learn_on)
        for i, value in enumerate(self._learned):
            value.grad = found[f"gradient {i}"].to(value.dtype)
        self.learner.step()
        self.learner.zero_grad(set_to_none=True)
        return {"loss": found["loss"], **self._progress(), **moved, **self._after()}

    def _learn_on(self, drawn: list[Any]) -> dict[str, Tensor]:
        gradients = self._gradients(drawn)
        return {"loss": self._loss_value, **{f"gradient {i}": g for i, g in enumerate(gradients)}}

    def _progress(self) -> dict[str, Tensor]:
        return {"target": self._number(self.target, torch.float64)}

    @property
    def target(self) -> float:
        """Sparsity that the step at work aims at."""
        return self.sparsity

    def _dense_pass(self, batch: Any) -> dict[str, Tensor]:
        """h = dl/dz at the present theta and masks, dense, by layer name; all parameters have their ``.grad``."""
        for p in self.model.parameters():
            p.grad = None
        with dense_gradient(self.model), prepared_weights(self.model):
            self._evaluate(self.model, batch).backward()
        self.cost.count_pass(batch_size(batch))
        weights = {name: layer.weight for name, layer in self.layers.items()}
        return {name: torch.zeros_like(w) if w.grad is None else w.grad for name, w in weights.items()}

    def state_dict(self) -> dict[str, Any]:
        """See RoundPruner; adds the scores and their optimizer."""
        scores = {name: s.detach().clone() for name, s in self.scores.items()}
        return super().state_dict() | {"scores": scores, "learner": optimizer_state(self.learner)}

    def _check_state(self, where: str, state: Any) -> None:
        super()._check_state(where, state)
        check_tensors(f"{where}: scores", state["scores"], self.scores)
        check_optimizer_state(self.learner, state["learner"])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See BasePruner."""
        super().load_state_dict(state)
        with torch.no_grad():
            for name, value in state["scores"].items():
                self.scores[name].copy_(value)
        load_optimizer_state(self.learner, state["learner"])


def score_dtype(weight: Tensor) -> torch.dtype:
    """Of scores: the weight's, but never less than float32, in which small steps still add up."""
    return torch.float32 if weight.dtype.itemsize < 4 else weight.dtype
