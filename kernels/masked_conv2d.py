# SPDX-License-Identifier: Apache-2.0
"""Masked convolutions with packed bits as products of matrices that are never formed: y, and the gradients at x and at w.

Pixels of the result are one side of the product, its channels the other, and the sum goes through channels and taps of the
filter; each tile of the input is read from where the taps reach. As in masked_linear.py the masked weight is the first
operand of the dot, and only words of 32 bits of the mask are read. They follow the weight's logical C order, whatever the
strides of the weight are. Sums are fp32 and run in a fixed order, so results are the same in every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton
from torch import Tensor

from sparsekit.kernels.masked_conv2d_configs import GradientTiles, ProductTiles, flat
from sparsekit.kernels.masked_conv2d_gradient import gradient_kernel, sum_gradients_kernel
from sparsekit.kernels.masked_conv2d_kernels import product_kernel, sum_pixels_kernel
from sparsekit.kernels.masked_linear_configs import kind_of

_SUM_BLOCK = 1024
# Named in every launch, because Triton is about to change what it does by default.
_FUSION: dict[str, Any] = {"enable_fp_fusion": True}
# Entries of the largest tile of the gradient at the weight whose masking leaves registers enough beside the sums.
_DIRECT = 64 * 64
# Largest grid dimension of CUDA.
_MOST_PROGRAMS = 2**31 - 1


@dataclass(frozen=True)
class Geometry:
    """stride, padding (the same before and behind) and dilation by (height, width), and the number of groups."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def output(self, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, int]:
        """Height and width of y for those of x and of the filter."""
        sides = zip(size, kernel, self.stride, self.padding, self.dilation, strict=True)
        h, w = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)
        return h, w


def uses_tf32() -> bool:
    """Does PyTorch's setting allow fp32 convolutions on CUDA to round their operands to tf32?"""
    return torch.backends.cudnn.conv.fp32_precision == "tf32"


def _precision(dtype: torch.dtype) -> str:
    return "tf32" if dtype == torch.float32 and uses_tf32() else "ieee"


