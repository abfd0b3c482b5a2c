# SPDX-License-Identifier: Apache-2.0
"""States of a model without its masks, to which IMP and OMP return."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sparsekit.nn.masked import WORDS, MaskedLayer


def mask_keys(model: nn.Module) -> set[str]:
    """Names of the masks in the state_dict of ``model``."""
    named = model.named_modules(remove_duplicate=False)
    return {f"{name}.{WORDS}" if name else WORDS for name, module in named if isinstance(module, MaskedLayer)}


def snapshot(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """Copy of a state without the masks."""
    masks = mask_keys(model)
    rest = {name: value for name, value in state.items() if name not in masks}
    return {k: v.detach().clone() if isinstance(v, Tensor) else copy.deepcopy(v) for k, v in rest.items()}


def checked_state(where: str, model: nn.Module, state: Any) -> dict[str, Any]:
    """Copy of ``state`` if it has just the model's names and shapes (masks aside), else an error beginning with ``where``."""
    if not isinstance(state, Mapping):
        raise TypeError(f"{where}: expected a state dict of the model, got {type(state).__name__}")
    own, given = model.state_dict(), snapshot(model, state)
    wanted = own.keys() - mask_keys(model)
    for problem, names in (("missing", wanted - given.keys()), ("unknown", given.keys() - wanted)):
        if names:
            got = f"{problem} {', '.join(sorted(names)[:5])}"
            raise ValueError(f"{where}: expected the keys of the model's state_dict, got {got}")
    for name, value in given.items():
        if isinstance(own[name], Tensor) and not isinstance(value, Tensor):
            raise ValueError(f"{where}[{name!r}]: expected a tensor, got {type(value).__name__}")
        if isinstance(value, Tensor) and value.shape != own[name].shape:
            expected, got = tuple(own[name].shape), tuple(value.shape)
            raise ValueError(f"{where}[{name!r}]: expected shape {expected}, got {got}")
    return given
