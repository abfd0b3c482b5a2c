# SPDX-License-Identifier: Apache-2.0
"""Kept weights that do something: those on a path from the network's input to its output."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from sparsekit.mask import Mask, Masks
from sparsekit.nn import finalize, masks
from sparsekit.ops import replicas, shards
from sparsekit.reach_mode import ReachMode, is_value


def effective_masks(model: nn.Module, example_inputs: Tensor | Sequence[Any] | Mapping[str, Any]) -> Masks:
    """The kept weights through which some output depends on some input, as masks; all others could be pruned as well.

    A unit whose inputs are all cut gives a constant, one whose outputs are all cut is never read; neither needs the weights
    that it still has, and so on from layer to layer. Biases carry no input, so they connect nothing.

    Args:
        model: sparsified; a copy of it in float64 is run, it stays as it is.
        example_inputs: one input, or positional or named ones, of the shapes that the model is used with. Of floating-point
            ones only the shape matters: small images leave parts of a filter on the padding, which then do nothing.

    Returns:
        Masks under the names of ``sk.masks(model)``; each is a subset of the mask there. Exact where values meet in sums
        alone (linear layers, convolutions, pooling, normalisation, activations, residual sums, concatenation). Products of
        two values (attention, gates) count as dependent on both factors, and what is read from a parameter otherwise as
        dependent on the input: in doubt a weight is effective.

    Raises:
        ValueError: no masked layer, weights spread over processes, or a function whose dependences are not known, by name.
        TypeError: no module, or inputs of a wrong kind.

    One forward and one backward pass. Source of the notion: Vysogorets and Kempe, "Connectivity matters: neural network
    pruning through the lens of effective sparsity", JMLR 24, 2023; that a gradient of ones finds paths: Tanaka et al.,
    "Pruning neural networks without any data by iteratively conserving synaptic flow", NeurIPS 2020.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"effective_masks: model: expected a torch.nn.Module, got {type(model).__name__}")
    arguments, named = _arguments(example_inputs)
    kept = masks(model)
    if not kept:
        raise ValueError("effective_masks: model: expected masked layers, got none; call sparsify first")
    if any(shards.is_spread(mask.words) for mask in kept.values()):
        raise ValueError("effective_masks: model: expected plain weights, got DTensors; gather them first")
    network = _network_of_ones(model, kept)
    # Fast algorithms for convolutions, which float64 on a CPU does without, give small numbers in place of zeros.
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        with ReachMode():
            output = network(*arguments, **named)
        leaves = [x for x in tree_leaves(output) if is_value(x) and x.requires_grad]
        if leaves:
            torch.autograd.backward([x.sum() for x in leaves])
    found = {}
    for name, mask in kept.items():
        weight = network.get_submodule(replicas.plain_name(name)).weight
        assert isinstance(weight, Tensor)
        reached = torch.zeros(mask.shape, dtype=torch.bool) if weight.grad is None else weight.grad.ne(0)
        found[name] = mask & Mask.from_dense(reached.to(mask.words.device).contiguous())
    return Masks(found)


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named inputs, with ones for all numbers."""
    given = (inputs,) if isinstance(inputs, Tensor) else inputs
    if (
        not isinstance(given, (Sequence, Mapping))
        or isinstance(given, str)
        or not any(isinstance(x, Tensor) for x in tree_leaves(given))
    ):
        kind = type(inputs).__name__
        raise TypeError(f"effective_masks: example_inputs: expected a tensor, or several in a list or dict, got {kind}")
    ones = tree_map(lambda x: torch.ones_like(x, dtype=torch.float64) if is_value(x) else x, given)
    return ((), dict(ones)) if isinstance(ones, Mapping) else (tuple(ones), {})


@torch.no_grad()
def _network_of_ones(model: nn.Module, kept: Mapping[str, Mask]) -> nn.Module:
    """A plain copy in float64 and eval mode: masks as weights, ones for other matrices, zeros for vectors."""
    plain = replicas.uncompiled(copy.deepcopy(replicas.bare(model)))
    network = finalize(plain).double().eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.fill_(float(parameter.ndim >= 2))
    for name, mask in kept.items():
        weight = network.get_submodule(replicas.plain_name(name)).weight
        assert isinstance(weight, Tensor)
        weight.copy_(mask.dense())
        weight.requires_grad_(True)
    return network
