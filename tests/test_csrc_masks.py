# SPDX-License-Identifier: Apache-2.0
"""Compiled packing, counting and masking, bit by bit, on every instruction path."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from packed import layout, new_words, unpack

from sparsekit import _C

COLS = (1, 31, 32, 33, 65)
PATHS = _C.cpu_features()


def test_pack_literal() -> None:
    mask = torch.zeros(2, 33, dtype=torch.bool)
    mask[0, [0, 5, 31, 32]] = True
    mask[1, 1] = True
    words = new_words(mask.shape)
    _C.pack_mask(mask.data_ptr(), words.data_ptr(), 2, 33)
    assert words.tolist() == [[1 + 32 - 2**31, 1], [2, 0]]
    assert _C.popcount(words.data_ptr(), words.numel()) == 5


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rows", [0, 1, 3, 500])
@pytest.mark.parametrize("cols", [0, *COLS, 1000])
def test_pack_unpack_popcount(rows: int, cols: int, threads: int) -> None:
    mask = torch.rand(rows, cols) < 0.3
    words, back = new_words(mask.shape), torch.ones_like(mask)
    _C.pack_mask(mask.data_ptr(), words.data_ptr(), rows, cols, threads)
    np.testing.assert_array_equal(unpack(words, mask.shape), mask.numpy())
    _C.unpack_mask(words.data_ptr(), back.data_ptr(), rows, cols, threads)
    assert torch.equal(back, mask)
    assert _C.popcount(words.data_ptr(), words.numel(), threads) == int(mask.sum())


def packed(mask: torch.Tensor) -> torch.Tensor:
    words = new_words(mask.shape)
    _C.pack_mask(mask.data_ptr(), words.data_ptr(), *layout(mask.shape))
    return words


@pytest.mark.parametrize("force", PATHS)
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_mask_weights_copies_bits(dtype: torch.dtype, threads: int, force: str) -> None:
    shapes = ((3, 1), (2, 31), (4, 32), (7, 33), (5, 65), (0, 4), (2, 0), (600, 1031))
    info = torch.iinfo(dtype)
    weights = [torch.randint(info.min, info.max, shape, dtype=dtype) for shape in shapes]
    masks = [torch.rand(shape) < 0.4 for shape in shapes]
    outs, words = [torch.ones_like(weight) for weight in weights], [packed(mask) for mask in masks]
    sizes = list(zip(*(layout(shape) for shape in shapes), strict=True))

    def run(targets: list[torch.Tensor]) -> None:
        pointers = [[tensor.data_ptr() for tensor in group] for group in (weights, words, targets)]
        _C.mask_weights(*pointers, *map(list, sizes), info.bits // 8, threads=threads, force=force)

    run(outs)
    wanted = [weight * mask for weight, mask in zip(weights, masks, strict=True)]
    assert all(torch.equal(out, want) for out, want in zip(outs, wanted, strict=True))
    run(weights)  # in place
    assert all(torch.equal(weight, want) for weight, want in zip(weights, wanted, strict=True))


@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (4, 33, 1, 2), (2, 3, 4, 5)])
def test_mask_weights_channels_last(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape).to(memory_format=torch.channels_last)
    mask = torch.rand(shape) < 0.5
    weight[~mask] = math.nan
    out, words = torch.empty_like(weight), packed(mask)
    rows, cols = layout(shape)
    pointers = [weight.data_ptr()], [words.data_ptr()], [out.data_ptr()]
    _C.mask_weights(*pointers, [rows], [cols], 4, [shape[2] * shape[3]])
    assert torch.equal(out, torch.where(mask, weight, 0.0))


def counted(before: list[torch.Tensor], after: list[torch.Tensor], *arguments: object) -> list[list[int]]:
    counts = torch.full((len(before) + 1, 3), -7)
    pointers = [[tensor.data_ptr() for tensor in group] for group in (before, after)]
    _C.mask_counts(*pointers, [tensor.numel() for tensor in before], counts.data_ptr(), *arguments)
    assert counts[-1].tolist() == [-7] * 3
    return counts[:-1].tolist()


@pytest.mark.parametrize("force", PATHS)
@pytest.mark.parametrize("threads", [1, 3])
def test_mask_counts(threads: int, force: str) -> None:
    # One word less and more than a pair, than a task (8192 words) and than a thread's worth of tasks.
    sizes = (0, 1, 2, 3, 8191, 8192, 8193, 0, 70_001, 140_000)
    info = torch.iinfo(torch.int32)
    before, after = (
        [torch.randint(info.min, info.max, (n + 1,), dtype=torch.int32)[1:] for n in sizes] for _ in range(2)
    )

    def bits(words: torch.Tensor) -> int:
        return int(np.unpackbits(words.numpy().view(np.uint8)).sum())

    expected = [[bits(b), bits(a), bits(b & a)] for b, a in zip(before, after, strict=True)]
    assert counted(before, after, threads, force) == expected
    assert counted([], [], threads, force) == []


def test_mask_counts_refuses_bad_arguments() -> None:
    for arguments, message in (
        (([0], [], [1], 0), "mask_counts: after: expected 1 entries, got 0"),
        (([0], [0], [], 0), "mask_counts: sizes: expected 1 entries, got 0"),
        (([0], [0], [-1], 0), "mask_counts: sizes: expected sizes >= 0, got -1"),
        (([], [], [], 0, 1, "mmx"), "force: expected one of scalar"),
    ):
        with pytest.raises(ValueError, match=message):
            _C.mask_counts(*arguments)


def test_mask_weights_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match="itemsize: expected 2, 4 or 8, got 3"):
        _C.mask_weights([], [], [], [], [], 3)
    with pytest.raises(ValueError, match="spatial: expected a divisor of cols 4, got 3"):
        _C.mask_weights([0], [0], [0], [1], [4], 4, [3])
    with pytest.raises(ValueError, match="pack_mask: rows, cols: expected sizes >= 0, got -1, 2"):
        _C.pack_mask(0, 0, -1, 2)


@pytest.mark.parametrize("force", PATHS)
@pytest.mark.parametrize("threads", [1, 3])
def test_channels_last_weights(threads: int, force: str) -> None:
    # Channels around multiples of 32; positions below and above those that one instruction extracts; more rows than a task.
    sizes = [(3, c, s) for c in (1, 5, 31, 32, 33, 64, 70) for s in (2, 3, 9, 15, 16, 17, 25, 49)] + [(1500, 33, 9)]
    weights = [torch.randn(rows, positions, channels) for rows, channels, positions in sizes]
    masks = [torch.rand(rows, channels, positions) < 0.5 for rows, channels, positions in sizes]
    words = [new_words(m.flatten(1).shape) for m in masks]
    for mask, into in zip(masks, words, strict=True):
        _C.pack_mask(mask.data_ptr(), into.data_ptr(), len(mask), mask[0].numel())
        # Bits behind the last column must count for nothing.
        valid = mask[0].numel() % 32
        if valid:
            into[:, -1] |= -1 << valid
    outs = [torch.full_like(w, 7) for w in weights]
    pointers = [[t.data_ptr() for t in group] for group in (weights, words, outs)]
    cols = [m[0].numel() for m in masks]
    _C.mask_weights(*pointers, [len(m) for m in masks], cols, 4, [s for *_, s in sizes], threads, force)
    for weight, mask, out in zip(weights, masks, outs, strict=True):
        assert torch.equal(out, torch.where(mask.transpose(1, 2), weight, 0))
