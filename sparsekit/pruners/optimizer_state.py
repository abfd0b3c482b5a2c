# SPDX-License-Identifier: Apache-2.0
"""States of optimizers, checked before torch takes them over."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# State of these names has an entry for each of the parameter's, in every optimizer of torch.
SHAPED = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "grad_avg", "acc_delta", "sum")


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


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Check a state, then take over a copy: torch would share the tensors, and training on would change the caller's."""
    check_optimizer_state(optimizer, state)
    optimizer.load_state_dict(copy.deepcopy(dict(state)))
