# SPDX-License-Identifier: Apache-2.0
"""pack_mask, unpack_mask, popcount and mask_weight, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import pack_oracle
from torch import Tensor

from sparsekit import ops

SHAPES = [(), (0,), (1,), (31,), (32,), (33,), (65,), (0, 5), (5, 0), (1, 1), (3, 31), (3, 32), (3, 33), (2, 65)]
SHAPES += [(4, 3, 3, 3), (2, 0, 3), (7, 1, 5), (2, 3, 2, 2, 2)]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
BITWISE = {
    torch.float32: torch.int32,
    torch.float64: torch.int64,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}
shapes = st.lists(st.one_of(st.integers(0, 4), st.sampled_from([31, 32, 33])), max_size=3).map(tuple)


def random_mask(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


def random_weight(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equality that tells -0.0 from 0.0 and compares NaN payloads."""
    return a.dtype == b.dtype and torch.equal(
        a.contiguous().view(BITWISE[a.dtype]), b.contiguous().view(BITWISE[b.dtype])
    )


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        ([1], [1]),
        ([0, 1], [2]),
        ([1] * 31, [2**31 - 1]),
        ([1] * 32, [-1]),
        ([0] * 31 + [1], [-(2**31)]),
        ([1] * 32 + [1], [-1, 1]),
        ([0] * 64 + [0, 1, 1], [0, 0, 6]),
    ],
)
def test_pack_literal(bits: list[int], words: list[int]) -> None:
    mask = torch.tensor(bits, dtype=torch.bool)
    assert ops.pack_mask(mask).tolist() == [words]
    assert ops.popcount(ops.pack_mask(mask)).item() == sum(bits)


