# SPDX-License-Identifier: Apache-2.0
"""States of a model that a pruner returns to: everything but the masks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.nn.masked import WORDS, MaskedLayer
from sparsekit.ops import replicas, shards

# What DistributedDataParallel and torch.compile put before the names of the network inside them.
_PREFIXES = ("module.", "_orig_mod.")


def mask_keys(model: nn.Module) -> set[str]:
    """Keys of the masks in the state_dict of a model that is in no wrapper."""
    named = model.named_modules(remove_duplicate=False)
    return {f"{name}.{WORDS}" if name else WORDS for name, module in named if isinstance(module, MaskedLayer)}


def captured(model: nn.Module) -> dict[str, Any]:
    """Copy of the present state of the network, in whatever wrapper it is."""
    network = replicas.unwrapped(model)
    return _without_masks(network, network.state_dict())


def _without_masks(network: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    masks = mask_keys(network)
    rest = {name: value for name, value in state.items() if name not in masks}
    return {k: v.detach().clone() if isinstance(v, Tensor) else copy.deepcopy(v) for k, v in rest.items()}


def checked_state(where: str, model: nn.Module, state: Any) -> dict[str, Any]:
    """Copy of ``state`` if it has just the network's names and shapes (masks aside), else an error beginning with ``where``.

    Of a model in DistributedDataParallel the state may be that of the wrapper or of the network. Whole tensors of a model
    under fully_shard become DTensors.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"{where}: expected a state dict of the model, got {type(state).__name__}")
    network = replicas.unwrapped(model)
    own = network.state_dict()
    given = _without_masks(network, _unprefixed(state, own.keys()) if network is not model else state)
    wanted = own.keys() - mask_keys(network)
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
    return {name: shards.spread_as(v, own[name]) if isinstance(v, Tensor) else v for name, v in given.items()}


def _unprefixed(state: Mapping[str, Any], own: Any) -> dict[str, Any]:
    """The state with the names that the network has without its wrappers."""
    renamed: dict[str, Any] = {}
    for name, value in state.items():
        bare = name
        while bare not in own and bare.startswith(_PREFIXES):
            bare = bare.split(".", 1)[1]
        renamed[bare] = value
    return renamed


def kept_aside(model: nn.Module) -> Callable[[], None]:
    """A copy of the present state of the network, masks included; the result puts it back."""
    state = captured(model)
    words = {layer: layer.mask_words.clone() for layer in model.modules() if isinstance(layer, MaskedLayer)}

    def put_back() -> None:
        restore(model, state)
        for layer, before in words.items():
            layer.mask_words.copy_(before)

    return put_back


def restore(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Put a state back; the masks stay."""
    # Copied in place, because load_state_dict looks at the masks, for which the host would have to wait.
    network = replicas.unwrapped(model)
    own = network.state_dict()
    if not all(isinstance(own[name], Tensor) for name in state):
        network.load_state_dict({**state, **{name: own[name] for name in mask_keys(network)}})
        return
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)
