# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of the gradient at the weight; masked_conv2d.py launches them, masked_conv2d_kernels.py says what a tap is."""

from __future__ import annotations

import triton
import triton.language as tl

from sparsekit.kernels.masked_conv2d_kernels import sum_parts


@triton.jit
def _store_gradient(
    total, masked_ptr, dense_ptr, words_ptr, row, bit, at, width, inside, MASKED: tl.constexpr, DENSE: tl.constexpr
):
    if DENSE:
        tl.store(dense_ptr + at, total.to(dense_ptr.dtype.element_ty), mask=inside)
    if MASKED:
        words = tl.load(words_ptr + row * width + (bit >> 5), mask=inside, other=0)
        total = tl.where(((words >> (bit & 31)) & 1) != 0, total, 0.0)
        tl.store(masked_ptr + at, total.to(masked_ptr.dtype.element_ty), mask=inside)


@triton.jit
def gradient_kernel(
    dy_ptr,  # [N, out, dy_h, dy_w]
    x_ptr,  # [N, C, x_h, x_w]
    words_ptr,  # [out, width]
    masked_ptr,  # [out, C / groups, KH, KW]
    dense_ptr,  # the same
    parts_ptr,  # where not DIRECT partial sums [SPLIT, out, C / groups * TAPS] in fp32, which another kernel adds
    pixels,  # N * dy_h * dy_w
    dy_h,
    dy_w,
    x_h,
    x_w,
    features,  # output channels in a group
    inputs,  # input channels in a group
    rows,  # output channels in all groups
    width,
    dy_n,  # strides in elements from here on
    dy_c,
    dy_y,
    dy_x,
    x_n,
    x_c,
    x_y,
    x_x,
    weight_o,
    weight_c,
    weight_r,
    weight_s,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    FLAT: tl.constexpr,
    MASKED: tl.constexpr,  # which of the two results are wanted
    DENSE: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    DIRECT: tl.constexpr,  # are the results stored here? Only with SPLIT == 1
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """dense[o, c, tap] = sum over p of dy[p, o] * x[p moved by tap, c]; masked = where(m, dense, 0)."""
    TAPS: tl.constexpr = KH * KW
    tiles_i = tl.cdiv(inputs * TAPS, BLOCK_I) if FLAT else tl.cdiv(inputs, BLOCK_I) * TAPS
    tiles_o = tl.cdiv(features, BLOCK_O)
    tile_i, tile = tl.program_id(0) % tiles_i, tl.program_id(0) // tiles_i
    group = (tile // tiles_o).to(tl.int64)
    o = tile % tiles_o * BLOCK_O + tl.arange(0, BLOCK_O)
    if FLAT:
        index = tile_i * BLOCK_I + tl.arange(0, BLOCK_I)
        c, tap = index // TAPS, index % TAPS
        r, s = (tap // KW)[None, :], (tap % KW)[None, :]
    else:
        c, tap = tile_i // TAPS * BLOCK_I + tl.arange(0, BLOCK_I), tile_i % TAPS
        r, s = tap // KW, tap % KW
    in_o, in_c = o < features, c < inputs
    row = group * features + o
    dy_ptrs = dy_ptr + (row * dy_c)[:, None]
    x_ptrs = x_ptr + ((group * inputs + c) * x_c)[None, :]
    steps = tl.cdiv(pixels, BLOCK_P)
    part = tl.cdiv(steps, SPLIT)
    first = tl.program_id(1) * part
    total = tl.zeros((BLOCK_O, BLOCK_I), dtype=tl.float32)
    for step in range(first, tl.minimum(first + part, steps)):
        p = step * BLOCK_P + tl.arange(0, BLOCK_P)
        # Just below 2^31 pixels the last step may wrap around.
        in_pixels = (p >= 0) & (p < pixels)
        n, at_y, at_x = (p // (dy_h * dy_w)).to(tl.int64), p // dy_w % dy_h, p % dy_w
        at = n * dy_n + at_y.to(tl.int64) * dy_y + at_x.to(tl.int64) * dy_x
        dy = tl.load(dy_ptrs + at[None, :], mask=in_o[:, None] & in_pixels[None, :], other=0.0)
        y = at_y[:, None] * STRIDE_H - pad_h + r * dilation_h
        x = at_x[:, None] * STRIDE_W - pad_w + s * dilation_w
        inside = (y >= 0) & (y < x_h) & (x >= 0) & (x < x_w) & in_pixels[:, None] & in_c[None, :]
        at = (n * x_n)[:, None] + y.to(tl.int64) * x_y + x.to(tl.int64) * x_x
        source = tl.load(x_ptrs + at, mask=inside, other=0.0)
        total = tl.dot(dy, source, total, input_precision=PRECISION)
    row, bit, inside = row[:, None], (c * TAPS + tap)[None, :], in_o[:, None] & in_c[None, :]
    if DIRECT:
        at = (c.to(tl.int64) * weight_c + tap // KW * weight_r + tap % KW * weight_s)[None, :] + row * weight_o
        _store_gradient(total, masked_ptr, dense_ptr, words_ptr, row, bit, at, width, inside, MASKED, DENSE)
    else:
        line = tl.program_id(1).to(tl.int64) * rows + row
        tl.store(parts_ptr + line * (inputs * TAPS) + bit, total, mask=inside)


@triton.jit
def sum_gradients_kernel(
    parts_ptr,  # fp32 [parts, out, columns]
    words_ptr,  # [out, width]
    masked_ptr,  # [out, C / groups, KH, KW]
    dense_ptr,  # the same
    parts,
    count,  # out * columns
    columns,  # C / groups * TAPS
    width,
    weight_o,
    weight_c,
    weight_r,
    weight_s,
    KH: tl.constexpr,
    KW: tl.constexpr,
    MASKED: tl.constexpr,
    DENSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dense = sum of the parts, in order; masked = where(m, dense, 0)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    total = sum_parts(parts_ptr + at, parts, count, inside, BLOCK)
    row, bit = at // columns, at % columns
    tap = bit % (KH * KW)
    at = row * weight_o + bit // (KH * KW) * weight_c + tap // KW * weight_r + tap % KW * weight_s
    _store_gradient(total, masked_ptr, dense_ptr, words_ptr, row, bit, at, width, inside, MASKED, DENSE)
