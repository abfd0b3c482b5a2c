# SPDX-License-Identifier: Apache-2.0
"""Differentiation of the masked ops: one Function per family, each direction one op call, differentiable once.

With z = where(m, weight, 0) and dz the gradient at z, the gradient of ``weight`` is where(m, dz, 0); with ``dense_grad``
it is dz itself, for the algorithms whose criteria need the gradient of pruned entries too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _Once(torch.autograd.Function):
    """Identity on a gradient that raises when it is differentiated.

    A raw op has no derivative of its own: without this, a double backward would silently give zeros. Refusing at the
    second derivative, not at ``create_graph=True``, lets torch.func.grad through, which always keeps the graph.
    """

    @staticmethod
    def forward(gradient: Tensor, name: str, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.name = inputs[1]

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise RuntimeError(
            f"{ctx.name}: the masked ops are differentiable once, got a second derivative; "
            "use sparsekit.gradients_at, which takes the plain dense path"
        )


def _needed(
    name: str, sources: Sequence[Tensor], gradients: Sequence[Tensor], needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of (x, weight, words, bias), those not needed as None; their ``sources`` are what they depend on."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        gradients = [_Once.apply(g, name, *sources) for g in gradients]  # pyright: ignore[reportAssignmentType]
    dx, dw, db = (g if need else None for g, need in zip(gradients, needs, strict=True))
    return dx, dw, None, db


class MaskedLinearFunction(torch.autograd.Function):
    """``masked_linear`` with its backward."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None, dense_grad: bool) -> Tensor:
        return torch.ops.sparsekit.masked_linear(x, weight, words, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, weight, words, _, ctx.dense_grad = inputs
        ctx.save_for_backward(x, weight, words)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, words = ctx.saved_tensors
        needs = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[3]]
        with torch.no_grad():
            grads = torch.ops.sparsekit.masked_linear_backward(dy, x, weight, words, needs, ctx.dense_grad)
        return (*_needed("masked_linear", (dy, x, weight), grads, needs), None)


class MaskedConvFunction(torch.autograd.Function):
    """``masked_conv1d/2d/3d`` with their backward; the kernel's rank picks the op."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        words: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        dense_grad: bool,
    ) -> Tensor:
        op = getattr(torch.ops.sparsekit, f"masked_conv{weight.ndim - 2}d")
        return op(x, weight, words, bias, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, weight, words, _, *ctx.geometry, ctx.dense_grad = inputs
        ctx.save_for_backward(x, weight, words)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, words = ctx.saved_tensors
        needs = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[3]]
        name = f"masked_conv{weight.ndim - 2}d"
        with torch.no_grad():
            op = getattr(torch.ops.sparsekit, name + "_backward")
            grads = op(dy, x, weight, words, *ctx.geometry, needs, ctx.dense_grad)
        return (*_needed(name, (dy, x, weight), grads, needs), None, None, None, None, None)


class EffectiveWeightFunction(torch.autograd.Function):
    """``effective_weight`` with its backward, for products that have no masked op of their own."""

    @staticmethod
    def forward(weight: Tensor, words: Tensor, dtype: torch.dtype, dense_grad: bool) -> Tensor:
        return torch.ops.sparsekit.mask_weight(weight, words, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        weight, words, _, ctx.dense_grad = inputs
        ctx.save_for_backward(weight, words)

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight, words = ctx.saved_tensors
        with torch.no_grad():
            dw = dz.to(weight.dtype)
            dw = dw.clone() if ctx.dense_grad else torch.ops.sparsekit.mask_weight(dw, words, weight.dtype)
        return (_needed("effective_weight", (dz, weight), [dz, dw, dz], [False, True, False])[1], None, None, None)


def _at_once(function: Any) -> Any:
    """The same function with forward and set-up in one, which torch.func cannot transform.

    For a separate ``setup_context`` torch inspects the signature of ``forward`` in every call; that takes twice the time
    of the rest of a small layer.
    """

    class AtOnce(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Tensor:
            output = function.forward(*inputs)
            function.setup_context(ctx, inputs, output)
            return output

        backward = function.backward

    return AtOnce


_AT_ONCE = {
    function: _at_once(function) for function in (MaskedLinearFunction, MaskedConvFunction, EffectiveWeightFunction)
}


def differentiable(function: Any, *inputs: Any) -> Tensor:
    """``function.apply(*inputs)`` by the shortest way; ``inputs`` are all of its arguments, in order."""
    transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return (function if transformed else _AT_ONCE[function]).apply(*inputs)
