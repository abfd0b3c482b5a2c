# SPDX-License-Identifier: Apache-2.0
"""prepared_weights: the masked weights of a whole model in one pass, and their gradients masked in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from sparsekit import ops
from sparsekit.nn.cached import fits
from sparsekit.nn.masked import MaskedLayer

LARGEST_LINEAR = {"cpu": 0, "cuda": 1 << 21}
"""Entries of the largest weight of a linear layer that is prepared: larger ones have kernels that never form it."""


class MaskedWeightsFunction(torch.autograd.Function):
    """All weights -> all masked weights, each way one op call; layers whose flag in ``dense`` is set get dz unmasked.

    The words are no saved tensors: re-entrant checkpoints go back through this node once for each of their segments.
    """

    @staticmethod
    def forward(ctx: Any, dtypes: list[torch.dtype], words: list[Tensor], dense: list[bool], *weights: Tensor) -> Any:
        ctx.words, ctx.dense, ctx.versions = words, dense, [w._version for w in words]
        ctx.dtypes = [weight.dtype for weight in weights]
        ctx.set_materialize_grads(False)
        return tuple(_masked([weight.detach() for weight in weights], words, dtypes))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dz: Tensor | None) -> tuple[Any, ...]:
        if ctx.versions != [w._version for w in ctx.words]:
            raise RuntimeError("prepared_weights: expected the masks of the forward pass, got masks changed since then")
        found: list[Tensor | None] = [None if g is None else g.to(t) for g, t in zip(dz, ctx.dtypes, strict=True)]
        own = [i for i, g in enumerate(dz) if g is not None and not ctx.dense[i]]
        gradients: list[Tensor] = [dz[i] for i in own]  # pyright: ignore[reportAssignmentType]
        masked = _masked(gradients, [ctx.words[i] for i in own], [ctx.dtypes[i] for i in own])
        for i, gradient in zip(own, masked, strict=True):
            found[i] = gradient
        return None, None, None, *found


def _masked(tensors: list[Tensor], words: list[Tensor], dtypes: list[torch.dtype]) -> list[Tensor]:
    """where(m, tensor, 0) of each in its dtype, one call for each dtype."""
    found: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(dtypes):
        own = [i for i, kind in enumerate(dtypes) if kind == dtype]
        found |= zip(own, ops.mask_weights([tensors[i] for i in own], [words[i] for i in own], dtype), strict=True)
    return [found[i] for i in range(len(tensors))]


class PreparedWeight:
    """The masked weight of one layer, attached to the graph."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __reduce__(self) -> tuple[type, tuple]:
        # A copy of the layer outlives the context.
        return type(None), ()

    def of(self, layer: MaskedLayer, input: Tensor) -> Tensor | None:
        """The weight, or None where the op has to serve: another dtype, or an input to refuse."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
            return None
        if type(input) is not Tensor or ops.compute_dtype(input, layer.weight) != self.weight.dtype:
            return None
        return self.weight if fits(layer, input) else None


def _preparable(layer: MaskedLayer) -> bool:
    weight, words = layer.weight, layer.mask_words
    plain = type(words) is Tensor and type(weight) in (nn.Parameter, Tensor) and not weight.is_meta
    small = weight.ndim > 2 or weight.numel() <= LARGEST_LINEAR.get(weight.device.type, 0)
    return plain and small and weight.numel() > 0 and not words.is_inference()


def _chosen(model: nn.Module) -> list[MaskedLayer]:
    transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if transformed or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return []
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        return []
    return [m for m in model.modules() if isinstance(m, MaskedLayer) and m._effective is None and _preparable(m)]


@contextmanager
def prepared_weights(model: nn.Module) -> Iterator[None]:
    """Forms the masked weights of a model in one pass instead of layer by layer; their gradients are masked in one pass too.

    For one forward and backward pass: ``with prepared_weights(model): loss(model(x)).backward()``. Numbers are those of
    the masked layers. It saves launches and forms each weight once instead of in both directions; it takes the memory of
    one copy of the masked weights (in autocast's dtype, if that is on), and all gradients of weights arrive at the end.
    A mask or weight that is changed inside is not seen. Layers stay as they are where this does not pay or cannot be: large
    linear layers, sharded weights, ``DistributedDataParallel`` (which sends gradients while others are computed), compile,
    export and torch.func. Differentiable once. The pruners use it.

    Args:
        model: with masked layers; without any nothing happens.

    Raises:
        TypeError: model is not a Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"prepared_weights: model: expected a torch.nn.Module, got {type(model).__name__}")
    layers = _chosen(model)
    # Tied weights have one mask, and so are prepared once.
    first = list({id(layer.weight): layer for layer in layers}.values())
    outer = [layer._prepared for layer in layers]
    dtypes = [ops.compute_dtype(layer.weight, layer.weight) or layer.weight.dtype for layer in first]
    words, dense = [layer.mask_words for layer in first], [layer.dense_grad for layer in first]
    weights = [layer.weight for layer in first]
    formed = MaskedWeightsFunction.apply(dtypes, words, dense, *weights) if first else ()
    ready = {id(layer.weight): weight for layer, weight in zip(first, formed, strict=True)}  # pyright: ignore
    try:
        for layer in layers:
            object.__setattr__(layer, "_prepared", PreparedWeight(ready[id(layer.weight)]))
        yield
    finally:
        for layer, before in zip(layers, outer, strict=True):
            object.__setattr__(layer, "_prepared", before)
