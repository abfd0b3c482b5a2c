# SPDX-License-Identifier: Apache-2.0
"""Reading and setting the masks of a model, and the two ways of looking through them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from sparsekit import ops
from sparsekit.mask import Mask, Masks
from sparsekit.nn.lasting import lasting
from sparsekit.nn.masked import WORDS, MaskedLayer
from sparsekit.ops import replicas, shards


def masked_layers(model: nn.Module) -> dict[str, MaskedLayer]:
    """Masked layers by name in module order; layers that share one weight appear once, under the first name.

    In DistributedDataParallel the names are those that the network has without it. Weights that fully_shard has left
    gathered are put away, so do not call it in a forward pass.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"masked_layers: model: expected a torch.nn.Module, got {type(model).__name__}")
    shards.reshard(model)
    seen: set[int] = set()
    layers: dict[str, MaskedLayer] = {}
    for name, module in replicas.unwrapped(model).named_modules():
        if isinstance(module, MaskedLayer) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            layers[name] = module
    return layers


def layers_by_weight(model: nn.Module) -> dict[int, list[MaskedLayer]]:
    """All masked layers, grouped by the identity of their weight: tied layers share a group."""
    groups: dict[int, list[MaskedLayer]] = {}
    for module in model.modules():
        if isinstance(module, MaskedLayer):
            groups.setdefault(id(module.weight), []).append(module)
    return groups


def check_ties(function: str, model: nn.Module) -> None:
    """Raise ValueError if layers that share one weight have different masks: no dense weight could stand for both."""
    names = {id(module): name for name, module in model.named_modules()}
    for first, *others in layers_by_weight(model).values():
        for other in others:
            if first.mask_words is not other.mask_words and not torch.equal(first.mask_words, other.mask_words):
                pair = f"{names[id(first)]!r} and {names[id(other)]!r}"
                raise ValueError(f"{function}: model: expected one mask for the tied {pair}, got two; see set_masks")


def masks(model: nn.Module) -> Masks:
    """Snapshot of all masks of the model, by layer name."""
    return Masks({name: layer.mask for name, layer in masked_layers(model).items()})


def _check_names(function: str, given: Mapping[str, object], layers: Mapping[str, MaskedLayer]) -> None:
    if unknown := [name for name in given if name not in layers]:
        raise ValueError(f"{function}: expected names of masked layers, got {unknown[0]!r}; known: {', '.join(layers)}")


@torch.no_grad()
def set_masks(model: nn.Module, masks: Mapping[str, Mask]) -> None:
    """Copy ``masks`` into the layers named, in place; others stay. All shapes are checked before any mask changes."""
    layers = masked_layers(model)
    if not isinstance(masks, Mapping):
        raise TypeError(f"set_masks: masks: expected masks by layer name, got {type(masks).__name__}")
    _check_names("set_masks: masks", masks, layers)
    for name, mask in masks.items():
        if not isinstance(mask, Mask):
            got = f"{type(mask).__name__}; Mask.from_dense packs a bool tensor"
            raise TypeError(f"set_masks: masks[{name!r}]: expected a Mask, got {got}")
        if mask.shape != tuple(layers[name].weight.shape):
            raise ValueError(
                f"set_masks: masks[{name!r}]: expected shape {tuple(layers[name].weight.shape)}, got {mask.shape}"
            )
    groups = layers_by_weight(model)
    for name, mask in masks.items():
        words = shards.gathered(mask.words)
        for layer in groups[id(layers[name].weight)]:
            layer.mask_words.copy_(words)


def dense_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """State of the model with zeros baked in and no mask keys: loads strictly into the plain model.

    Every tensor is detached; tensors of masked weights are copies, the others share memory with the model.
    """
    model = replicas.unwrapped(model)
    shards.reshard(model)
    check_ties("dense_state_dict", model)
    state = model.state_dict()
    # With duplicates: a module that is registered twice has its keys twice.
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, MaskedLayer):
            prefix = name + "." if name else ""
            del state[prefix + WORDS]
            state[prefix + "weight"] = module.masked_weight()
    return cast("dict[str, Tensor]", state)


@contextmanager
def dense_gradient(model: nn.Module) -> Iterator[None]:
    """Within it, forward passes give masked weights the gradient of their effective weight, unmasked."""
    layers = [module for module in model.modules() if isinstance(module, MaskedLayer)]
    with lasting("dense_grad", [(layer, True) for layer in layers]):
        yield


@contextmanager
def effective_weights(model: nn.Module, z: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it, the layers named use ``z`` instead of their masked weight (soft gates, |theta|, second derivatives).

    Args:
        z: layer name -> tensor of the weight's shape. The plain dense path is taken, so gradients of any order flow.
    """
    layers = masked_layers(model)
    _check_names("effective_weights: z", z, layers)
    groups = layers_by_weight(model)
    changed = [(layer, z[name]) for name in z for layer in groups[id(layers[name].weight)]]
    for layer, value in changed:
        if value.shape != layer.weight.shape:
            raise ValueError(
                f"effective_weights: z: expected shape {tuple(layer.weight.shape)}, got {tuple(value.shape)}"
            )
    with lasting("_effective", changed):
        yield


def kept_weights(words: Mapping[str, Tensor]) -> Tensor:
    """Weights kept in each layer: int64 [layers], on the words' device."""
    return ops.mask_counts(list(words.values()), list(words.values()))[:, 0]
