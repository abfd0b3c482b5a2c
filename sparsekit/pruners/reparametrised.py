# SPDX-License-Identifier: Apache-2.0
"""Training with weights that are functions of other parameters, the leaves; STR and Powerprop say by which functions.

Between steps the model's own weights hold the effective values w = f(leaf): evaluation, state_dict and finalize see the
network that is trained, at any time. The pruner keeps the leaves beside it. A step is

    dL/dw       of the model as it is, with gradients of BatchNorm and biases as ever
    leaf.grad   <- dL/dw * dw/dleaf
    optimizer   moves the leaves (weight decay and momentum act on them) and all other parameters
    w           <- f(leaf)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.gradients import Loss, check_requires_grad
from sparsekit.nn import masked_layers, prepared_weights
from sparsekit.projection import Projection
from sparsekit.pruners.checks import check_plain, check_tensors, checked_count
from sparsekit.pruners.cost import batch_size
from sparsekit.pruners.learning_rate import Curve, as_curve
from sparsekit.pruners.optimizer_state import OptimizerFactory
from sparsekit.pruners.phases import Phase, beginning
from sparsekit.pruners.ramp import Ramp
from sparsekit.pruners.rounds import RoundPruner


class ReparametrisedPruner(RoundPruner):
    """The machine: ``steps`` of training on leaves, the exact projection, then ``finetune_steps`` on ordinary weights.

    Args:
        model, loss, sparsity, projection: as of every pruner; the masks must be full.
        optimizer: list of parameters -> fresh optimizer; of the leaves in place of the masked weights, with their shapes
            and places in the list, what ``_extra`` adds last, and again of the model's own parameters for fine-tuning.
        steps, finetune_steps, curve: of the training; the learning-rate curve is over all of them.
        rewind_state: state_dict to train from; None trains the weights that the model has.
        ramp: steps with something to do before they train; None for none.
        projects_last: does the training on leaves end with a projection?
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        sparsity: float,
        projection: Projection | None,
        *,
        optimizer: OptimizerFactory,
        steps: int,
        finetune_steps: int,
        curve: str | Curve,
        rewind_state: Mapping[str, Any] | None,
        ramp: Ramp | None,
        projects_last: bool,
    ) -> None:
        name = type(self).__name__
        checked_count(name, "steps", steps)
        checked_count(name, "finetune_steps", finetune_steps, 0)
        rate = as_curve(name, "curve", curve)
        share = steps / (steps + finetune_steps)
        rewind, states = beginning(rewind_state)
        first = Phase(steps, lambda t: rate(t * share), rewind=rewind)
        phases = (first, Phase(finetune_steps, rate, behind=steps)) if finetune_steps else (first,)
        self.ramp, self._projects_last = ramp, projects_last
        self._leaves: dict[str, nn.Parameter] = {}
        check_plain(name, model)
        check_requires_grad(name, masked_layers(model))
        super().__init__(model, loss, sparsity, projection, phases, optimizer, states)

    def _leaf(self, weight: Tensor) -> Tensor:
        """A new leaf of which ``_effective`` makes the weight."""
        raise NotImplementedError

    def _make_leaves(self) -> None:
        """Make everything that is trained in place of, or beside, the model's own parameters."""
        self._leaves = {n: nn.Parameter(self._leaf(w)) for n, w in self.weights.items()}

    def _extra(self) -> list[nn.Parameter]:
        """What is trained beside leaves and model."""
        return []

    def _effective(self, name: str) -> Tensor:
        """f(leaf) of a layer."""
        raise NotImplementedError

    def _pull_back(self, gradients: dict[str, Tensor]) -> None:
        """Put the gradients of the leaves, and of ``_extra``, where the optimizer looks, from those of the weights."""
        raise NotImplementedError

    def _climb(self, target: float) -> dict[str, Tensor]:
        """What a step of the ramp does before it trains; returns how many mask entries moved."""
        raise NotImplementedError

    def _trainable(self, phase: Phase) -> list[nn.Parameter]:
        own = super()._trainable(phase)
        if phase is not self.phases[0]:
            return own
        if not self._leaves:
            self._make_leaves()
            self._write()
        leaves = {id(layer.weight): self._leaves[name] for name, layer in self.layers.items()}
        return [leaves.get(id(p), p) for p in own] + self._extra()

    @torch.no_grad()
    def _write(self) -> None:
        """Have the model's weights hold what the leaves make of them."""
        for name, layer in self.layers.items():
            layer.weight.copy_(self._effective(name))
        self._written = {name: layer.weight._version for name, layer in self.layers.items()}

    def _next(self, batches: Iterator[Any]) -> Any:
        # Here, because what fails on one process while batches are drawn is raised on all.
        if self._on_leaves:
            self._check_weights()
        return super()._next(batches)

    @torch.no_grad()
    def _check_weights(self) -> None:
        """Raise ValueError where somebody else has changed a weight, of which the next step would know nothing.

        Nearly equal is equal, as a run may go on on another device than it began on.
        """
        for name, layer in self.layers.items():
            weight, own = layer.weight, self._effective(name)
            if weight._version == self._written[name]:
                continue
            if not torch.allclose(weight, own, 1e-2, 1e-3 * float(own.abs().max()), equal_nan=True):
                expected = f"weights as the last step left them in `{name}`"
                got = (
                    "others; load weights before the pruner is made, or as rewind_state, or with the pruner's own state"
                )
                raise ValueError(f"{self.name}: model: expected {expected}, got {got}")
            self._written[name] = weight._version

    @property
    def _on_leaves(self) -> bool:
        return self._step < self.ends[0]

    def _advance(self, batches: Iterator[Any]) -> dict[str, Tensor]:
        values = super()._advance(batches)
        if self._step + 1 != self.ends[0] or not self._projects_last:
            return values
        scores, key = self._scores()
        return values | self._project(scores, self.sparsity, key)

    def _begin(self, index: int, drawn: list[Any]) -> dict[str, Tensor]:
        if index != self._opened:
            return self._open(index, drawn)
        target = self.ramp.target(self._step) if self.ramp and self._on_leaves else None
        return {} if target is None else self._climb(target)

    def _progress(self) -> dict[str, Tensor]:
        return {} if self.ramp is None else {"target": self._number(self.ramp.latest(self._step), torch.float64)}

    def _train_step(self, optimizer: torch.optim.Optimizer, batch: Any) -> Tensor:
        if not self._on_leaves:
            return super()._train_step(optimizer, batch)
        optimizer.zero_grad(set_to_none=True)
        with prepared_weights(self.model):
            self._evaluate(self.model, batch).backward()
        with torch.no_grad():
            weights = {name: layer.weight for name, layer in self.layers.items()}
            self._pull_back({name: w.grad for name, w in weights.items() if w.grad is not None})
        for weight in weights.values():
            weight.grad = None
        optimizer.step()
        self._write()
        self.cost.count_pass(batch_size(batch))
        return self._loss_value

    def _trained(self) -> dict[str, Tensor]:
        """Leaves and what else a state has to hold, by name, detached."""
        return {name: leaf.detach() for name, leaf in self._leaves.items()}

    def _config(self) -> dict[str, Any]:
        return super()._config() | ({} if self.ramp is None else self.ramp.described())

    def state_dict(self) -> dict[str, Any]:
        """See BasePruner; adds the leaves."""
        return super().state_dict() | {"leaves": {name: value.clone() for name, value in self._trained().items()}}

    def _check_state(self, where: str, state: Any) -> None:
        super()._check_state(where, state)
        check_tensors(f"{where}: leaves", state["leaves"], self._trained())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See BasePruner; the model's own state has to be loaded as well, before or after."""
        super().load_state_dict(state)
        for name, value in self._trained().items():
            value.copy_(state["leaves"][name])
        # Whatever the weights are now, they are looked at before the next step.
        self._written = dict.fromkeys(self.layers, -1)
