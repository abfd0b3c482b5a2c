# SPDX-License-Identifier: Apache-2.0
"""Which filters of a model are coupled, found once and held by a pattern."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence

from torch import Tensor, nn

from sparsekit.channels import Channel, channels_of
from sparsekit.coupled import CoupledFilters, FilterGroup
from sparsekit.examples import example_tensors, tried
from sparsekit.nn import finalize, masked_layers
from sparsekit.ops import replicas


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy with plain layers, zeros where the masks are zero."""
    plain = copy.deepcopy(model)
    return finalize(plain) if masked_layers(plain) else plain


def coupled_filters(model: nn.Module, example_inputs: Tensor | Sequence[Tensor]) -> CoupledFilters:
    """The pattern whose masks ``sk.compact`` can turn into a smaller model without a remainder.

    Filters whose outputs are added or multiplied, and those of grouped and depthwise convolutions, become one unit. Filters
    of channels that cannot be removed (outputs of the network, channels that a LayerNorm or softmax mixes, those of a layer
    without a mask) are in no unit: they are always kept, and budgets do not count them.

    Args:
        model: sparsified; not changed.
        example_inputs: what the model is called with, a tensor or several.

    Returns:
        CoupledFilters, for ``sk.Projection(pattern, "uniform")``: of each group of coupled layers the same part is removed.

    Raises:
        ValueError: no masked layers, no channel that can be removed, inputs that do not fit, a model that Torch-Pruning
            cannot trace, or Torch-Pruning is missing. TypeError: no Module, no tensors.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"coupled_filters: model: expected a torch.nn.Module, got {type(model).__name__}")
    inputs = example_tensors("coupled_filters", example_inputs)
    network = replicas.plain_network("coupled_filters", model)
    layers = {name: tuple(layer.weight.shape) for name, layer in masked_layers(network).items()}
    if not layers:
        raise ValueError("coupled_filters: model: expected masked layers, got none; call sparsify first")
    plain = plain_copy(network)
    tried("coupled_filters", plain, inputs)
    units = [c for c in channels_of("coupled_filters", plain, inputs) if _can_be_masked(c, layers)]
    if not units:
        raise ValueError("coupled_filters: model: expected channels that can be removed, got none")
    return CoupledFilters(_groups(units), tuple(layers.items()))


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
