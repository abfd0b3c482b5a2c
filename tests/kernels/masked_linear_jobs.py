# SPDX-License-Identifier: Apache-2.0
"""What the kernels of masked_linear have to give, run in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import assert_within_yardstick
from torch import Tensor
from torch.nn import functional as F

from sparsekit.kernels.masked_linear import masked_linear, masked_linear_dw, masked_linear_dx
from sparsekit.kernels.masked_linear_configs import GradientConfig, ProductConfig
from sparsekit.ops.reference import pack_mask

TILES, GRADIENT = ProductConfig(32, 16, 32, 4, 2), GradientConfig(32, 32, 16, 4, 2)
# Types of x and weight: all that the kernels serve.
TYPES = [
    *[(dtype, dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)],
    *[(dtype, torch.float32) for dtype in (torch.float16, torch.bfloat16)],
]
# (tokens, out, in): tiny, odd, prime, columns that fill no word, tiles that are just full or one more.
SHAPES = [(1, 1, 1), (3, 11, 37), (16, 32, 64), (17, 33, 65), (2, 97, 31), (40, 5, 131), (7, 64, 32)]


def split(parts: int, tiles: ProductConfig = TILES) -> ProductConfig:
    return ProductConfig(tiles.features, tiles.tokens, tiles.depth, tiles.warps, tiles.stages, parts)


def case(tokens: int, out: int, inputs: int, x_type: torch.dtype, weight_type: torch.dtype) -> tuple[Tensor, ...]:
    """x, weight, mask, bias, dy; the weight has NaN and inf wherever the mask is zero."""
    mask = torch.rand(out, inputs) < 0.5
    poison = torch.where(torch.rand(out, inputs) < 0.5, torch.nan, torch.inf)
    weight = torch.where(mask, torch.randn(out, inputs), poison).to(weight_type)
    x, bias, dy = (torch.randn(s).to(x_type) for s in ((tokens, inputs), (out,), (tokens, out)))
    return x, weight, mask, bias, dy


def effective(weight: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(mask, weight, 0).to(dtype)


def compare(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, dy: Tensor, parts: int = 1) -> None:
    """All three kernels against float64 and PyTorch in the same dtypes."""
    words, z = pack_mask(mask), effective(weight, mask, x.dtype)
    wide = z.double()
    y = masked_linear(x, weight, words, bias, config=split(parts))
    truth = F.linear(x.double(), wide, None if bias is None else bias.double())
    assert_within_yardstick(y, F.linear(x, z, bias), truth)
    dx = masked_linear_dx(dy, weight, words, config=split(parts))
    assert_within_yardstick(dx, dy @ z, dy.double() @ wide)
    masked, dense = masked_linear_dw(dy, x, words, "both", dtype=weight.dtype, config=GRADIENT)
    assert_within_yardstick(dense, (dy.t() @ x).to(weight.dtype), dy.double().t() @ x.double())
    assert torch.equal(masked, torch.where(mask, dense, 0))


def job_all_shapes_and_dtypes() -> None:
    for shape in SHAPES:
        for types in TYPES:
            compare(*case(*shape, *types))


def job_sums_in_parts() -> None:
    # More parts than steps leaves parts without any; they have to be zero, not what lay in memory.
    for parts in (2, 8):
        for types in TYPES:
            compare(*case(18, 40, 100, *types), parts=parts)
    x, weight, mask, bias, _ = case(3, 40, 100, torch.float32, torch.float32)
    runs = [masked_linear(x, weight, pack_mask(mask), bias, config=split(4)) for _ in range(2)]
    assert torch.equal(*runs)


def job_random_shapes() -> None:
    size = st.integers(1, 80)

    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(size, size, size, st.sampled_from(TYPES), st.booleans(), st.sampled_from([1, 2, 3]))
    def check(tokens: int, out: int, inputs: int, types: tuple, has_bias: bool, parts: int) -> None:
        x, weight, mask, bias, dy = case(tokens, out, inputs, *types)
        compare(x, weight, mask, bias if has_bias else None, dy, parts)

    check()


def job_larger_tiles() -> None:
    x, weight, mask, bias, dy = case(35, 150, 200, torch.bfloat16, torch.float32)
    words, z = pack_mask(mask), effective(weight, mask, x.dtype)
    for tiles in (ProductConfig(64, 16, 128, 4, 4, 1), ProductConfig(128, 32, 64, 8, 3, 2)):
        y = masked_linear(x, weight, words, bias, config=tiles)
        assert_within_yardstick(y, F.linear(x, z, bias), F.linear(x.double(), z.double(), bias.double()))
        dx = masked_linear_dx(dy, weight, words, config=tiles)
        assert_within_yardstick(dx, dy @ z, dy.double() @ z.double())
    dense = masked_linear_dw(dy, x, words, "dense", dtype=torch.float32, config=GradientConfig(64, 128, 32, 4, 3))[1]
    assert_within_yardstick(dense, (dy.t() @ x).float(), dy.double().t() @ x.double())


def job_empty_sides() -> None:
    for shape in ((0, 3, 40), (4, 0, 40), (4, 3, 0), (0, 0, 0)):
        for parts in (1, 2):
            x, weight, mask, bias, dy = case(*shape, torch.float32, torch.float32)
            words = pack_mask(mask)
            y = masked_linear(x, weight, words, bias, config=split(parts))
            assert y.shape == dy.shape and torch.equal(y, F.linear(x, effective(weight, mask, x.dtype), bias))
            assert torch.equal(masked_linear_dx(dy, weight, words, config=split(parts)), torch.zeros_like(x))
        for gradient in masked_linear_dw(dy, x, words, "both", config=GRADIENT):
            assert torch.equal(gradient, torch.zeros_like(weight))


def job_strides() -> None:
    x, weight, mask, bias, dy = case(9, 21, 45, torch.float32, torch.float32)
    compare(x.t().contiguous().t(), weight.t().contiguous().t(), mask, bias, dy.t().contiguous().t())
    wide = torch.randn(9, 2 * 45)
    compare(wide[:, 3:48], torch.cat([weight, weight], 1)[:, :45], mask, bias.repeat(2)[::2], dy[:, :1].expand(9, 21))
    compare(wide[:, ::2], torch.stack([weight, weight], 1).flatten(0, 1)[::2], mask, bias, dy[:1].expand(9, 21))
    words = pack_mask(mask)
    strided = torch.stack([words, ~words], 2)[:, :, 0]
    assert torch.equal(masked_linear(x, weight, strided, config=TILES), masked_linear(x, weight, words, config=TILES))


def job_bits_beyond_the_last_column_count_for_nothing() -> None:
    x, weight, mask, bias, dy = case(5, 40, 37, torch.float32, torch.float32)
    clean = pack_mask(mask)
    dirty = clean.clone()
    dirty[:, 1] |= -1 << 5
    results = [
        (
            masked_linear(x, weight, words, bias, config=TILES),
            masked_linear_dx(dy, weight, words, config=TILES),
            *masked_linear_dw(dy, x, words, "both", config=GRADIENT),
        )
        for words in (clean, dirty)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def job_what_is_not_finite_stays_where_it_belongs() -> None:
    x, weight, mask, bias, dy = case(5, 40, 37, torch.float32, torch.float32)
    x[3, 7], dy[4, 2] = torch.nan, torch.inf
    mask[:, 7], mask[2, :] = True, True
    weight = torch.where(mask, torch.randn_like(weight), torch.nan)
    words = pack_mask(mask)
    y = masked_linear(x, weight, words, bias, "relu", config=TILES)
    assert y[3].isnan().all() and y.isfinite().all(1).tolist() == [True, True, True, False, True]
    dx = masked_linear_dx(dy, weight, words, config=TILES)
    assert dx[4].isinf().all() and dx[:4].isfinite().all()
    masked, dense = masked_linear_dw(dy, x, words, "both", config=GRADIENT)
    assert dense[:, 7].isnan().all() and not masked[~mask].any()


def job_activations() -> None:
    x, weight, mask, bias, _ = case(9, 40, 50, torch.float32, torch.float32)
    words, z = pack_mask(mask), effective(weight, mask, x.dtype)
    for name in ("relu", "gelu", "silu"):
        function = getattr(F, name)
        truth = function(F.linear(x.double(), z.double(), bias.double()))
        for parts in (1, 2):
            y = masked_linear(x, weight, words, bias, name, config=split(parts))
            assert_within_yardstick(y, function(F.linear(x, z, bias)), truth)


def job_only_the_gradients_that_are_wanted() -> None:
    x, _, mask, _, dy = case(9, 40, 50, torch.bfloat16, torch.float32)
    words = pack_mask(mask)
    both = masked_linear_dw(dy, x, words, "both", dtype=torch.float32, config=GRADIENT)
    masked, nothing = masked_linear_dw(dy, x, words, dtype=torch.float32, config=GRADIENT)
    assert torch.equal(masked, both[0]) and nothing.numel() == 0 and masked.dtype == torch.float32
    nothing, dense = masked_linear_dw(dy, x, words, "dense", dtype=torch.float32, config=GRADIENT)
    assert torch.equal(dense, both[1]) and nothing.numel() == 0
    assert masked_linear_dw(dy, x, words, config=GRADIENT)[0].dtype == torch.bfloat16


def job_errors() -> None:
    x, weight, mask, _, dy = case(9, 40, 50, torch.float32, torch.float32)
    words = pack_mask(mask)
    with pytest.raises(TypeError, match="masked_linear: no kernel for torch.float32 with a weight of torch.bfloat16"):
        masked_linear(x, weight.bfloat16(), words, config=TILES)
    with pytest.raises(
        ValueError, match=r"masked_linear_dx: words: expected int32 \(40, 2\), got torch.int32 \(40, 1\)"
    ):
        masked_linear_dx(dy, weight, words[:, :1], config=TILES)
    with pytest.raises(ValueError, match="activation: expected None or one of .*, got 'tanh'"):
        masked_linear(x, weight, words, activation="tanh", config=TILES)
    with pytest.raises(ValueError, match="want: expected 'masked', 'dense' or 'both', got 'none'"):
        masked_linear_dw(dy, x, words, "none", config=GRADIENT)  # pyright: ignore[reportArgumentType]
