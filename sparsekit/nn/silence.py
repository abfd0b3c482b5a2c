# SPDX-License-Identifier: Apache-2.0
"""BatchNorm behind filters that a mask has removed: without this it emits a constant in their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsekit.examples import example_tensors, tried
from sparsekit.nn.masked import MaskedLayer
from sparsekit.ops import replicas

_PRODUCERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def silence_batchnorm_(model: nn.Module, example_inputs: Tensor | Sequence[Tensor]) -> dict[str, int]:
    """Set weight and bias of BatchNorm to zero, in place, for every channel whose filter has no weight left.

    A filter that a mask removes gives zeros (or its bias), of which BatchNorm makes its own bias, or in eval mode what its
    statistics make of it: the channel is dead but not silent, and cannot be removed without changing what follows. This
    changes the outputs of the model, so do it before fine-tuning. Only a BatchNorm that is handed the very output of a
    convolution (no transposed one) or linear layer is seen.

    The zeros are written once. Training leaves the weight at zero, because what it multiplies is zero; the bias gets a
    gradient unless ReLU follows at once (whose gradient at zero is zero). Call again after training, or let
    ``sk.compact(..., silence_batchnorm=True)`` do it.

    Args:
        model: sparsified, or plain with filters of zeros.
        example_inputs: what the model is called with, a tensor or several; it runs once in eval mode, and its modes are
            left as they were.

    Returns:
        BatchNorm's name -> channels silenced, of those with any.

    Raises:
        ValueError, TypeError: no Module, or inputs that it does not take.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"silence_batchnorm_: model: expected a torch.nn.Module, got {type(model).__name__}")
    inputs = example_tensors("silence_batchnorm_", example_inputs)
    network = replicas.plain_network("silence_batchnorm_", model)
    silenced = {}
    for name, (norm, producer) in _pairs(network, inputs).items():
        dead = ~_effective(producer).flatten(1).any(1)
        if norm.weight is not None and bool(dead.any()):
            for parameter in (norm.weight, norm.bias):
                parameter[dead] = 0
            silenced[name] = int(dead.sum())
    return silenced


def _effective(layer: Any) -> Tensor:
    return layer.masked_weight() if isinstance(layer, MaskedLayer) else layer.weight.detach()


def _pairs(network: nn.Module, inputs: Sequence[Tensor]) -> dict[str, tuple[Any, Any]]:
    """BatchNorm's name -> it and the layer whose output it was handed."""
    made: dict[int, tuple[Tensor, nn.Module]] = {}
    found: dict[str, tuple[Any, Any]] = {}
    names = {module: replicas.plain_name(name) for name, module in network.named_modules()}

    def ran(module: nn.Module, given: Any, output: Any) -> None:
        if isinstance(module, _PRODUCERS):
            # The tensor is kept, so that no later one can be given its identity.
            made[id(output)] = output, module
        elif isinstance(module, _BatchNorm) and given and id(given[0]) in made:
            found[names[module]] = module, made[id(given[0])][1]

    hooks = [module.register_forward_hook(ran) for module in names]
    try:
        with replicas.eager(network):
            tried("silence_batchnorm_", network, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found