def test_bit_positions_of_a_conv_weight() -> None:
    mask = torch.zeros(3, 5, 3, 3, dtype=torch.bool)
    mask[2, 4, 1, 2] = True
    column = (4 * 3 + 1) * 3 + 2
    words = ops.pack_mask(mask)
    assert words.shape == (3, 2)
    assert words.nonzero().tolist() == [[2, column // 32]]
    assert words[2, column // 32].item() == 1 << column % 32


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pack_matches_numpy_and_unpack_inverts(shape: tuple[int, ...]) -> None:
    mask = random_mask(shape)
    words = ops.pack_mask(mask)
    assert words.dtype == torch.int32 and tuple(words.shape) == ops.words_shape(shape)
    assert np.array_equal(words.numpy(), pack_oracle(mask.numpy()))
    assert torch.equal(ops.unpack_mask(words, shape), mask)
    assert ops.unpack_mask(words, shape).is_contiguous()
    count = ops.popcount(words)
    assert count.dtype == torch.int64 and count.shape == () and count.item() == mask.sum().item()


@settings(max_examples=60)
@given(shapes, st.integers(0, 2**31), st.randoms(use_true_random=False))
def test_pack_any_shape_any_strides(shape: tuple[int, ...], seed: int, random) -> None:
    order = list(range(len(shape)))
    random.shuffle(order)
    mask = random_mask(tuple(shape[i] for i in order), seed).permute([order.index(i) for i in range(len(shape))])
    assert tuple(mask.shape) == shape
    words = ops.pack_mask(mask)
    assert np.array_equal(words.numpy(), pack_oracle(mask.numpy()))
    assert torch.equal(ops.unpack_mask(words, shape), mask)


def test_pack_of_views() -> None:
    base = random_mask((6, 70))
    for view in (base.t(), base[:, ::2], base[1:5, 3:40], base[:1].expand(4, 70)):
        assert np.array_equal(ops.pack_mask(view).numpy(), pack_oracle(view.numpy()))
    image = random_mask((4, 6, 3, 3)).to(memory_format=torch.channels_last)
    assert np.array_equal(ops.pack_mask(image).numpy(), pack_oracle(np.ascontiguousarray(image.numpy())))


def test_words_may_be_a_view_too() -> None:
    mask = random_mask((4, 90))
    words = torch.stack([ops.pack_mask(mask), ops.pack_mask(~mask)], dim=2)[..., 0]
    assert not words.is_contiguous()
    assert torch.equal(ops.unpack_mask(words, (4, 90)), mask)
    assert ops.popcount(words).item() == mask.sum().item()
    weight = random_weight((4, 90))
    assert torch.equal(ops.mask_weight(weight, words), torch.where(mask, weight, 0))


def test_popcount_of_extreme_words() -> None:
    words = torch.tensor([[-1, 0, -(2**31), 2**31 - 1]], dtype=torch.int32)
    assert ops.popcount(words).item() == 32 + 0 + 1 + 31
    many = torch.full((300, 1000), -1, dtype=torch.int32)
    assert ops.popcount(many).item() == 32 * 300_000


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mask_weight_is_where_bit_for_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    mask, weight = random_mask(shape), random_weight(shape, dtype)
    poisoned = torch.where(mask, weight, torch.tensor(torch.nan, dtype=dtype))
    got = ops.mask_weight(poisoned, ops.pack_mask(mask))
    assert same_bits(got, torch.where(mask, weight, torch.zeros((), dtype=dtype)))
    assert got.data_ptr() != poisoned.data_ptr() or not got.numel()


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf, 1e30, -0.0])
def test_nothing_leaks_from_under_a_zero_bit(poison: float) -> None:
    mask, weight = random_mask((5, 40)), random_weight((5, 40))
    got = ops.mask_weight(torch.where(mask, weight, poison), ops.pack_mask(mask))
    assert same_bits(got, torch.where(mask, weight, 0.0))
    assert not torch.signbit(got[~mask]).any()


def test_specials_under_a_one_bit_stay() -> None:
    weight = torch.tensor([[torch.nan, torch.inf, -torch.inf, -0.0, 1e-45]])
    assert same_bits(ops.mask_weight(weight, ops.pack_mask(torch.ones(1, 5, dtype=torch.bool))), weight)


@pytest.mark.parametrize("target", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mask_weight_casts_once(dtype: torch.dtype, target: torch.dtype) -> None:
    mask, weight = random_mask((3, 50)), random_weight((3, 50), dtype)
    got = ops.mask_weight(torch.where(mask, weight, torch.tensor(torch.inf, dtype=dtype)), ops.pack_mask(mask), target)
    assert same_bits(got, torch.where(mask, weight.to(target), torch.zeros((), dtype=target)))


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "expanded", "sliced"])
def test_bits_follow_logical_order_whatever_the_strides(layout: str) -> None:
    weight = random_weight((6, 4, 3, 3))
    view = {
        "channels_last": weight.to(memory_format=torch.channels_last),
        "transposed": weight.permute(3, 1, 0, 2),
        "expanded": weight[:, :1].expand(6, 4, 3, 3),
        "sliced": weight[::2, 1:, :, :2],
    }[layout]
    mask = random_mask(tuple(view.shape))
    got = ops.mask_weight(view, ops.pack_mask(mask))
    assert torch.equal(got, torch.where(mask, view, 0))
    assert got.stride() == torch.empty_like(view).stride()


def test_channels_last_3d_weight() -> None:
    weight = random_weight((4, 3, 2, 3, 2)).to(memory_format=torch.channels_last_3d)
    mask = random_mask((4, 3, 2, 3, 2))
    got = ops.mask_weight(weight, ops.pack_mask(mask))
    assert torch.equal(got, torch.where(mask, weight, 0)) and got.stride() == weight.stride()


def test_inputs_are_not_written() -> None:
    mask, weight = random_mask((3, 40)), random_weight((3, 40))
    words = ops.pack_mask(mask)
    copies = mask.clone(), weight.clone(), words.clone()
    ops.mask_weight(weight, words), ops.unpack_mask(words, (3, 40)), ops.popcount(words)
    assert torch.equal(mask, copies[0]) and torch.equal(weight, copies[1]) and torch.equal(words, copies[2])
