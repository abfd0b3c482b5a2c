# SPDX-License-Identifier: Apache-2.0
"""Rounds: the state machine of all pruners but BiP, SpODE, Gradual and Iterative, as a sequence of phases.

A phase opens, then trains. Opening is

    m     <- the budget's largest |theta| among the kept weights   (if the phase prunes; a pruned weight never returns)
    theta <- a state captured earlier, or theta as it is           (all parameters and BatchNorm statistics; m stays)
    a fresh optimizer over all trainable parameters                (so no momentum of the phase before)

The first phase opens when the pruner is made, each later one inside the step that begins it. So after the last step of
a phase the model is what that phase made of it, ready to be evaluated, and the next step prunes it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import astuple, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.gradients import Loss
from sparsekit.nn import recalibrate_batchnorm
from sparsekit.patterns import Key
from sparsekit.projection import Projection
from sparsekit.pruners.base import BasePruner
from sparsekit.pruners.checks import check_full, check_keys, checked_count
from sparsekit.pruners.learning_rate import LearningRate, curve_text
from sparsekit.pruners.metrics import Metrics, warn_of_collapse
from sparsekit.pruners.optimizer_state import (
    OptimizerFactory,
    fresh_optimizer,
    load_optimizer_state,
    optimizer_state,
    trainable,
)
from sparsekit.pruners.phases import Phase
from sparsekit.pruners.remaining import remaining_magnitudes
from sparsekit.pruners.states import captured, checked_state, restore


class RoundPruner(BasePruner):
    """The machine; IMP, OMP, OneShotMagnitude, RandomPruning and the criteria give it their phases, GMP, DPF, WoodFisher
    one with a ramp, RigL and SET one with rewirings, STR and Powerprop one on other leaves, and the pruners of ``learned``
    one in which they learn.

    waits: does the first phase open in the first step, with batches of it, and not when the pruner is made?

    Args:
        model, loss, sparsity, projection: as of every pruner; the masks must be full.
        phases: in order; at least one.
        optimizer: list of trainable parameters -> fresh optimizer; None where no phase trains.
        states: states to rewind to that are known beforehand, by name.
        captures: step -> name of the state to capture after so many steps.

    Attributes:
        ends: steps taken at the end of each phase.
    """

    waits = False

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        sparsity: float,
        projection: Projection | None,
        phases: tuple[Phase, ...],
        optimizer: OptimizerFactory | None,
        states: Mapping[str, Any] | None = None,
        captures: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__(model, loss, sparsity, projection)
        if not callable(optimizer) and any(phase.trains for phase in phases):
            raise TypeError(f"{self.name}: optimizer: expected a callable (parameters) -> optimizer, got {optimizer!r}")
        self._check_masks()
        self.phases = phases
        self.ends = tuple(accumulate(phase.steps for phase in phases))
        self._factory = optimizer
        self._states = {
            name: checked_state(f"{self.name}: rewind_state", model, state) for name, state in (states or {}).items()
        }
        self._captures = dict(captures or {})
        self._optimizer: torch.optim.Optimizer | None = None
        self._opened = -1
        self._capture(0)
        if not self.waits:
            self._open(0, [])
        if self.done:
            # No step will follow whose metrics could tell.
            Metrics({}, self._problems).read()
            warn_of_collapse(self.name, self.layers)

    def _check_masks(self) -> None:
        check_full(self.name, self.masks)

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.ends[-1]

    @property
    def done(self) -> bool:
        return self._step >= self.steps

    @property
    def round(self) -> int:
        """Prunings so far; 0 during dense training."""
        return sum(phase.sparsity is not None for phase in self.phases[: self._opened + 1])

    def _advance(self, batches: Iterator[Any]) -> dict[str, Tensor]:
        index = bisect_right(self.ends, self._step)
        phase = self.phases[index]
        # Drawn before anything changes, so that a step without a batch leaves the run as it was.
        drawn = self._draw(batches, self._wanted(index))
        moved = self._begin(index, drawn)
        values: dict[str, Tensor] = {}
        if phase.recalibrate:
            recalibrate_batchnorm(self.model, drawn)
        elif phase.trains:
            assert self._optimizer is not None
            position = phase.behind + self._step - (self.ends[index] - phase.steps)
            self._rate.set(position / (phase.behind + phase.steps))
            values = self._work(index, drawn)
        self._capture(self._step + 1)
        unmoved = {"flips": self._number(0), "regrown": self._number(0)}
        return {**unmoved, **values, **self._progress(), **moved}

    def _wanted(self, index: int) -> int:
        """Batches that a step of phase ``index`` draws."""
        return self.phases[index].recalibrate or 1

    def _begin(self, index: int, drawn: list[Any]) -> dict[str, Tensor]:
        """What a step of phase ``index`` does to the masks before it trains; returns how many entries moved."""
        return self._open(index, drawn) if index != self._opened else {}

    def _progress(self) -> dict[str, Tensor]:
        """Metrics that say how far the run is."""
        return {"round": self._number(self.round)}

    def _work(self, index: int, drawn: list[Any]) -> dict[str, Tensor]:
        """What a step of phase ``index`` does with its batch: it trains."""
        return self._on_device(f"phase {index}", None, drawn, self._train_on)

    def _train_on(self, drawn: list[Any]) -> dict[str, Tensor]:
        assert self._optimizer is not None
        return {"loss": self._train_step(self._optimizer, drawn[0])}

    def _number(self, value: float, dtype: torch.dtype = torch.int64) -> Tensor:
        """A metric that the host knows, on the model's device."""
        return torch.full((), value, dtype=dtype, device=next(iter(self.layers.values())).weight.device)

    def _open(self, index: int, drawn: list[Any]) -> dict[str, Tensor]:
        """Begin a phase: prune, rewind, fresh optimizer. Returns how many mask entries moved, if it prunes."""
        phase = self.phases[index]
        moved = self._prune(phase.sparsity, drawn) if phase.sparsity is not None else {}
        if phase.rewind is not None:
            restore(self.model, self._states[phase.rewind])
        self._opened = index
        if phase.trains:
            self._optimizer, self._rate = self._fresh_optimizer(phase)
        return moved

    def _prune(self, sparsity: float, drawn: list[Any]) -> dict[str, Tensor]:
        """Prune to ``sparsity``; drawn: the batches of the step that opens the phase, none when the pruner is made."""
        scores, key = self._scores()
        return self._project(scores, sparsity, key)

    def _scores(self) -> tuple[dict[str, Tensor], Key]:
        """What a pruning ranks, and the key to rank by."""
        return remaining_magnitudes(self.layers, self.projection)

    def _trainable(self, phase: Phase) -> list[nn.Parameter]:
        """What the optimizer of a phase trains."""
        return trainable(self.model)

    def _fresh_optimizer(self, phase: Phase) -> tuple[torch.optim.Optimizer, LearningRate]:
        assert self._factory is not None and phase.curve is not None
        optimizer = fresh_optimizer(self.name, self._trainable(phase), self._factory, self._optimizer)
        return optimizer, LearningRate(optimizer, phase.curve)

    def first_optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer of the weights; before they are trained one like it; None where they never are."""
        trained = next((phase for phase in self.phases if phase.trains), None)
        return self._fresh_optimizer(trained)[0] if self._optimizer is None and trained else self._optimizer

    def _capture(self, step: int) -> None:
        if step in self._captures:
            self._states[self._captures[step]] = captured(self.model)

    def _plan(self) -> list[list[Any]]:
        return [list(astuple(replace(phase, curve=None))) for phase in self.phases]

    def state_dict(self) -> dict[str, Any]:
        """See BasePruner; adds the states to rewind to, the optimizer and where in the rounds the run stands."""
        optimizer = self.first_optimizer()
        # What is captured later is there from the start: torch.distributed.checkpoint asks for what there is.
        later = {name: captured(self.model) for name in self._captures.values()}
        own = {"opened": self._opened, "states": later | self._states}
        own["optimizer"] = None if optimizer is None else optimizer_state(optimizer)
        return super().state_dict() | own

    def _config(self) -> dict[str, Any]:
        curves = [None if phase.curve is None else curve_text(phase.curve) for phase in self.phases]
        return super()._config() | {"rounds": self._plan(), "curves": curves}

    def _check_state(self, where: str, state: Any) -> None:
        super()._check_state(where, state)
        opened = checked_count(where, "opened", state["opened"], -1 if self.waits else 0)
        if opened >= len(self.phases):
            raise ValueError(f"{where}: opened: expected one of {len(self.phases)} phases, got {opened}")
        check_keys(f"{where}: states", state["states"], self._states)
        for name, tensors in state["states"].items():
            checked_state(f"{where}: states[{name!r}]", self.model, tensors)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See BasePruner."""
        self._agree_on(state)
        opened, renewed = int(state["opened"]), None
        if opened >= 0 and (phase := self.phases[opened]).trains:
            renewed = self._fresh_optimizer(phase)
            load_optimizer_state(renewed[0], state["optimizer"])
        super().load_state_dict(state)
        where = f"{self.name}: load_state_dict"
        # A stand-in for what is not captured yet is replaced when it is.
        self._states = {n: checked_state(f"{where}: states[{n!r}]", self.model, t) for n, t in state["states"].items()}
        self._opened = opened
        self._optimizer = None
        if renewed:
            self._optimizer, self._rate = renewed
