# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of masked_linear.py, which explains and launches them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _activate(value, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        # Not maximum(): a NaN has to stay one.
        value = tl.where(value < 0, 0.0, value)
    elif ACTIVATION == "gelu":
        value = 0.5 * value * (1 + tl.erf(value * 0.7071067811865476))
    elif ACTIVATION == "silu":
        value = value * tl.sigmoid(value)
    return value


@triton.jit
def product_kernel(
    x_ptr,  # [tokens, depth]
    weight_ptr,  # [out, in]
    words_ptr,  # [out, width]
    bias_ptr,  # [features]
    out_ptr,  # [tokens, features]; with SPLIT > 1 partial sums [SPLIT, tokens, features] in fp32
    tokens,
    features,
    depth,
    width,
    stride_x,  # of a row, in elements, as is stride_weight
    stride_weight,
    TRANSPOSED: tl.constexpr,  # are features the columns of weight, or its rows?
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN_DEPTH: tl.constexpr,  # is depth a multiple of BLOCK_D?
    SPLIT: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out = x z^T, or x z where TRANSPOSED, with z = where(m, weight, 0)."""
    offs_f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    offs_t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    offs_d = tl.arange(0, BLOCK_D)
    # Beyond the last token the last one is read again: that needs no mask, and nothing of it is stored.
    x_ptrs = x_ptr + tl.minimum(offs_t, tokens - 1).to(tl.int64)[None, :] * stride_x + offs_d[:, None]
    part = tl.cdiv(tl.cdiv(depth, BLOCK_D), SPLIT) * BLOCK_D
    first = tl.program_id(2) * part
    total = tl.zeros((BLOCK_F, BLOCK_T), dtype=tl.float32)
    for start in range(first, tl.minimum(first + part, depth), BLOCK_D):
        d = start + offs_d
        if TRANSPOSED:
            row, in_depth = d.to(tl.int64)[None, :], (d < depth)[None, :]
            offs_w = tl.program_id(1) * (BLOCK_F // 32) + tl.arange(0, BLOCK_F // 32)
            inside = in_depth & (offs_f < features)[:, None]
            weight = tl.load(weight_ptr + row * stride_weight + offs_f[:, None], mask=inside, other=0.0)
            words = tl.load(
                words_ptr + row * width + offs_w[:, None], mask=in_depth & (offs_w < width)[:, None], other=0
            )
            bits = (words[:, None, :] >> tl.arange(0, 32)[None, :, None]) & 1
        else:
            row = tl.minimum(offs_f, features - 1).to(tl.int64)[:, None]
            offs_w = start // 32 + tl.arange(0, BLOCK_D // 32)
            weight_ptrs, words_ptrs = (
                weight_ptr + row * stride_weight + d[None, :],
                words_ptr + row * width + offs_w[None, :],
            )
            if EVEN_DEPTH:
                weight, words = tl.load(weight_ptrs), tl.load(words_ptrs)
            else:
                weight = tl.load(weight_ptrs, mask=d[None, :] < depth, other=0.0)
                words = tl.load(words_ptrs, mask=offs_w[None, :] < width, other=0)
            bits = (words[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1
        x = tl.load(x_ptrs + start) if EVEN_DEPTH else tl.load(x_ptrs + start, mask=d[:, None] < depth, other=0.0)
        masked = tl.where(tl.reshape(bits, (BLOCK_F, BLOCK_D)) != 0, weight.to(x.dtype), 0.0)
        total = tl.dot(masked, x, total, input_precision=PRECISION)
    if SPLIT == 1:
        if HAS_BIAS:
            total += tl.load(bias_ptr + offs_f, mask=offs_f < features, other=0.0).to(tl.float32)[:, None]
        total = _activate(total, ACTIVATION)
    line = tl.program_id(2).to(tl.int64) * tokens + offs_t
    inside = (offs_t < tokens)[:, None] & (offs_f < features)[None, :]
    result = tl.trans(total.to(out_ptr.dtype.element_ty))
    tl.store(out_ptr + line[:, None] * features + offs_f[None, :], result, mask=inside)


@triton.jit
def sum_kernel(
    parts_ptr,  # fp32 [SPLIT, count]
    bias_ptr,  # [features]
    out_ptr,  # [count] = [tokens, features]
    count,
    features,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = activation(sum of the parts, in order, + bias)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    parts_ptrs = parts_ptr + at
    for _ in tl.static_range(SPLIT):
        total += tl.load(parts_ptrs, mask=inside, other=0.0)
        parts_ptrs += count
    if HAS_BIAS:
        total += tl.load(bias_ptr + at % features, mask=inside, other=0.0).to(tl.float32)
    total = _activate(total, ACTIVATION)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def gradient_kernel(
    dy_ptr,  # [tokens, out]
    x_ptr,  # [tokens, in]
    words_ptr,  # [out, width]
    masked_ptr,  # [out, in]
    dense_ptr,  # [out, in]
    tokens,
    out_features,
    in_features,
    width,
    stride_dy,
    stride_x,
    MASKED: tl.constexpr,  # which of the two results are wanted
    DENSE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """dense = dy^T x, masked = where(m, dense, 0)."""
    offs_o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    offs_i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    in_out, in_in = (offs_o < out_features)[:, None], (offs_i < in_features)[None, :]
    total = tl.zeros((BLOCK_O, BLOCK_I), dtype=tl.float32)
    for start in range(0, tokens, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        row, in_tokens = t.to(tl.int64), t < tokens
        dy = tl.load(dy_ptr + row[None, :] * stride_dy + offs_o[:, None], mask=in_tokens[None, :] & in_out, other=0.0)
        x = tl.load(x_ptr + row[:, None] * stride_x + offs_i[None, :], mask=in_tokens[:, None] & in_in, other=0.0)
        total = tl.dot(dy, x, total, input_precision=PRECISION)
    at = offs_o.to(tl.int64)[:, None] * in_features + offs_i[None, :]
    if DENSE:
        tl.store(dense_ptr + at, total.to(dense_ptr.dtype.element_ty), mask=in_out & in_in)
    if MASKED:
        offs_w = tl.program_id(1) * (BLOCK_I // 32) + tl.arange(0, BLOCK_I // 32)
        words_at = words_ptr + offs_o.to(tl.int64)[:, None] * width + offs_w[None, :]
        words = tl.load(words_at, mask=in_out & (offs_w < width)[None, :], other=0)
        bits = (words[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1
        total = tl.where(tl.reshape(bits, (BLOCK_O, BLOCK_I)) != 0, total, 0.0)
        tl.store(masked_ptr + at, total.to(masked_ptr.dtype.element_ty), mask=in_out & in_in)
