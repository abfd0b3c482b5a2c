# SPDX-License-Identifier: Apache-2.0
"""mask_counts, mask_iou, flip_rate and regrow_count against numpy, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import unpack
from torch import Tensor

from sparsekit import ops
from sparsekit.ops import reference

SHAPES = [(), (0,), (31,), (33,), (3, 32), (2, 65), (0, 5), (5, 0), (4, 3, 3, 3), (300, 1031)]
shapes = st.lists(st.one_of(st.integers(0, 4), st.sampled_from([31, 32, 33])), max_size=3).map(tuple)


def random_masks(sizes: list[tuple[int, ...]], seed: int, density: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(shape, generator=generator) < density for shape in sizes]


def check(sizes: list[tuple[int, ...]], before: list[Tensor], after: list[Tensor]) -> None:
    """Every figure of the two lists of words against their bits in numpy."""
    pairs = [
        (unpack(b.contiguous(), s), unpack(a.contiguous(), s)) for b, a, s in zip(before, after, sizes, strict=True)
    ]
    expected = [[int(b.sum()), int(a.sum()), int((b & a).sum())] for b, a in pairs]
    counts = ops.mask_counts(before, after)
    assert counts.dtype == torch.int64 and counts.shape == (len(sizes), 3) and counts.tolist() == expected
    old, new = (np.concatenate([p[i].reshape(-1) for p in pairs] or [np.zeros(0, bool)]) for i in (0, 1))
    either, numel = int((old | new).sum()), len(old)
    iou, rate, back = (
        ops.mask_iou(before, after),
        ops.flip_rate(before, after, numel=numel),
        ops.regrow_count(before, after),
    )
    assert [(f.shape, f.dtype) for f in (iou, rate, back)] == [((), torch.float64)] * 2 + [((), torch.int64)]
    assert iou.item() == (int((old & new).sum()) / either if either else 1.0)
    assert rate.item() == (int((old != new).sum()) / numel if numel else 0.0)
    assert back.item() == int((~old & new).sum())


def test_literal() -> None:
    before, after = (torch.tensor([[bits]], dtype=torch.int32) for bits in (0b1101, 0b0111))
    assert ops.mask_counts(before, after).tolist() == [[3, 3, 2]]
    assert ops.mask_iou(before, after).item() == 0.5
    assert ops.flip_rate(before, after, numel=4).item() == 0.5
    assert ops.flip_rate(before, after, numel=np.int64(4)).item() == 0.5  # pyright: ignore[reportArgumentType]
    assert ops.regrow_count(before, after).item() == 1 == ops.regrow_count([after], [before]).item()
    extremes = torch.tensor([[-1, 0, -(2**31), 2**31 - 1]], dtype=torch.int32)
    assert ops.mask_counts(extremes, extremes.flip(1)).tolist() == [[64, 64, 62]]


@pytest.mark.parametrize("densities", [(0.5, 0.5), (0.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.02, 0.05)], ids=str)
def test_all_kinds_of_shapes_at_once(densities: tuple[float, float]) -> None:
    before, after = (
        [ops.pack_mask(m) for m in random_masks(SHAPES, seed, density)] for seed, density in enumerate(densities)
    )
    check(SHAPES, before, after)


@settings(max_examples=40)
@given(st.lists(shapes, max_size=5), st.integers(0, 2**31))
def test_any_list(sizes: list[tuple[int, ...]], seed: int) -> None:
    before, after = ([ops.pack_mask(m) for m in random_masks(sizes, seed + i, 0.4)] for i in (0, 1))
    check(sizes, before, after)


def test_many_masks() -> None:
    sizes = [(i % 7, i) for i in range(161)]
    before, after = ([ops.pack_mask(m) for m in random_masks(sizes, i, 0.3)] for i in (0, 1))
    check(sizes, before, after)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_matter(threads: int) -> None:
    words = [torch.randint(-(2**31), 2**31 - 1, (1, n), dtype=torch.int32) for n in (200_003, 5, 150_000)]
    others, had = [w.roll(1, 1) for w in words], torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        counts = ops.mask_counts(words, others)
    finally:
        torch.set_num_threads(had)
    assert torch.equal(counts, reference.mask_counts(words, others))


def test_words_may_be_views_and_are_not_written() -> None:
    sizes = [(4, 90), (4, 90)]
    masks = random_masks([*sizes, *sizes], 3, 0.5)
    stacked = torch.stack([ops.pack_mask(m) for m in masks], dim=2)
    before, after, copy = list(stacked.unbind(2)[:2]), list(stacked.unbind(2)[2:]), stacked.clone()
    assert not before[0].is_contiguous()
    check(sizes, before, after)
    assert torch.equal(stacked, copy)


def test_nothing_to_compare() -> None:
    check([], [], [])
    assert ops.mask_counts([], []).shape == (0, 3)