def _check(
    function: str, source: Tensor, channels: int, weight_type: torch.dtype, words: Tensor, shape: Sequence[int]
) -> None:
    if kind_of(source.dtype, weight_type, False) is None:
        raise TypeError(f"{function}: no kernel for {source.dtype} with a weight of {weight_type}")
    expected = (shape[0], -(-(shape[1] * shape[2] * shape[3]) // 32))
    if words.dtype != torch.int32 or tuple(words.shape) != expected:
        raise ValueError(f"{function}: words: expected int32 {expected}, got {words.dtype} {tuple(words.shape)}")
    if source.ndim != 4 or source.shape[1] != channels:
        raise ValueError(f"{function}: expected [N, {channels}, H, W], got shape {tuple(source.shape)}")


def _launch(kernel: Any, grid: tuple[int, ...], function: str, tensor: Tensor, *arguments: Any, **options: Any) -> None:
    if grid[0] > _MOST_PROGRAMS:
        raise ValueError(f"{function}: expected at most {_MOST_PROGRAMS} tiles, got {grid[0]}")
    with torch.cuda.device_of(tensor):
        kernel[grid](*arguments, **options, **_FUSION)


def _steps(features: int, depth: int, taps: int, tiles: ProductTiles) -> dict[str, bool]:
    is_flat = flat(depth, taps, tiles.depth)
    whole = depth * (taps if is_flat else 1) % tiles.depth == 0
    return {"FLAT": is_flat, "EVEN": whole and features % tiles.features == 0}


def _product(
    function: str,
    source: Tensor,
    weight: Tensor,
    words: Tensor,
    bias: Tensor | None,
    target: Tensor,
    geometry: Geometry,
    tiles: ProductTiles,
) -> Tensor:
    """Fills ``target``: y from x, or dx from dy for the function whose name ends in dx."""
    words, out, groups = words.contiguous(), target, geometry.groups
    (count, channels, *target_size), (kh, kw), split = target.shape, weight.shape[2:], max(1, tiles.split)
    features, depth, pixels = channels // groups, source.shape[1] // groups, count * target_size[0] * target_size[1]
    if not target.numel():
        return target
    if split > 1:
        out = torch.empty(split, pixels, channels, dtype=torch.float32, device=target.device)
    has_bias, bias = bias is not None, target if bias is None else bias.contiguous()  # else a pointer that is not read
    sizes = pixels, *target_size, *source.shape[2:], features, depth, channels, words.shape[1]
    grid = triton.cdiv(features, tiles.features) * triton.cdiv(pixels, tiles.pixels) * groups, split
    _launch(
        *(product_kernel, grid, function, target, source, weight, words, bias, out, *sizes),
        *(*source.stride(), *weight.stride(), *target.stride(), *geometry.padding, *geometry.dilation),
        *(*geometry.stride, kh, kw),
        TRANSPOSED=function.endswith("dx"),
        **_steps(features, depth, kh * kw, tiles),
        HAS_BIAS=has_bias and split == 1,
        PRECISION=_precision(source.dtype),
        SPLIT=split,
        BLOCK_F=tiles.features,
        BLOCK_P=tiles.pixels,
        BLOCK_D=tiles.depth,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    if split > 1:
        grid = (triton.cdiv(target.numel(), _SUM_BLOCK),)
        facts = out, bias, target, split, target.numel(), *target_size, channels, *target.stride()
        _launch(sum_pixels_kernel, grid, function, target, *facts, HAS_BIAS=has_bias, BLOCK=_SUM_BLOCK)
    return target


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    words: Tensor,
    bias: Tensor | None = None,
    geometry: Geometry = Geometry(),
    *,
    tiles: ProductTiles,
) -> Tensor:
    """``F.conv2d`` of x with ``where(m, weight, 0)``.

    Args:
        x: [N, C, H, W] fp32, bf16 or fp16, any strides; channels_last is read fastest.
        weight: [out, C / groups, KH, KW], the dtype of x, or fp32 (cast to that of x in registers), any strides.
        words: int32 [out, ceil(C / groups * KH * KW / 32)], the packed mask m in weight's logical C order.
        bias: [out] or None.
        geometry: stride, padding, dilation, groups.
        tiles: of the product.

    Returns:
        [N, out, H', W'] in the dtype of x and channels_last.

    Raises:
        TypeError, ValueError: dtypes without a kernel, shapes that do not fit together.
    """
    _check("masked_conv2d", x, weight.shape[1] * geometry.groups, weight.dtype, words, weight.shape)
    shape = (x.shape[0], weight.shape[0], *geometry.output(x.shape[2:], weight.shape[2:]))
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return _product("masked_conv2d", x, weight, words, bias, y, geometry, tiles)


def masked_conv2d_dx(
    dy: Tensor,
    weight: Tensor,
    words: Tensor,
    size: Sequence[int],
    geometry: Geometry = Geometry(),
    *,
    tiles: ProductTiles,
) -> Tensor:
    """The gradient at x, whose height and width are ``size``, [N, C, *size], channels_last; else as masked_conv2d."""
    _check("masked_conv2d_dx", dy, weight.shape[0], weight.dtype, words, weight.shape)
    shape = (dy.shape[0], weight.shape[1] * geometry.groups, *size)
    dx = torch.empty(shape, dtype=dy.dtype, device=dy.device, memory_format=torch.channels_last)
    return _product("masked_conv2d_dx", dy, weight, words, None, dx, geometry, tiles)


def masked_conv2d_dw(
    dy: Tensor,
    x: Tensor,
    words: Tensor,
    like: Tensor,
    want: Literal["masked", "dense", "both"] = "masked",
    geometry: Geometry = Geometry(),
    *,
    tiles: GradientTiles,
) -> tuple[Tensor, Tensor]:
    """``where(m, dz, 0)``, ``dz`` or both from one accumulator, dz the gradient at the masked weight.

    Args:
        dy: [N, out, H', W'] fp32, bf16 or fp16, any strides.
        x: [N, C, H, W], the dtype of dy.
        words: the packed mask m, as for masked_conv2d.
        like: the weight, of which only shape, dtype (that of x, or fp32) and strides count: the results have the same.
        want: which of the two.
        geometry: stride, padding, dilation, groups.
        tiles: of the product.

    Returns:
        (masked, dense), each of weight's shape, or without elements where it is not wanted.

    Raises:
        TypeError, ValueError: as masked_conv2d.
    """
    name = "masked_conv2d_dw"
    _check(name, x, like.shape[1] * geometry.groups, like.dtype, words, like.shape)
    if want not in ("masked", "dense", "both"):
        raise ValueError(f"{name}: want: expected 'masked', 'dense' or 'both', got {want!r}")
    wanted = {"MASKED": want != "dense", "DENSE": want != "masked"}
    masked, dense = (torch.empty_like(like) if w else like.new_empty(0) for w in wanted.values())
    if like.numel():
        _gradient(dy, x, words.contiguous(), like, (masked, dense), geometry, tiles, wanted)
    return masked, dense


def _gradient(
    dy: Tensor,
    x: Tensor,
    words: Tensor,
    like: Tensor,
    results: tuple[Tensor, Tensor],
    geometry: Geometry,
    tiles: GradientTiles,
    wanted: dict[str, bool],
) -> None:
    (rows, inputs, kh, kw), groups, split = like.shape, geometry.groups, max(1, tiles.split)
    features, pixels, is_flat = rows // groups, len(dy) * dy.shape[2] * dy.shape[3], flat(inputs, kh * kw, tiles.inputs)
    strides = (results[0] if wanted["MASKED"] else results[1]).stride()
    parts, direct = results[0], split == 1 and tiles.out * tiles.inputs <= _DIRECT
    if not direct:
        parts = torch.empty(split, rows, inputs * kh * kw, dtype=torch.float32, device=x.device)
    tiles_i = triton.cdiv(inputs * kh * kw, tiles.inputs) if is_flat else triton.cdiv(inputs, tiles.inputs) * kh * kw
    sizes = pixels, *dy.shape[2:], *x.shape[2:], features, inputs, rows, words.shape[1]
    _launch(
        *(gradient_kernel, (tiles_i * triton.cdiv(features, tiles.out) * groups, split), "masked_conv2d_dw", x),
        *(dy, x, words, *results, parts, *sizes, *dy.stride(), *x.stride(), *strides),
        *(*geometry.padding, *geometry.dilation, *geometry.stride, kh, kw),
        FLAT=is_flat,
        **wanted,
        PRECISION=_precision(x.dtype),
        SPLIT=split,
        DIRECT=direct,
        BLOCK_O=tiles.out,
        BLOCK_I=tiles.inputs,
        BLOCK_P=tiles.pixels,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    if not direct:
        grid, facts = (triton.cdiv(like.numel(), _SUM_BLOCK),), (split, like.numel(), inputs * kh * kw, words.shape[1])
        arguments = *(parts, words, *results, *facts, *strides), kh, kw
        _launch(sum_gradients_kernel, grid, "masked_conv2d_dw", x, *arguments, **wanted, BLOCK=_SUM_BLOCK)
