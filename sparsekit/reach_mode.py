# SPDX-License-Identifier: Apache-2.0
"""What depends on what in a network: a mode in which functions of tensors keep their dependences and lose everything else.

With inputs and weights of ones and without shifts, a value is positive exactly if the network's input reaches it, and a
gradient exactly if it reaches the output. Nothing cancels, and no activation stands still by chance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _Positive(torch.autograd.Function):
    """1 for what is positive, else 0, in both directions: so that no depth overflows or underflows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return (gradients[0] > 0).to(gradients[0].dtype)


def positive(x: Tensor) -> Tensor:
    """1 where x is positive, else 0; the same is done to the gradient."""
    found = _Positive.apply(x)
    assert isinstance(found, Tensor)
    return found


def is_value(x: object) -> bool:
    """Is it a tensor that stands for numbers, and not for indices or conditions?"""
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def _first(x: Any, *rest: Any, **options: Any) -> Any:
    """A function of single entries depends on them alone."""
    return x


def _joined(*operands: Any, **options: Any) -> Tensor:
    """A function of several tensors, entry by entry, depends on what any of them depends on."""
    tensors = [x for x in operands if isinstance(x, Tensor)]
    values = [x for x in tensors if is_value(x)]
    shape = torch.broadcast_shapes(*(x.shape for x in tensors))
    return positive(sum(values[1:], values[0]).expand(shape))


def _over(x: Tensor, dims: Any) -> Tensor:
    """Every entry depends on all that differ from it in ``dims`` alone."""
    return positive(x.sum(dims, keepdim=True)).expand_as(x)


def _softmax(input: Tensor, dim: int | None = None, *rest: Any, **options: Any) -> Tensor:
    if dim is None:
        raise ValueError("effective_masks: model: expected a softmax along a named dim, got one without")
    return _over(input, dim)


def _layer_norm(input: Tensor, normalized_shape: Any, *rest: Any, **options: Any) -> Tensor:
    return _over(input, tuple(range(-len(normalized_shape), 0)))


def _group_norm(input: Tensor, num_groups: int, *rest: Any, **options: Any) -> Tensor:
    return _over(input.reshape(len(input), num_groups, -1), -1).reshape(input.shape)


def _instance_norm(input: Tensor, *rest: Any, **options: Any) -> Tensor:
    return _over(input.flatten(2), -1).reshape(input.shape)


def _glu(input: Tensor, dim: int = -1) -> Tensor:
    return _joined(*input.chunk(2, dim))


def _matmul(a: Tensor, b: Tensor, *rest: Any, **options: Any) -> Tensor:
    """A product of two values depends on a row of one and a column of the other, whichever of them is known to be 0."""
    if min(a.ndim, b.ndim) < 2:
        raise ValueError("effective_masks: model: expected products of matrices, got one of a vector")
    return positive(a.sum(-1, keepdim=True) + b.sum(-2, keepdim=True))


def _attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Tensor:
    """Whatever an attention mask hides, a channel of the values is mixed by all queries and keys of its head."""
    if options.get("enable_gqa"):
        raise ValueError("effective_masks: model: expected as many heads of keys as of queries, got enable_gqa=True")
    keys = key.sum((-2, -1), keepdim=True)
    return positive(query.sum(-1, keepdim=True) + keys + value.sum(-2, keepdim=True))


def _interpolate(input: Tensor, *rest: Any, **options: Any) -> Tensor:
    mode = options.get("mode", rest[2] if len(rest) > 2 else "nearest")
    if mode not in ("nearest", "nearest-exact", "area", "linear", "bilinear", "trilinear"):
        raise ValueError(f"effective_masks: model: expected interpolation without negative weights, got {mode!r}")
    return F.interpolate(input, *rest, **options)


