# SPDX-License-Identifier: Apache-2.0
"""Optimizers as factories make them, and their states, checked before torch takes them over."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

# State of these names has an entry for each of the parameter's, in every optimizer of torch.
SHAPED = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "grad_avg", "acc_delta", "sum")


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimizer may change."""
    return [p for p in model.parameters() if p.requires_grad]


def fresh_optimizer(
    name: str, parameters: list[nn.Parameter], factory: OptimizerFactory, last: torch.optim.Optimizer | None
) -> torch.optim.Optimizer:
    """A new optimizer over ``parameters``, or an error of the pruner ``name``; last: of the phase before."""
    optimizer = factory(parameters)
    if not isinstance(optimizer, torch.optim.Optimizer):
        got = type(optimizer).__name__
        raise TypeError(f"{name}: optimizer: expected a callable that makes a torch optimizer, got {got}")
    if optimizer is last or optimizer.state:
        raise ValueError(f"{name}: optimizer: expected a fresh optimizer for each round, got a used one")
    return optimizer


def check_optimizer_state(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Raise ValueError or TypeError if ``state`` is not one of an optimizer over parameters like these."""
    if not isinstance(state, Mapping):
        raise TypeError(f"optimizer: expected a state dict, got {type(state).__name__}")
    groups, entries = state.get("param_groups"), state.get("state")
    if not (isinstance(groups, list) and isinstance(entries, Mapping)):
        raise ValueError("optimizer: expected a dict with state and param_groups, got another")
    own = [len(group["params"]) for group in optimizer.param_groups]
    numbers = [group.get("params") if isinstance(group, Mapping) else None for group in groups]
    if [len(n) if isinstance(n, list) else -1 for n in numbers] != own:
        raise ValueError(f"optimizer: expected groups of {own} parameters, got others")
    for mine, given in zip(optimizer.param_groups, groups, strict=True):
        for name, option in mine.items():
            if name not in given:
                raise ValueError(f"optimizer: expected options {', '.join(mine)}, got none for {name}")
            if isinstance(option, float) and not isinstance(given[name], (int, float, Tensor)):
                raise ValueError(f"optimizer: {name}: expected a number, got {given[name]!r}")
    lacking = [n for n in state.get("entries", ()) if n not in entries]
    if lacking:
        raise ValueError(f"optimizer: expected the state of all parameters that have some, got none for {lacking[0]!r}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    by_number = dict(zip([n for part in numbers for n in part or ()], parameters, strict=True))
    for number, entry in entries.items():
        if number not in by_number or not isinstance(entry, Mapping):
            raise ValueError(f"optimizer: expected state of its parameters, got some for {number!r}")
        for name, value in entry.items():
            _check_entry(f"optimizer: state {number}, {name}", name, value, by_number[number])


def _check_entry(where: str, name: str, value: Any, parameter: Tensor) -> None:
    if name not in SHAPED or value is None:
        return
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{where}: expected shape {tuple(parameter.shape)}, got {got}")
    if value.is_floating_point() != parameter.is_floating_point():
        raise ValueError(f"{where}: expected numbers like the parameter's, got {value.dtype}")


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state_dict with all entries that it can ever have, and "entries": the parameters that have some in truth.

    torch.distributed.checkpoint reads only what the state of the present object asks for, and an optimizer that has not
    stepped yet would ask for nothing; here it asks for the state that a copy of it gets by a step without gradients.
    """
    state = optimizer.state_dict()
    numbers = [n for group in state["param_groups"] for n in group["params"]]
    entries = [n for n in numbers if n in state["state"]]
    if len(entries) < len(numbers):
        made = _first_state(optimizer)
        lacking = {n: made[n] for n in numbers if n not in state["state"] and n in made}
        state = {**state, "state": {**state["state"], **lacking}}
    return {**state, "entries": entries}


def _first_state(optimizer: torch.optim.Optimizer) -> Mapping[int, Any]:
    """What a step without gradients adds to a copy of an optimizer; nothing where that cannot be found out."""
    twin = copy.deepcopy(optimizer)
    for group in twin.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    # A copy of an optimizer of another's making has lost its own attributes; torch's step needs none.
    torch_made = next((c for c in type(twin).__mro__ if c.__module__.startswith("torch.optim")), None)
    if torch_made is None or torch_made is torch.optim.Optimizer:
        return {}
    torch_made.step(twin)  # pyright: ignore[reportCallIssue]
    return twin.state_dict()["state"]


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Check a state, then take over a copy: torch would share the tensors, and training on would change the caller's."""
    check_optimizer_state(optimizer, state)
    entries = state.get("entries", state["state"].keys())
    own = {n: entry for n, entry in state["state"].items() if n in entries}
    optimizer.load_state_dict(copy.deepcopy({"state": own, "param_groups": state["param_groups"]}))
