# SPDX-License-Identifier: Apache-2.0
"""Iterative: any pruner in rounds, with training in between; the iterative mode of SpODE's paper (Mo et al., ICML 2023).

    for j = 1..R:
        m     <- what a new pruner makes of the present model for the density k^(j/R)
        theta <- some steps of training through m, with a fresh optimizer at a rate of the rounds
    theta <- the last training, with a fresh optimizer at a rate of its own

Both rates are the same whatever prunes. The paper's code gives SpODE others than what it is compared with: 1e-2 in the
rounds and 3e-3 at the end, against 1e-4 and 1e-2.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.gradients import Loss
from sparsekit.mask import Mask
from sparsekit.nn import set_masks
from sparsekit.pruners.base import BasePruner
from sparsekit.pruners.checks import check_full, check_keys, checked_count, checked_sparsity
from sparsekit.pruners.learning_rate import Curve, LearningRate, as_curve
from sparsekit.pruners.metrics import CollapseWarning, moved_entries
from sparsekit.pruners.optimizer_state import (
    OptimizerFactory,
    fresh_optimizer,
    load_optimizer_state,
    optimizer_state,
    trainable,
)
from sparsekit.pruners.states import kept_aside
from sparsekit.schedules import Geometric

PrunerFactory = Callable[[nn.Module, float], BasePruner]


class Iterative(BasePruner):
    """Rounds of pruning and training; a step is one of the round's pruner, or trains on one batch.

    Args:
        model: trained and sparsified, masks full.
        loss: (model, batch) -> scalar, of the training.
        sparsity: fraction removed at the end, in [0, 1).
        pruner: (model, sparsity) -> pruner of that model to that sparsity, a new one for each round, all of one kind. It
            runs to its end; one that is done when it is made takes no step. It meets the masks of the round before, so it
            has to accept partial ones: SpODE, from whose gates weights may come back, OneShotMagnitude without steps, and
            the criteria without steps, which choose among what is kept.
        optimizer: list of trainable parameters -> fresh optimizer, for each training.
        steps_per_round: training steps after each pruning, >= 1.
        rounds: R. Source: 10.
        final_steps: of the last training, after the training of the last round; may be 0.
        final_optimizer: of the last training; by default ``optimizer``.
        curve, final_curve: learning-rate curve of each round and of the last training ("constant", "cosine", "linear", "step"
            or callable).

    Attributes:
        targets: sparsity of each round. round: the one that the run is in, from 1.

    Metrics: round, flips and regrown (mask entries that changed or came back in this step), and the loss and whatever else
    the pruner of the round tells of its own steps.

    Raises:
        ValueError, TypeError: arguments out of range or of a wrong kind; nothing to prune; a factory that makes something else.

    The first round begins here, as do the rounds of IMP, each later one inside the step that begins it. After the pruner
    of a round the masks count what it counts: kept_count(n, target) of single weights. Cost is that of all pruners and
    trainings together. Pruned theta: moved by weight decay alone while training, so that what comes back has the value that
    it was pruned with. Source: 10 rounds of 5 epochs and 90 more, of 140; the rest is SpODE's. Its code counts G of masks
    as density, see SpODEOptions.reproject.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        sparsity: float,
        *,
        pruner: PrunerFactory,
        optimizer: OptimizerFactory,
        steps_per_round: int,
        rounds: int = 10,
        final_steps: int = 0,
        final_optimizer: OptimizerFactory | None = None,
        curve: str | Curve = "cosine",
        final_curve: str | Curve = "cosine",
    ) -> None:
        if not callable(pruner):
            raise TypeError(f"Iterative: pruner: expected a callable (model, sparsity) -> pruner, got {pruner!r}")
        for argument, factory in (("optimizer", optimizer), ("final_optimizer", final_optimizer or optimizer)):
            if not callable(factory):
                expected = "a callable (parameters) -> optimizer"
                raise TypeError(f"Iterative: {argument}: expected {expected}, got {factory!r}")
        self.rounds = checked_count("Iterative", "rounds", rounds)
        self.steps_per_round = checked_count("Iterative", "steps_per_round", steps_per_round)
        self.final_steps = checked_count("Iterative", "final_steps", final_steps, 0)
        self._curves = as_curve("Iterative", "curve", curve), as_curve("Iterative", "final_curve", final_curve)
        super().__init__(model, loss, sparsity)
        check_full("Iterative", self.masks)
        ramp = Geometric(0.0, checked_sparsity("Iterative", sparsity), 0, rounds)
        self.targets = tuple(ramp(j) for j in range(1, rounds + 1))
        self._factory, self._factories = pruner, (optimizer, final_optimizer or optimizer)
        self._optimizer: torch.optim.Optimizer | None = None
        self.round, self._trained = 1, 0
        self._renew(last=False)  # a factory of something else is told before anything is pruned
        self.inner = self._made(1)
        self.cost.absorb(self.inner.cost)

    @property
    def steps(self) -> int:
        """Steps of the whole run, if later rounds have pruners of as many steps as this one's."""
        own = getattr(self.inner, "steps", 0)
        return self.rounds * (own + self.steps_per_round) + self.final_steps

    @property
    def done(self) -> bool:
        return self.round == self.rounds and self.inner.done and self._trained == self._length(self.round)

    def _length(self, number: int) -> int:
        """Training steps after the pruning of a round, those of the last training included."""
        return self.steps_per_round + (self.final_steps if number == self.rounds else 0)

    def _made(self, number: int) -> BasePruner:
        """The pruner of a round; what it may have done to the model on its way is left."""
        target = self.targets[number - 1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CollapseWarning)  # told once, at the end
            inner = self._factory(self.model, target)
        if not isinstance(inner, BasePruner):
            got = type(inner).__name__
            raise TypeError(f"Iterative: pruner: expected a callable (model, sparsity) -> pruner, got one of {got}")
        if inner.model is not self.model or inner.sparsity != target:
            expected = f"a pruner of the model given to the sparsity {target!r}"
            got = "one of another model" if inner.model is not self.model else f"one to {inner.sparsity!r}"
            raise ValueError(f"Iterative: pruner: expected {expected}, got {got}")
        self._problems |= inner._problems
        inner._problems = self._problems
        return inner

    def _advance(self, batches: Iterator[Any]) -> dict[str, Tensor]:
        old = [layer.mask_words.clone() for layer in self.layers.values()]
        if self.inner.done and self._trained == self._length(self.round):
            values = self._next_round(batches)
        else:
            values = self._proceed(batches)
        self.cost.absorb(self.inner.cost)
        new = [layer.mask_words for layer in self.layers.values()]
        moved = moved_entries(old, new)
        return {**values, "round": torch.full_like(moved["flips"], self.round), **moved}

    def _next_round(self, batches: Iterator[Any]) -> dict[str, Tensor]:
        """Make the pruner of the next round, and take the first step of that; an error leaves all as it was."""
        put_back, earlier = kept_aside(self.model), (self.round, self._trained, self.inner, self._optimizer)
        try:
            self.inner, self.round, self._trained = self._made(self.round + 1), self.round + 1, 0
            return self._proceed(batches)
        except BaseException:
            put_back()
            self.round, self._trained, self.inner, self._optimizer = earlier
            raise

    def _proceed(self, batches: Iterator[Any]) -> dict[str, Tensor]:
        """One step of the round's pruner, or of the training after it."""
        if self.inner.done:
            return {"loss": self._train(self._draw(batches, 1)[0])}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CollapseWarning)
            return self.inner.step(batches)

    def _train(self, batch: Any) -> Tensor:
        last = self._trained >= self.steps_per_round
        position = self._trained - (self.steps_per_round if last else 0)
        if position == 0:
            self._renew(last)
        assert self._optimizer is not None
        self._rate.set(position / (self.final_steps if last else self.steps_per_round))
        value = self._train_step(self._optimizer, batch)
        self._trained += 1
        return value

    def _renew(self, last: bool) -> torch.optim.Optimizer:
        """The optimizer of a training that begins."""
        optimizer = fresh_optimizer("Iterative", trainable(self.model), self._factories[last], self._optimizer)
        self._optimizer, self._rate = optimizer, LearningRate(optimizer, self._curves[last])
        return optimizer

    def _config(self) -> dict[str, Any]:
        own = {"rounds": self.rounds, "steps_per_round": self.steps_per_round, "final_steps": self.final_steps}
        return super()._config() | own

    def state_dict(self) -> dict[str, Any]:
        """See BasePruner; adds where in the rounds the run stands, the state of the round's pruner and the optimizer."""
        optimizer = self._optimizer or fresh_optimizer("Iterative", trainable(self.model), self._factories[0], None)
        own = {"round": self.round, "trained": self._trained, "inner": self.inner.state_dict()}
        return super().state_dict() | own | {"optimizer": optimizer_state(optimizer)}

    def _check_state(self, where: str, state: Any) -> None:
        super()._check_state(where, state)
        number = checked_count(where, "round", state["round"], 1, self.rounds)
        checked_count(where, "trained", state["trained"], 0, self._length(number))
        check_keys(f"{where}: inner", state["inner"], ())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See BasePruner."""
        self._agree_on(state)
        number, trained, where = int(state["round"]), int(state["trained"]), "Iterative: load_state_dict"
        inner = self._made_anew(number)
        self.ranks.alike("load_state_dict", lambda: inner._check_state(where, state["inner"]))
        earlier, self._optimizer = self._optimizer, None
        try:
            if trained:
                load_optimizer_state(self._renew(trained > self.steps_per_round), state["optimizer"])
            inner.load_state_dict(state["inner"])
        except BaseException:
            self._optimizer = earlier
            raise
        super().load_state_dict(state)
        self.inner, self.round, self._trained = inner, number, trained

    def _made_anew(self, number: int) -> BasePruner:
        """A pruner of the round to take a state over; it finds full masks, for nobody knows what was loaded so far."""
        put_back = kept_aside(self.model)
        try:
            set_masks(self.model, {name: Mask.full(mask.shape, mask.words.device) for name, mask in self.masks.items()})
            return self._made(number)
        finally:
            put_back()
