# SPDX-License-Identifier: Apache-2.0
"""cached_weights: masked weights that are formed once, for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from sparsekit import ops
from sparsekit.nn.lasting import lasting, recorded
from sparsekit.nn.masked import MaskedLayer
from sparsekit.ops import shards


class WeightCache:
    """The masked weight of one layer, and what it was formed from."""

    def __init__(self) -> None:
        self.key: tuple[Any, ...] = ()
        self.weight: Tensor | None = None
        # Held, because the memory of a tensor that is gone is given out again, with the same address and version.
        self.sources: tuple[Tensor, ...] = ()

    def __reduce__(self) -> tuple[type, tuple]:
        # A copy of the layer outlives the context.
        return type(None), ()

    def drop(self) -> None:
        """Forget the masked weight."""
        self.key, self.weight, self.sources = (), None, ()

    def of(self, layer: MaskedLayer, input: Tensor) -> Tensor | None:
        """The masked weight for this input; None where the op has to serve, be it to refuse the input."""
        # Recorded programs outlive the weights that they see now, and gradients need the weight itself.
        if torch.is_grad_enabled() or recorded():
            return None
        weight, words = layer.weight, layer.mask_words
        plain = type(input) is Tensor and type(words) is Tensor and not (weight.is_inference() or words.is_inference())
        dtype = ops.compute_dtype(input, weight)
        if not plain or dtype is None or not fits(layer, input):
            return None
        if weight.is_cuda and torch.cuda.is_current_stream_capturing():
            return None
        key = (weight.data_ptr(), weight._version, words.data_ptr(), words._version, dtype, weight.stride())
        if key != self.key:
            self.sources = weight.detach(), words.detach()
            self.key, self.weight = key, ops.mask_weight(self.sources[0], words, dtype)
        return self.weight


def fits(layer: Any, input: Tensor) -> bool:
    """Is the input of a shape that the layer takes?"""
    weight = layer.weight
    if weight.ndim == 2:
        return input.ndim >= 1 and input.shape[-1] == weight.shape[0 if layer.transposed else 1]
    return weight.ndim - input.ndim in (0, 1) and input.shape[1 - weight.ndim] == weight.shape[1] * layer.groups


@contextmanager
def cached_weights(model: nn.Module) -> Iterator[None]:
    """While the context lasts, forward passes without gradients form each masked weight once: the cost of a dense layer.

    Changes that PyTorch counts are seen: steps of optimizers, edits in place, ``set_masks``, new Parameters, loaded
    states. Edits through ``.data`` or NumPy and replays of CUDA graphs are not, so make them outside. Passes with
    gradients, and those under compile, export, tracing or graph capture, form the weight as always. Takes the memory of
    one copy of the masked weights in the dtype of the products; contexts may be nested.

    Args:
        model: with masked layers.

    Raises:
        ValueError: the model has none. TypeError: it is not a Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"cached_weights: model: expected a torch.nn.Module, got {type(model).__name__}")
    layers = [module for module in model.modules() if isinstance(module, MaskedLayer)]
    if not layers:
        raise ValueError("cached_weights: model: expected masked layers, got none; call sparsify first")
    shards.reshard(model)
    if any(shards.is_spread(p) for p in model.parameters()):
        raise ValueError(
            "cached_weights: model: expected plain weights, got DTensors, which each forward pass gathers anew"
        )
    caches = [WeightCache() for _ in layers]

    def drop(*_: Any) -> None:
        for cache in caches:
            cache.drop()

    # Fused steps change weights without counting it.
    hook = register_optimizer_step_post_hook(drop)
    try:
        with lasting("_cache", list(zip(layers, caches, strict=True))):
            yield
    finally:
        hook.remove()
