# SPDX-License-Identifier: Apache-2.0
"""prepared_weights: the masked weights of a whole model in one pass, and their gradients masked in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from sparsekit import ops
from sparsekit.nn.cached import fits
from sparsekit.nn.lasting import lasting, recorded
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
        formed = _masked([weight.detach() for weight in weights], words, dtypes)
        # A layer with a frozen weight has nothing to compute in the backward pass, as without this.
        ctx.mark_non_differentiable(*(z for z, need in zip(formed, ctx.needs_input_grad[3:], strict=True) if not need))
        return tuple(formed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *dz: Tensor | None) -> tuple[Any, ...]:
        if any(g is not None and w._version != v for g, w, v in zip(dz, ctx.words, ctx.versions, strict=True)):
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


@dataclass(frozen=True)
class Formed:
    """The masked weight of one layer, and what it was formed from."""

    masked: Tensor
    weight: Tensor
    words: Tensor
    state: tuple[Any, ...]

    @staticmethod
    def state_of(layer: MaskedLayer) -> tuple[Any, ...]:
        """What has to stay as it was: values by their versions, and which gradient is wanted."""
        weight, words = layer.weight, layer.mask_words
        return weight._version, words._version, weight.requires_grad, layer.dense_grad

    def serves(self, layer: MaskedLayer) -> bool:
        """Is the layer as it was? By identity, because addresses and numbers of what is gone are given out again."""
        same = layer.weight is self.weight and layer.mask_words is self.words
        return same and self.state_of(layer) == self.state


class Preparation:
    """The masked weights of some layers, formed together in the dtype that the first of them asks for.

    Not at once: an autocast that begins inside the loss decides about the dtype.
    """

    def __init__(self, layers: list[MaskedLayer]) -> None:
        self._layers = layers
        self._graph = torch.is_grad_enabled()
        self._formed: dict[int, Formed] | None = None

    def __reduce__(self) -> tuple[type, tuple]:
        # A copy of a layer outlives the context.
        return type(None), ()

    def close(self) -> None:
        """Serve nothing from now on: contexts of several threads may end in any order, and so leave this behind."""
        self._layers, self._formed = [], {}

    def of(self, layer: MaskedLayer, input: Tensor) -> Tensor | None:
        """The masked weight, attached to the graph; None where the op has to serve: another dtype, an input to refuse."""
        if _transformed() or (torch.is_grad_enabled() and not self._graph):
            return None
        plain = type(input) is Tensor and input.device == layer.weight.device and not torch.is_inference_mode_enabled()
        dtype = ops.compute_dtype(input, layer.weight) if plain else None
        if dtype is None or not fits(layer, input):
            return None
        if self._formed is None:
            self._formed = self._form()
        found = self._formed.get(id(layer))
        return found.masked if found and found.masked.dtype == dtype and found.serves(layer) else None

    def _form(self) -> dict[int, Formed]:
        # Tied weights have one mask, and so are prepared once.
        by_weight = {id(layer.weight): layer for layer in self._layers}
        layers = list(by_weight.values())
        dtypes = [ops.compute_dtype(layer.weight, layer.weight) or layer.weight.dtype for layer in layers]
        words, dense = [layer.mask_words for layer in layers], [layer.dense_grad for layer in layers]
        # Re-entrant checkpoints go forward without gradients first; others use what is formed here, too.
        with torch.set_grad_enabled(self._graph):
            formed: Any = MaskedWeightsFunction.apply(dtypes, words, dense, *(layer.weight for layer in layers))
        masked = dict(zip(by_weight, formed, strict=True))
        return {
            id(layer): Formed(masked[id(layer.weight)], layer.weight, layer.mask_words, Formed.state_of(layer))
            for layer in self._layers
        }


def _transformed() -> bool:
    """Under compile, tracing or torch.func?"""
    return recorded() or torch._C._are_functorch_transforms_active()


def _preparable(layer: MaskedLayer) -> bool:
    weight, words = layer.weight, layer.mask_words
    plain = type(words) is Tensor and type(weight) in (nn.Parameter, Tensor) and not weight.is_meta
    small = weight.ndim > 2 or weight.numel() <= LARGEST_LINEAR.get(weight.device.type, 0)
    return plain and small and weight.numel() > 0 and not (words.is_inference() or weight.is_inference())


def _chosen(model: nn.Module) -> list[MaskedLayer]:
    if _transformed():
        return []
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        return []
    return [m for m in model.modules() if isinstance(m, MaskedLayer) and m._effective is None and _preparable(m)]


@contextmanager
def prepared_weights(model: nn.Module) -> Iterator[None]:
    """Forms the masked weights of a model in one pass instead of layer by layer; their gradients are masked in one pass too.

    For one forward and backward pass: ``with prepared_weights(model): loss(model(x)).backward()``. Numbers are those of
    the masked layers. It saves launches and forms each weight once instead of in both directions; it takes the memory of
    one copy of the masked weights (in autocast's dtype, if that is on where the first layer is called), and all gradients
    of weights arrive at the end.
    Where weight, mask or ``dense_gradient`` change inside, layers serve themselves from then on; fused optimizer steps and
    edits through ``.data`` are not seen, so make them outside. Layers stay as they are where this does not pay or cannot
    be: large linear layers, sharded weights, ``DistributedDataParallel`` (which sends gradients while others are computed),
    compile, export and torch.func. Differentiable once. The pruners use it.

    Args:
        model: with masked layers; without any nothing happens.

    Raises:
        TypeError: model is not a Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"prepared_weights: model: expected a torch.nn.Module, got {type(model).__name__}")
    layers = _chosen(model)
    preparation = Preparation(layers)
    try:
        with lasting("_prepared", [(layer, preparation) for layer in layers]):
            yield
    finally:
        preparation.close()
