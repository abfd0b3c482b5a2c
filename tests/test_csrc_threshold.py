# SPDX-License-Identifier: Apache-2.0
"""Compiled histograms and threshold masks on raw memory: every instruction path, any thread count, refused arguments."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from packed import layout, new_words, unpack

from sparsekit import _C
from sparsekit.ops.threshold import order_keys

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PATHS = _C.cpu_features()


def code(dtype: torch.dtype) -> int:
    return _C.dtypes[str(dtype).removeprefix("torch.")]


def histogram(scores: Sequence[torch.Tensor], first: int, shift: int, bins: int, **options) -> np.ndarray:
    counts = torch.full((len(scores), bins), -7)
    pointers, sizes = [s.data_ptr() for s in scores], [s.numel() for s in scores]
    _C.key_histogram(pointers, sizes, counts.data_ptr(), first, shift, bins, code(scores[0].dtype), **options)
    return counts.numpy()


def mask(scores: Sequence[torch.Tensor], limit: int, ties: Sequence[int], **options) -> list[np.ndarray]:
    words = [new_words(s.shape) for s in scores]
    rows, cols = [list(x) for x in zip(*(layout(s.shape) for s in scores), strict=True)]
    pointers = [s.data_ptr() for s in scores], [w.data_ptr() for w in words]
    _C.mask_at_threshold(*pointers, rows, cols, limit, list(ties), code(scores[0].dtype), **options)
    return [unpack(w, s.shape) for w, s in zip(words, scores, strict=True)]


def draw(dtype: torch.dtype, levels: int) -> list[torch.Tensor]:
    scores = [torch.randn(shape) for shape in ((70, 2049), (3, 33), (150_000,), (0, 4), (5, 31))]
    scores = [s.mul(levels).round() / levels if levels else s for s in scores]
    for s in scores:
        s[s > 2.5] = math.nan
    return [s.to(dtype) for s in scores]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("levels", [0, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_lists(dtype: torch.dtype, levels: int, threads: int) -> None:
    scores, bits = draw(dtype, levels), 8 * dtype.itemsize
    for key, nan in (("value", "keep"), ("magnitude", "drop")):
        keys = [order_keys(s, key, nan).numpy() for s in scores]
        middle = int(np.sort(keys[0])[len(keys[0]) // 3])
        ranges = [(middle, max(bits - 22, 0), 2048), (middle, 0, 1), (middle - 5, 2, 300), (0, bits - 12, 2048)]
        for first, shift, bins in ranges:
            want = np.zeros((len(scores), bins), dtype=np.int64)
            for row, part in zip(want, keys, strict=True):
                inside = part[part >= first]
                digits = (inside - first).astype(np.uint64) >> np.uint64(shift)
                row += np.bincount(digits[digits < bins].astype(np.int64), minlength=bins)
            for force in PATHS:
                got = histogram(scores, first, shift, bins, key=key, nan=nan, threads=threads, force=force)
                np.testing.assert_array_equal(got, want)
        ties = [1234, 1, 70_000, 5, 0]
        for force in PATHS:
            got = mask(scores, middle, ties, key=key, nan=nan, threads=threads, force=force)
            for part, keep, left in zip(keys, got, ties, strict=True):
                equal = part == middle
                np.testing.assert_array_equal(keep.reshape(-1), (part > middle) | (equal & (np.cumsum(equal) <= left)))


def test_bad_arguments_are_refused() -> None:
    score, words, counts = torch.zeros(4), new_words((4,)), torch.full((4,), -7)
    scores, sizes = [score.data_ptr()], [4]
    at = counts.data_ptr()
    bad = [
        ((scores, [], at, 0, 0, 4, 0), "key_histogram: sizes: expected 1 entries, got 0"),
        ((scores, [-1], at, 0, 0, 4, 0), "key_histogram: rows, cols: expected sizes >= 0"),
        ((scores, sizes, at, -(2**31), 0, 4, 0), "key_histogram: first: expected a key from -2147483647 to"),
        ((scores, sizes, at, 2**31 - 1, 0, 4, 0), "to 2147483646, got 2147483647"),
        ((scores, sizes, at, 2**15 - 1, 0, 4, 2), "expected a key from -32767 to 32766, got 32767"),
        ((scores, sizes, at, -(2**63), 0, 4, 1), "expected a key from -9223372036854775807 to"),
        ((scores, sizes, at, 0, 32, 4, 0), "key_histogram: shift: expected 0 to the bits of a score - 1"),
        ((scores, sizes, at, 0, -1, 4, 0), "key_histogram: shift"),
        ((scores, sizes, at, 0, 0, 0, 0), "key_histogram: bins: expected 1 to 2048, got 0"),
        ((scores, sizes, at, 0, 0, 2049, 0), "key_histogram: bins: expected 1 to 2048, got 2049"),
        ((scores, sizes, at, 0, 0, 4, 0, "abs"), "key_histogram: key: expected one of magnitude, value, got abs"),
    ]
    for arguments, text in bad:
        with pytest.raises(ValueError, match=text):
            _C.key_histogram(*arguments)
    base = (scores, [words.data_ptr()], [1], [4])
    bad = [
        ((scores, [], [1], [4], 0, [0], 0), "mask_at_threshold: words: expected 1 entries, got 0"),
        ((*base, 0, [], 0), "mask_at_threshold: ties: expected 1 entries, got 0"),
        ((*base, 0, [-1], 0), "mask_at_threshold: ties: expected numbers >= 0, got -1"),
        ((*base, -(2**31), [0], 0), "mask_at_threshold: threshold: expected a key from"),
        ((*base, 0, [0], 0, "value", "raise"), "mask_at_threshold: nan: expected one of drop, error, keep, got raise"),
    ]
    for arguments, text in bad:
        with pytest.raises(ValueError, match=text):
            _C.mask_at_threshold(*arguments)
    assert counts.tolist() == [-7] * 4 and words.tolist() == [[-1]]
