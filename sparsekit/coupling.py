# SPDX-License-Identifier: Apache-2.0
"""Which filters of a model are coupled, found once and held by a pattern."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.channel_rules import WITH_FILTERS
from sparsekit.channels import Channel, channels_of
from sparsekit.compact import operate, plain_copy
from sparsekit.coupled import CoupledFilters, FilterGroup
from sparsekit.examples import example_tensors, tried
from sparsekit.nn import masked_layers, silence_batchnorm_
from sparsekit.ops import replicas


def coupled_filters(model: nn.Module, example_inputs: Tensor | Sequence[Tensor]) -> CoupledFilters:
    """The pattern whose masks ``sk.compact`` can turn into a smaller model without a remainder.

    Filters whose outputs are added or multiplied, and those of grouped and depthwise convolutions, become one unit. Filters
    of channels that cannot be removed (outputs of the network, channels that a LayerNorm or softmax mixes, those of a layer
    without a mask) are in no unit: they are always kept, and budgets do not count them.

    That they can be removed is tried: half of every group is emptied on a copy, and a group whose channels ``compact`` does
    not remove then, because its split, shuffle or reshape asks for more than equal masks, is left out.

    Args:
        model: sparsified; not changed.
        example_inputs: what the model is called with, a tensor or several, with two or more entries in dim 0.

    Returns:
        CoupledFilters, for ``sk.Projection(pattern, "uniform")``: of each group of coupled layers the same part is removed.

    Raises:
        ValueError: no masked layers, no channel that can be removed, inputs that do not fit, a model that Torch-Pruning
            cannot trace, or Torch-Pruning is missing. TypeError: no Module, no tensors.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"coupled_filters: model: expected a torch.nn.Module, got {type(model).__name__}")
    inputs = example_tensors("coupled_filters", example_inputs, least=2)
    network = replicas.plain_network("coupled_filters", model)
    masked = masked_layers(network).items()
    layers = {replicas.plain_name(name): tuple(layer.weight.shape) for name, layer in masked}
    if not layers:
        raise ValueError("coupled_filters: model: expected masked layers, got none; call sparsify first")
    plain = plain_copy(network)
    tried("coupled_filters", plain, inputs)
    channels = channels_of("coupled_filters", copy.deepcopy(plain), inputs)
    groups = _groups([c for c in channels if _can_be_masked(c, layers)])
    failed = _failing(plain, inputs, groups)
    groups = tuple(group for group in groups if group.name not in failed)
    if not groups:
        raise ValueError("coupled_filters: model: expected channels that can be removed, got none")
    return CoupledFilters(groups, tuple(layers.items()))


@torch.no_grad()
def _failing(plain: nn.Module, inputs: Sequence[Tensor], groups: Sequence[FilterGroup]) -> set[str]:
    """Groups some of whose channels stay although all of their filters are empty and silent."""
    owner: dict[tuple[str, int], str] = {}
    trial = copy.deepcopy(plain)
    for module in trial.modules():
        # Weights of the model may be zero, and then nothing would show.
        if isinstance(module, WITH_FILTERS):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5, generator=_generator(module.weight))
    for group in groups:
        for name, rows in group.members:
            # The first half: what a split gives to one branch.
            for index in (i for row in rows[: len(group) // 2] for i in row):
                owner[name, index] = group.name
                layer: Any = trial.get_submodule(name)
                layer.weight[index] = 0
                if layer.bias is not None:
                    layer.bias[index] = 0
    silence_batchnorm_(trial, inputs)
    done = operate("coupled_filters", trial, inputs)
    staying = (c for c, reason in zip(done.channels, done.why, strict=True) if reason)
    return {owner[filter] for c in staying for filter in c.filters if filter in owner}


def _generator(like: Tensor) -> torch.Generator:
    return torch.Generator(like.device).manual_seed(0)


def _can_be_masked(channel: Channel, layers: dict[str, tuple[int, ...]]) -> bool:
    return not channel.obstacle and bool(channel.inputs) and all(name in layers for name, _ in channel.filters)


def _groups(units: list[Channel]) -> tuple[FilterGroup, ...]:
    """Units with members in the same layers, as many in each, are one group; it is named after the first layer."""
    alike: dict[tuple[tuple[str, int], ...], list[dict[str, list[int]]]] = defaultdict(list)
    for channel in units:
        rows: dict[str, list[int]] = defaultdict(list)
        for name, index in channel.filters:
            rows[name].append(index)
        alike[tuple((name, len(found)) for name, found in rows.items())].append(rows)
    groups, taken = [], set()
    for key, found in alike.items():
        name = "+".join(layer for layer, _ in key)
        name = next(n for n in (key[0][0], name, f"{name}#{len(groups)}") if n not in taken)
        taken.add(name)
        members = tuple((layer, tuple(tuple(rows[layer]) for rows in found)) for layer, _ in key)
        groups.append(FilterGroup(name, members))
    return tuple(groups)
