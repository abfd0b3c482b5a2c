# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of masked_conv2d.py, which explains and launches them.

A tap is one position of the filter, r * KW + s. The bit of entry (row, c, r, s) of the weight is c * TAPS + tap of its row of
words. "Flat" steps go through (c, tap) as one index, for layers with fewer channels than a step is deep; else a step has
one tap and BLOCK_D channels, taps inside, so that the words of a few channels stay in the first-level cache.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load_masked(weight_ptrs, words_ptrs, bit, inside, EVEN: tl.constexpr):
    if EVEN:
        weight, words = tl.load(weight_ptrs), tl.load(words_ptrs)
    else:
        weight = tl.load(weight_ptrs, mask=inside, other=0.0)
        words = tl.load(words_ptrs, mask=inside, other=0)
    return tl.where(((words >> (bit & 31)) & 1) != 0, weight, 0.0)


@triton.jit
def product_kernel(
    source_ptr,  # x [N, C, H, W], or dy where TRANSPOSED
    weight_ptr,  # [out, C / groups, KH, KW]
    words_ptr,  # [out, width]
    bias_ptr,  # [out]
    target_ptr,  # y, or dx where TRANSPOSED; with SPLIT > 1 partial sums [SPLIT, pixels, channels] in fp32
    pixels,  # of the target: N * target_h * target_w
    target_h,
    target_w,
    source_h,
    source_w,
    features,  # channels of the target in a group
    depth,  # channels of the source in a group
    channels,  # of the target in all groups
    width,
    source_n,  # strides in elements from here on
    source_c,
    source_y,
    source_x,
    weight_o,
    weight_c,
    weight_r,
    weight_s,
    target_n,
    target_c,
    target_y,
    target_x,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    FLAT: tl.constexpr,
    EVEN: tl.constexpr,  # do whole tiles cover features and depth?
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """target[p, f] = sum over (d, tap) of z[f, d, tap] * source[p moved by tap, d], z = where(m, weight, 0)."""
    TAPS: tl.constexpr = KH * KW
    tiles_f, tiles_p = tl.cdiv(features, BLOCK_F), tl.cdiv(pixels, BLOCK_P)
    tile = tl.program_id(0) // tiles_f
    group = (tile // tiles_p).to(tl.int64)
    f = tl.program_id(0) % tiles_f * BLOCK_F + tl.arange(0, BLOCK_F)
    # Sizes beyond 2^31 arrive as 64-bit integers and make p one; just below, the last tile may wrap around.
    p = tile % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
    in_pixels = (p >= 0) & (p < pixels)
    n, at_y, at_x = (p // (target_h * target_w)).to(tl.int64), p // target_w % target_h, p % target_w
    source_ptrs = source_ptr + (n * source_n)[None, :] + group * depth * source_c
    steps = tl.cdiv(depth * TAPS, BLOCK_D) if FLAT else tl.cdiv(depth, BLOCK_D) * TAPS
    part = tl.cdiv(steps, SPLIT)
    total = tl.zeros((BLOCK_F, BLOCK_P), dtype=tl.float32)
    for step in range(tl.program_id(1) * part, tl.minimum((tl.program_id(1) + 1) * part, steps)):
        if FLAT:
            index = step * BLOCK_D + tl.arange(0, BLOCK_D)
            d, tap = index // TAPS, (index % TAPS)[None, :]
            r, s = (index % TAPS // KW)[:, None], (index % KW)[:, None]
        else:
            d, tap = step // TAPS * BLOCK_D + tl.arange(0, BLOCK_D), step % TAPS
            r, s = tap // KW, tap % KW
        if TRANSPOSED:
            y, x = at_y[None, :] + pad_h - r * dilation_h, at_x[None, :] + pad_w - s * dilation_w
            inside = (y >= 0) & (x >= 0) & (y % STRIDE_H == 0) & (x % STRIDE_W == 0)
            y, x = y // STRIDE_H, x // STRIDE_W
            row, column = (group * depth + d)[None, :], f[:, None]
        else:
            y = at_y[None, :] * STRIDE_H - pad_h + r * dilation_h
            x = at_x[None, :] * STRIDE_W - pad_w + s * dilation_w
            inside = (y >= 0) & (x >= 0)
            row, column = (group * features + f)[:, None], d[None, :]
        inside = inside & (y < source_h) & (x < source_w) & in_pixels[None, :]
        if not EVEN:
            inside = inside & (d < depth)[:, None]
        offsets = y.to(tl.int64) * source_y + x.to(tl.int64) * source_x + d.to(tl.int64)[:, None] * source_c
        source = tl.load(source_ptrs + offsets, mask=inside, other=0.0)
        bit = column * TAPS + tap
        # 32 bits are enough for words: a weight of 2^36 entries fits into no memory.
        words_ptrs = words_ptr + (row.to(tl.int32) * width + (bit >> 5))
        weight_ptrs = weight_ptr + row * weight_o + column.to(tl.int64) * weight_c
        weight_ptrs += tap // KW * weight_r + tap % KW * weight_s
        in_weight = (f < features)[:, None] & (d < depth)[None, :]
        masked = _load_masked(weight_ptrs, words_ptrs, bit, in_weight, EVEN).to(source.dtype)
        total = tl.dot(masked, source, total, input_precision=PRECISION)
    channel = group * features + f
    if SPLIT == 1:
        if HAS_BIAS:
            total += tl.load(bias_ptr + channel, mask=f < features, other=0.0).to(tl.float32)[:, None]
        at = n * target_n + at_y.to(tl.int64) * target_y + at_x.to(tl.int64) * target_x
        target_ptrs = target_ptr + at[:, None] + (channel * target_c)[None, :]
    else:
        line = tl.program_id(1).to(tl.int64) * pixels + p
        target_ptrs = target_ptr + line[:, None] * channels + channel[None, :]
    result = tl.trans(total.to(target_ptr.dtype.element_ty))
    tl.store(target_ptrs, result, mask=in_pixels[:, None] & (f < features)[None, :])


@triton.jit
def sum_parts(parts_ptrs, parts, count, inside, BLOCK: tl.constexpr):
    """The sum of parts that lie ``count`` entries apart, in order."""
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for _ in range(parts):
        total += tl.load(parts_ptrs, mask=inside, other=0.0)
        parts_ptrs += count
    return total


@triton.jit
def sum_pixels_kernel(
    parts_ptr,  # fp32 [parts, pixels, channels]
    bias_ptr,  # [channels]
    target_ptr,  # [N, channels, target_h, target_w]
    parts,
    count,  # pixels * channels
    target_h,
    target_w,
    channels,
    target_n,
    target_c,
    target_y,
    target_x,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """target = sum of the parts, in order, + bias."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    total = sum_parts(parts_ptr + at, parts, count, inside, BLOCK)
    channel, p = at % channels, at // channels
    if HAS_BIAS:
        total += tl.load(bias_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    n, y, x = p // target_w // target_h, p // target_w % target_h, p % target_w
    at = n * target_n + channel * target_c + y * target_y + x * target_x
    tl.store(target_ptr + at, total.to(target_ptr.dtype.element_ty), mask=inside)