def _max_pool(side: str) -> Callable[..., Tensor]:
    """A maximum depends on its whole window, but its gradient goes to one entry: so a mean stands for it."""

    def pool(
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor:
        if return_indices or any(x != 1 for x in ([dilation] if isinstance(dilation, int) else dilation)):
            raise ValueError("effective_masks: model: expected pooling without dilation and indices, got one with them")
        return getattr(F, f"avg_pool{side}")(input, kernel_size, stride or None, padding, ceil_mode)

    return pool


def _adaptive_max_pool(side: str) -> Callable[..., Tensor]:
    def pool(input: Tensor, output_size: Any, return_indices: bool = False) -> Tensor:
        if return_indices:
            raise ValueError("effective_masks: model: expected pooling without dilation and indices, got one with them")
        return getattr(F, f"adaptive_avg_pool{side}")(input, output_size)

    return pool


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SIDES = ("1d", "2d", "3d")
# Sums of products with weights: as they are, then 1 for what is positive.
_WEIGHTED = {"linear", "addmm", "embedding", *(f"conv{kind}{side}" for kind in ("", "_transpose") for side in _SIDES)}
# Sums, and what only moves entries: as they are.
_SUMS = _words(
    """__get__ __add__ __radd__ __iadd__ add add_ cat concat concatenate stack hstack vstack view reshape view_as reshape_as
    flatten unflatten permute transpose t swapaxes movedim contiguous __getitem__ pad mean sum cumsum expand expand_as repeat
    broadcast_to unsqueeze squeeze chunk split tensor_split unbind narrow select index_select clone size dim ndimension numel
    stride __len__ is_floating_point is_complex is_contiguous get_device roll flip tile pixel_shuffle pixel_unshuffle
    channel_shuffle unfold fold tril triu requires_grad_"""
) | {f"{kind}avg_pool{side}" for kind in ("", "adaptive_") for side in _SIDES}
_SINGLE = _words(
    """relu relu_ relu6 leaky_relu leaky_relu_ elu elu_ selu celu gelu silu mish softplus softsign sigmoid sigmoid_ tanh tanh_
    hardswish hardsigmoid hardtanh logsigmoid threshold prelu batch_norm dropout dropout1d dropout2d dropout3d alpha_dropout
    exp log sqrt rsqrt square abs neg __neg__ clamp clamp_ reciprocal detach masked_fill float double half bfloat16"""
)
_SEVERAL = _words(
    """__sub__ __rsub__ __isub__ sub rsub __mul__ __rmul__ __imul__ mul multiply __truediv__ __rtruediv__ __itruediv__ div
    true_divide __pow__ __rpow__ pow maximum minimum where"""
)
_CASTS = {"to", "type", "type_as"}
_CONSTANTS = _words(
    """zeros ones full empty rand randn zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones
    new_full new_empty"""
)
_OWN: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_SINGLE, _first),
    **dict.fromkeys(_SEVERAL, _joined),
    **dict.fromkeys(("softmax", "log_softmax"), _softmax),
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    **dict.fromkeys(("matmul", "__matmul__", "bmm"), _matmul),
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "glu": _glu,
    "interpolate": _interpolate,
    "scaled_dot_product_attention": _attention,
    **{f"max_pool{side}": _max_pool(side) for side in _SIDES},
    **{f"adaptive_max_pool{side}": _adaptive_max_pool(side) for side in _SIDES},
}


class ReachMode(TorchFunctionMode):
    """Within it a network computes what its input reaches; a function whose dependences are not known is an error.

    Products of two values count as dependent on both: in doubt there is a connection.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name, options = func.__name__, kwargs or {}
        if name in _CONSTANTS:
            found = func(*args, **options)
            return torch.zeros_like(found) if is_value(found) else found
        if not any(is_value(x) for x in _flat((args, options))):
            return func(*args, **options)
        if name in _OWN:
            return _OWN[name](*args, **options)
        if name in _WEIGHTED:
            return positive(func(*args, **options))
        if name in _CASTS:
            found = func(*args, **options)
            if is_value(found):
                return found.double()
        elif name in _SUMS:
            return func(*args, **options)
        raise ValueError(f"effective_masks: model: expected functions whose dependences are known, got {name}")


def _flat(values: Any) -> list[Any]:
    if isinstance(values, dict):
        values = list(values.values())
    return [x for part in values for x in _flat(part)] if isinstance(values, (list, tuple)) else [values]
