# SPDX-License-Identifier: Apache-2.0
"""What the kernels of masked_conv2d have to give, run in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsekit.kernels.masked_conv2d import Geometry, masked_conv2d, masked_conv2d_dw, masked_conv2d_dx
from sparsekit.kernels.masked_conv2d_configs import GradientTiles, ProductTiles
from sparsekit.ops.formulas import conv, conv_backward
from sparsekit.ops.reference import pack_mask

TILES, GRADIENT = ProductTiles(32, 32, 16, 4, 2), GradientTiles(32, 32, 32, 4, 2)
# Types of x and weight: all that the kernels serve.
TYPES = [
    *[(dtype, dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)],
    *[(dtype, torch.float32) for dtype in (torch.float16, torch.bfloat16)],
]
FP32 = (torch.float32, torch.float32)
# (N, C, H, W), (out, KH, KW), geometry
CASES: dict[str, tuple[tuple[int, ...], tuple[int, int, int], dict[str, Any]]] = {
    "tiny": ((1, 1, 1, 1), (1, 1, 1), {}),
    "3x3": ((2, 5, 6, 7), (7, 3, 3), {"padding": (1, 1)}),
    "more channels than a step": ((1, 37, 5, 4), (19, 3, 3), {"padding": (1, 1)}),
    "whole tiles": ((1, 32, 4, 4), (16, 3, 3), {"padding": (1, 1)}),
    "whole flat tiles": ((2, 4, 4, 2), (16, 2, 2), {"padding": (1, 0)}),
    "1x1": ((2, 18, 3, 5), (17, 1, 1), {}),
    "1x1 strided": ((1, 18, 5, 5), (5, 1, 1), {"stride": (2, 2)}),
    "strided": ((2, 17, 7, 6), (18, 3, 3), {"stride": (2, 2), "padding": (1, 1)}),
    "stem": ((1, 3, 11, 11), (8, 7, 7), {"stride": (2, 2), "padding": (3, 3)}),
    "dilated": ((1, 17, 7, 8), (5, 3, 2), {"dilation": (2, 3), "padding": (2, 3)}),
    "all uneven": ((2, 6, 9, 7), (8, 2, 3), {"stride": (3, 2), "padding": (0, 4), "dilation": (2, 1), "groups": 2}),
    "padding beyond the filter": ((1, 2, 2, 3), (3, 2, 2), {"padding": (4, 3)}),
    "filter beyond the image": ((1, 2, 2, 2), (3, 5, 4), {"padding": (2, 1)}),
    "stride beyond the filter": ((1, 3, 9, 9), (4, 2, 2), {"stride": (4, 5)}),
    "groups": ((1, 38, 4, 4), (34, 3, 3), {"groups": 2, "padding": (1, 1)}),
    "depthwise": ((2, 5, 6, 6), (5, 3, 3), {"groups": 5, "padding": (1, 1)}),
    "depthwise with multiplier": ((1, 3, 5, 5), (6, 3, 3), {"groups": 3, "stride": (2, 1)}),
}


def case(name: str, types: tuple[torch.dtype, torch.dtype] = FP32) -> tuple[Any, ...]:
    shape, filters, geometry = CASES[name]
    return build(shape, filters, Geometry(**geometry), types)


def build(shape: tuple[int, ...], filters: tuple[int, ...], geometry: Geometry, types: tuple) -> tuple[Any, ...]:
    """x, weight, mask, bias, dy, geometry; x and dy channels_last, the weight with NaN and inf where the mask is zero."""
    size = (filters[0], shape[1] // geometry.groups, *filters[1:])
    mask = torch.rand(size) < 0.5
    poison = torch.where(torch.rand(size) < 0.5, torch.nan, torch.inf)
    weight = torch.where(mask, torch.randn(size), poison).to(types[1])
    y_shape = (shape[0], filters[0], *geometry.output(shape[2:], filters[1:]))
    x, dy = (torch.randn(s).to(types[0], memory_format=torch.channels_last) for s in (shape, y_shape))
    return x, weight, mask, torch.randn(filters[0]).to(types[0]), dy, geometry


def effective(weight: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(mask, weight, 0).to(dtype)


def plain(g: Geometry) -> tuple[list[int], list[int], list[int], int]:
    return list(g.stride), list(g.padding), list(g.dilation), g.groups


def kernels(x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None, dy: Tensor, g: Geometry, parts: int = 1):
    """y, dx, and both gradients at the weight."""
    tiles, gradient = replace(TILES, split=parts), replace(GRADIENT, split=parts)
    y = masked_conv2d(x, weight, words, bias, g, tiles=tiles)
    dx = masked_conv2d_dx(dy, weight, words, x.shape[2:], g, tiles=tiles)
    return y, dx, *masked_conv2d_dw(dy, x, words, weight, "both", g, tiles=gradient)


class Errors:
    """Errors against float64 of all results of a job, ours and those of PyTorch in the same dtype.

    The largest is compared result by result, with one rounding of fp32 to spare, because a result of a few entries is
    matter of luck; the mean square of all results together.
    """

    def __init__(self) -> None:
        self.squares = torch.zeros(2, dtype=torch.float64)

    def add(self, got: Tensor, peer: Tensor, truth: Tensor) -> None:
        assert got.dtype == peer.dtype and got.shape == peer.shape
        if truth.numel() == 0 or not truth.any():
            assert torch.equal(got, peer)
            return
        ours, theirs = ((t.double() - truth).abs() for t in (got, peer))
        assert ours.max() <= 2 * theirs.max() + torch.finfo(torch.float32).eps * truth.abs().max()
        scale = torch.finfo(got.dtype).eps * truth.square().mean().sqrt()
        self.squares += torch.stack([(e / scale).square().mean() for e in (ours, theirs)])

    def check(self) -> None:
        ours, theirs = self.squares.sqrt()
        assert ours <= 1.1 * theirs, (ours, theirs)


def compare(
    errors: Errors,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    dy: Tensor,
    g: Geometry,
    parts: int = 1,
) -> None:
    """All kernels against float64 and PyTorch in the same dtypes."""
    z, needs = effective(weight, mask, x.dtype), [True, True, False]
    y, dx, masked, dense = kernels(x, weight, pack_mask(mask), bias, dy, g, parts)
    truth = conv(x.double(), z.double(), None if bias is None else bias.double(), *plain(g))
    errors.add(y, conv(x, z, bias, *plain(g)), truth)
    peers = conv_backward(dy, x, z, *plain(g), needs)
    truths = conv_backward(dy.double(), x.double(), z.double(), *plain(g), needs)
    errors.add(dx, peers[0], truths[0])
    errors.add(dense, peers[1].to(weight.dtype), truths[1])
    assert torch.equal(masked, torch.where(mask, dense, 0))
    assert y.is_contiguous(memory_format=torch.channels_last) and dx.is_contiguous(memory_format=torch.channels_last)
    assert dense.stride() == torch.empty_like(weight).stride()


def job_all_geometries() -> None:
    errors = Errors()
    for name in CASES:
        compare(errors, *case(name))
    errors.check()


def job_all_dtypes() -> None:
    for types in TYPES:
        errors = Errors()
        for name in ("3x3", "strided", "all uneven"):
            compare(errors, *case(name, types))
        errors.check()


def job_sums_in_parts() -> None:
    # More parts than steps leaves parts without any; they have to be zero, not what lay in memory.
    errors = Errors()
    for parts in (2, 16):
        for name, types in (("3x3", FP32), ("strided", TYPES[4]), ("groups", FP32)):
            compare(errors, *case(name, types), parts=parts)
    errors.check()
    x, weight, mask, bias, dy, g = case("3x3")
    first, second = (kernels(x, weight, pack_mask(mask), bias, dy, g, 4) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def job_random_geometries() -> None:
    def pair(least: int, most: int) -> st.SearchStrategy:
        return st.tuples(st.integers(least, most), st.integers(least, most))

    errors = Errors()
    geometry = st.builds(Geometry, pair(1, 3), pair(0, 3), pair(1, 3), st.sampled_from([1, 1, 2, 3]))

    @settings(max_examples=12, deadline=None, derandomize=True, database=None)
    @given(geometry, pair(1, 3), st.integers(1, 9), st.integers(1, 9), pair(1, 7), st.sampled_from(TYPES), pair(1, 3))
    def check(g: Geometry, kernel: Any, inputs: int, outputs: int, size: Any, types: tuple, counts: Any) -> None:
        assume(min(g.output(size, kernel)) > 0)
        shape, filters = (counts[0], inputs * g.groups, *size), (outputs * g.groups, *kernel)
        x, weight, mask, bias, dy, g = build(shape, filters, g, types)
        compare(errors, x, weight, mask, bias if counts[0] % 2 else None, dy, g, counts[1])

    check()
    errors.check()


def job_larger_tiles() -> None:
    errors, g = Errors(), Geometry(padding=(1, 1))
    x, weight, mask, bias, dy, g = build((1, 70, 5, 5), (66, 3, 3), g, TYPES[4])
    words, z = pack_mask(mask), effective(weight, mask, x.dtype)
    y = masked_conv2d(x, weight, words, bias, g, tiles=ProductTiles(64, 32, 64, 4, 3, 1))
    errors.add(y, conv(x, z, bias, *plain(g)), conv(x.double(), z.double(), bias.double(), *plain(g)))
    dense = masked_conv2d_dw(dy, x, words, weight, "dense", g, tiles=GradientTiles(64, 32, 16, 4, 3, 1))[1]
    wide = [t.double() for t in (dy, x, z)]
    peer, truth = (conv_backward(*ts, *plain(g), [False, True, False])[1] for ts in ((dy, x, z), wide))
    errors.add(dense, peer.to(weight.dtype), truth)
    errors.check()


def job_empty_sides() -> None:
    for shape, filters in (((0, 3, 4, 4), (5, 3, 3)), ((2, 3, 4, 4), (0, 3, 3)), ((2, 0, 4, 4), (5, 3, 3))):
        for parts in (1, 2):
            x, weight, mask, bias, dy, g = build(shape, filters, Geometry(), FP32)
            y, dx, masked, dense = kernels(x, weight, pack_mask(mask), bias, dy, g, parts)
            assert y.shape == dy.shape and torch.equal(y, bias.view(1, -1, 1, 1).expand_as(y))
            assert torch.equal(dx, torch.zeros_like(x))
            assert torch.equal(masked, torch.zeros_like(weight)) and torch.equal(dense, masked)


def job_strides() -> None:
    errors = Errors()
    x, weight, mask, bias, dy, g = case("3x3")
    compare(errors, x.contiguous(), weight, mask, bias, dy.contiguous(), g)
    compare(errors, x, weight.to(memory_format=torch.channels_last), mask, bias, dy, g)
    turned, other = x.transpose(2, 3).contiguous().transpose(2, 3), weight.transpose(0, 3).clone().transpose(0, 3)
    compare(errors, turned, other, mask, bias, dy, g)
    wide = torch.randn(4, 10, 12, 14)
    compare(errors, wide[1:3, ::2, ::2, 1::2], weight, mask, bias.repeat(2)[::2], dy[:, :1].expand_as(dy), g)
    compare(errors, wide[:1, :5, :6, :7].expand(2, 5, 6, 7), weight, mask, bias, dy[:1, :1, :1, :1].expand_as(dy), g)
    errors.check()
    words = pack_mask(mask)
    strided = torch.stack([words, ~words], 2)[:, :, 0]
    first, second = (kernels(x, weight, w, bias, dy, g) for w in (words, strided))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def job_bits_beyond_the_last_column_count_for_nothing() -> None:
    x, weight, mask, bias, dy, g = case("3x3")
    weight = torch.where(mask, weight, torch.nan)
    clean = pack_mask(mask)
    dirty = clean.clone()
    dirty[:, 1] |= -1 << (45 - 32)
    first, second = (kernels(x, weight, w, bias, dy, g) for w in (clean, dirty))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def job_what_is_not_finite_stays_where_it_belongs() -> None:
    x, weight, mask, bias, dy, g = case("3x3")
    x[1, 2, 5, 6], dy[0, 3, 0, 0] = torch.nan, torch.inf
    weight, mask = torch.where(mask, weight, 1.0), torch.ones_like(mask)
    y, dx, _, dense = kernels(x, weight, pack_mask(mask), bias, dy, g)
    near = torch.zeros(2, 6, 7, dtype=torch.bool)
    near[1, 4:, 5:] = True
    assert torch.equal(y.isnan(), near[:, None].expand_as(y))
    assert not dx[0, :, :2, :2].isfinite().any() and dx[1].isfinite().all() and dx[0, :, 2:].isfinite().all()
    # Beyond the border of x stand zeros, and infinity times zero is no number: nothing of row 3 is finite.
    assert not dense[3].isfinite().any() and not dense[:, 2, 2, 2].isfinite().any()
    assert dense[[0, 1, 2, 4, 5, 6]][:, [0, 1, 3, 4]].isfinite().all()


def job_only_the_gradients_that_are_wanted() -> None:
    x, weight, mask, _, dy, g = case("strided", TYPES[4])
    words = pack_mask(mask)
    for parts in (1, 2):
        tiles = replace(GRADIENT, split=parts)
        both = masked_conv2d_dw(dy, x, words, weight, "both", g, tiles=tiles)
        masked, nothing = masked_conv2d_dw(dy, x, words, weight, "masked", g, tiles=tiles)
        assert torch.equal(masked, both[0]) and nothing.numel() == 0 and masked.dtype == torch.float32
        nothing, dense = masked_conv2d_dw(dy, x, words, weight, "dense", g, tiles=tiles)
        assert torch.equal(dense, both[1]) and nothing.numel() == 0


def job_errors() -> None:
    x, weight, mask, _, dy, g = case("3x3")
    words = pack_mask(mask)
    with pytest.raises(TypeError, match="masked_conv2d: no kernel for torch.float32 with a weight of torch.bfloat16"):
        masked_conv2d(x, weight.bfloat16(), words, tiles=TILES)
    with pytest.raises(TypeError, match="masked_conv2d: no kernel for torch.float64"):
        masked_conv2d(x.double(), weight.double(), words, tiles=TILES)
    with pytest.raises(ValueError, match=r"masked_conv2d_dx: words: expected int32 \(7, 2\), got torch.int32 \(7, 1\)"):
        masked_conv2d_dx(dy, weight, words[:, :1], (6, 7), g, tiles=TILES)
    with pytest.raises(ValueError, match=r"masked_conv2d: expected \[N, 5, H, W\], got shape \(2, 4, 6, 7\)"):
        masked_conv2d(x[:, :4], weight, words, tiles=TILES)
    with pytest.raises(ValueError, match="want: expected 'masked', 'dense' or 'both', got 'none'"):
        masked_conv2d_dw(dy, x, words, weight, "none", g, tiles=GRADIENT)  # pyright: ignore[reportArgumentType]
