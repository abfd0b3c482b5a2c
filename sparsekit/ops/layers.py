# SPDX-License-Identifier: Apache-2.0
"""Public masked linear and convolution: the torch.nn.functional signatures plus packed mask words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from sparsekit.ops import shards
from sparsekit.ops.autograd import EffectiveWeightFunction, MaskedConvFunction, MaskedLinearFunction, differentiable
from sparsekit.ops.masks import check_words, choose

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
# Asked once, because torch 2.11 cannot trace the question.
AUTOCAST_DEVICES = frozenset(d for d in ("cpu", "cuda", "xpu", "mps") if torch.amp.is_autocast_available(d))


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast multiplies x in, or None if it leaves x alone."""
    device = x.device.type
    casts = device in AUTOCAST_DEVICES and torch.is_autocast_enabled(device)
    casts = casts and x.is_floating_point() and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if casts else None


def compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """The dtype that a masked layer multiplies x and weight in: autocast's, or the one of both; None if they differ."""
    return _autocast_dtype(x) or (weight.dtype if x.dtype == weight.dtype else None)


def _autocast(function: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Check x and bias, and cast them as autocast does for the dense op; the weight is cast while it is masked."""
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"{function}: bias: expected shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    dtype = _autocast_dtype(x)
    if dtype is not None:
        return x.to(dtype), None if bias is None else bias.to(dtype)
    for name, value in (("x", x), ("bias", bias)):
        if value is not None and value.dtype != weight.dtype:
            raise TypeError(f"{function}: {name}: expected dtype {weight.dtype} (weight's), got {value.dtype}")
    return x, bias


def _check_whole(function: str, weight: Tensor) -> None:
    if type(weight) not in (Tensor, Parameter) and shards.is_spread(weight):
        remedy = "fully_shard gathers the weights for a forward pass, tensor parallel layers cannot be masked"
        raise ValueError(f"{function}: weight: expected a plain tensor, got a DTensor; {remedy}")


def masked_linear(
    x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None = None, *, dense_grad: bool = False
) -> Tensor:
    """``F.linear(x, where(m, weight, 0), bias)``.

    Args:
        x: [..., in], the dtype of weight (autocast casts as for ``F.linear``).
        weight: [out, in] floating.
        words: int32 [out, ceil(in/32)], the packed mask m.
        bias: [out] or None.
        dense_grad: give ``weight`` the gradient of the effective weight unmasked.

    Returns:
        [..., out]. Differentiable once in x, weight, bias.

    Raises:
        ValueError, TypeError: shapes or dtypes that do not fit together.
    """
    if weight.ndim != 2:
        raise ValueError(f"masked_linear: weight: expected 2 dimensions, got shape {tuple(weight.shape)}")
    if x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"masked_linear: x: expected last dimension {weight.shape[1]}, got shape {tuple(x.shape)}")
    _check_whole("masked_linear", weight)
    check_words("masked_linear", words, weight.shape, device=weight.device)
    x, bias = _autocast("masked_linear", x, weight, bias)
    return differentiable(MaskedLinearFunction, x, weight, words, bias, dense_grad)


def effective_weight(x: Tensor, weight: Tensor, words: Tensor, *, dense_grad: bool = False) -> Tensor:
    """``where(m, weight, 0)`` as a product with ``x`` needs it: differentiable once, in the dtype that autocast wants.

    Args:
        x: what the weight will meet; only its device and dtype count.
        weight: floating, any shape and strides.
        words: int32 words of weight's shape, the packed mask m.
        dense_grad: give ``weight`` the gradient of the result unmasked.
    """
    check_words("effective_weight", words, weight.shape, device=weight.device)
    dtype = _autocast_dtype(x) or weight.dtype
    return differentiable(EffectiveWeightFunction, weight, words, dtype, dense_grad)


def _per_dim(function: str, argument: str, value: int | Sequence[int], n: int) -> list[int]:
    values = [value] * n if isinstance(value, int) else [int(v) for v in value]
    if len(values) == 1:
        values = values * n
    if len(values) != n:
        raise ValueError(f"{function}: {argument}: expected an int or {n} ints, got {value!r}")
    return values


def _explicit_padding(
    function: str, padding: int | str | Sequence[int], kernel: list[int], dilation: list[int], strided: bool
) -> tuple[list[int], list[int]]:
    """Padding as (before, after) per dimension; 'same' puts the odd one behind, as torch does."""
    if not isinstance(padding, str):
        both = _per_dim(function, "padding", padding, len(kernel))
        return both, both
    choose(function, "padding", padding, ("same", "valid"))
    if padding == "valid":
        return [0] * len(kernel), [0] * len(kernel)
    if strided:
        raise ValueError(f"{function}: padding: expected numbers for a strided convolution, got 'same'")
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    return [t // 2 for t in total], [t - t // 2 for t in total]


def _flat_pad(before: Sequence[int], after: Sequence[int]) -> list[int]:
    return [p for pair in zip(reversed(before), reversed(after), strict=True) for p in pair]


def _check_conv(name: str, n: int, x: Tensor, weight: Tensor, groups: int) -> None:
    if weight.ndim != n + 2:
        raise ValueError(f"{name}: weight: expected {n + 2} dimensions, got shape {tuple(weight.shape)}")
    if x.ndim not in (n + 1, n + 2):
        raise ValueError(f"{name}: x: expected {n + 1} or {n + 2} dimensions, got shape {tuple(x.shape)}")
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"{name}: groups: expected a divisor of the {weight.shape[0]} output channels, got {groups}")
    channels = x.shape[-n - 1]
    if channels != weight.shape[1] * groups:
        expected = f"{weight.shape[1] * groups} input channels for weight {tuple(weight.shape)} and groups={groups}"
        raise ValueError(f"{name}: x: expected {expected}, got {channels}")


def _masked_conv(
    n: int,
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | str | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
    padding_mode: str,
    dense_grad: bool,
) -> Tensor:
    name = f"masked_conv{n}d"
    _check_conv(name, n, x, weight, groups)
    choose(name, "padding_mode", padding_mode, PADDING_MODES)
    _check_whole(name, weight)
    check_words(name, words, weight.shape, device=weight.device)
    strides, dilations = _per_dim(name, "stride", stride, n), _per_dim(name, "dilation", dilation, n)
    strided = any(s != 1 for s in strides)
    before, after = _explicit_padding(name, padding, list(weight.shape[2:]), dilations, strided)
    batched = x if x.ndim == n + 2 else x.unsqueeze(0)
    batched, bias = _autocast(name, batched, weight, bias)
    if padding_mode != "zeros":
        batched, before = F.pad(batched, _flat_pad(before, after), mode=padding_mode), [0] * n
    elif before != after:
        batched = F.pad(batched, _flat_pad([0] * n, [a - b for a, b in zip(after, before, strict=True)]))
    geometry = (strides, before, dilations, groups)
    y = differentiable(MaskedConvFunction, batched, weight, words, bias, *geometry, dense_grad)
    return y if x.ndim == n + 2 else y.squeeze(0)


def masked_conv1d(
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    dense_grad: bool = False,
) -> Tensor:
    """``F.conv1d`` on ``where(m, weight, 0)``: x [N, C, L] or [C, L], weight [out, C/groups, k]; see masked_conv2d."""
    return _masked_conv(1, x, weight, words, bias, stride, padding, dilation, groups, padding_mode, dense_grad)


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    dense_grad: bool = False,
) -> Tensor:
    """``F.conv2d`` on ``where(m, weight, 0)``.

    Args:
        x: [N, C, H, W] or [C, H, W], the dtype of weight (autocast casts as for ``F.conv2d``); any strides.
        weight: [out, C/groups, kh, kw] floating.
        words: int32 [out, ceil(C/groups*kh*kw / 32)], the packed mask m in weight's logical C order.
        bias: [out] or None.
        stride, padding, dilation, groups: as in ``F.conv2d``; padding may be "same" or "valid".
        padding_mode: "zeros", "reflect", "replicate", "circular", as in ``nn.Conv2d``.
        dense_grad: give ``weight`` the gradient of the effective weight unmasked.

    Returns:
        [N, out, H', W']. Differentiable once in x, weight, bias.

    Raises:
        ValueError, TypeError: shapes, dtypes or options that do not fit together.
    """
    return _masked_conv(2, x, weight, words, bias, stride, padding, dilation, groups, padding_mode, dense_grad)


def masked_conv3d(
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    dense_grad: bool = False,
) -> Tensor:
    """``F.conv3d`` on ``where(m, weight, 0)``: x [N, C, D, H, W] or unbatched; see masked_conv2d."""
    return _masked_conv(3, x, weight, words, bias, stride, padding, dilation, groups, padding_mode, dense_grad)
