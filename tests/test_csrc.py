# SPDX-License-Identifier: Apache-2.0
"""Compiled top-k masks against literal tables and a stable sort, bit by bit, on every instruction path."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packed import layout, new_words, unpack
from selections import expected

from sparsekit import _C

INF, NAN = math.inf, math.nan
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
PATHS = _C.cpu_features()
COLS = (1, 31, 32, 33, 65)
KEYS, POLICIES = ("value", "magnitude"), ("error", "drop", "keep")


def select(
    scores: Sequence[torch.Tensor],
    kept: int,
    key: str = "magnitude",
    nan: str = "error",
    threads: int = 1,
    force: str = "",
) -> tuple[list[np.ndarray], int]:
    words = [new_words(score.shape) for score in scores]
    sizes = [layout(score.shape) for score in scores]
    code = _C.dtypes[str(scores[0].dtype).removeprefix("torch.")] if scores else 0
    pointers = [score.data_ptr() for score in scores], [word.data_ptr() for word in words]
    rows, cols = [size[0] for size in sizes], [size[1] for size in sizes]
    nans = _C.topk_mask(*pointers, rows, cols, kept, code, key=key, nan=nan, threads=threads, force=force)
    return [unpack(word, score.shape) for word, score in zip(words, scores, strict=True)], nans


def check(
    scores: Sequence[torch.Tensor], kept: int, key: str = "magnitude", nan: str = "error", **options: object
) -> None:
    masks, nans = select(scores, kept, key, nan, **options)  # type: ignore[arg-type]
    want, bad = expected(scores, kept, key, nan)
    assert nans == bad
    for got, mask in zip(masks, want, strict=True):
        np.testing.assert_array_equal(got, mask)


@pytest.mark.parametrize("force", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("key", "nan", "kept", "scores", "mask"),
    [
        ("magnitude", "error", 2, [3, -4, 1, 2], "1100"),
        ("value", "error", 2, [3, -4, 1, 2], "1001"),
        ("value", "error", 2, [1, 1, 1, 1], "1100"),
        ("value", "error", 2, [-0.0, 0.0, -0.0, -1], "1100"),
        ("value", "error", 1, [-1, -0.0, 0.0, -2], "0100"),
        ("magnitude", "error", 1, [-0.0, 0.0], "10"),
        ("value", "error", 2, [-INF, INF, 65504, -65504], "0110"),
        ("magnitude", "error", 2, [65504, -INF, INF, 0], "0110"),
        ("value", "error", 2, [NAN, 1, -INF, 2], "0101"),
        ("value", "drop", 4, [NAN, 1, -INF, -NAN], "0110"),
        ("magnitude", "drop", 2, [NAN, 0, NAN, -0.0], "0101"),
        ("value", "keep", 2, [INF, NAN, 1, -NAN], "0101"),
        ("magnitude", "keep", 1, [INF, -NAN, NAN], "010"),
        ("value", "drop", 3, [NAN, NAN, NAN], "000"),
        ("value", "keep", 0, [NAN, 1], "00"),
        ("value", "error", 2, [-2, -3], "11"),
    ],
)
def test_topk_table(
    key: str, nan: str, kept: int, scores: list[float], mask: str, dtype: torch.dtype, force: str
) -> None:
    (got,), _ = select([torch.tensor(scores, dtype=dtype)], kept, key, nan, force=force)
    assert "".join("01"[int(bit)] for bit in got) == mask


@pytest.mark.parametrize("force", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_subnormals_are_ordered(dtype: torch.dtype, force: str) -> None:
    tiny = torch.finfo(dtype).smallest_normal * torch.tensor([0.25, -0.5, 0.0, 0.75, -1.0], dtype=dtype)
    assert tiny[0] != 0
    assert select([tiny], 2, "value", force=force)[0][0].tolist() == [True, False, False, True, False]
    assert select([tiny], 2, "magnitude", force=force)[0][0].tolist() == [False, False, False, True, True]


def test_ties_across_tensors_keep_the_first() -> None:
    scores = [torch.ones(2, 3), torch.full((3,), 2.0), torch.ones(1, 1, 5)]
    masks, _ = select(scores, 5)
    assert [int(mask.sum()) for mask in masks] == [2, 3, 0]
    assert masks[0].reshape(-1).tolist() == [True, True, False, False, False, False]
    masks, _ = select(scores, 11)
    assert masks[2].reshape(-1).tolist() == [True, True, False, False, False]


SPECIAL = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, INF, -INF, NAN, -NAN, 2.0**-24, -(2.0**-24)])
SHAPES = st.one_of(
    st.tuples(st.integers(0, 3), st.sampled_from((0, *COLS))),
    st.tuples(st.integers(0, 70)),
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
)


@given(data=st.data())
def test_topk_equals_stable_sort(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    values = SPECIAL if data.draw(st.booleans()) else st.one_of(SPECIAL, st.floats(-4, 4, width=16))
    scores = []
    for shape in data.draw(st.lists(SHAPES, max_size=4)):
        pool = torch.tensor(data.draw(st.lists(values, min_size=1, max_size=12)), dtype=dtype)
        scores.append(pool[torch.randint(len(pool), shape)])
    total = sum(score.numel() for score in scores)
    kept = data.draw(st.one_of(st.sampled_from((0, total)), st.integers(0, total)))
    key, nan = data.draw(st.sampled_from(KEYS)), data.draw(st.sampled_from(POLICIES))
    check(scores, kept, key, nan, threads=data.draw(st.integers(1, 4)), force=data.draw(st.sampled_from(PATHS)))


CHANGES = {
    "normal": lambda s: s,
    "zeros": torch.zeros_like,
    "two values": lambda s: (s > 0.5).to(s.dtype),
    "mostly zero": lambda s: torch.where(s.abs() < 1.6, 0.0, s),
    "few levels": lambda s: (s * 2).round() / 2,
    "sorted": lambda s: s.reshape(-1).sort().values.reshape(s.shape),
    "heavy tail": lambda s: s**9,
    "nan": lambda s: torch.where(s.abs() < 0.3, NAN, s),
    "almost all nan": lambda s: torch.where(s < 2, NAN, s),
    "all nan": lambda s: torch.full_like(s, NAN),
    "infinite": lambda s: torch.where(s.abs() > 0.5, s * INF, s),
}


@pytest.mark.parametrize("force", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", CHANGES)
def test_topk_with_sample(kind: str, dtype: torch.dtype, force: str) -> None:
    shapes = ((64, 27), (64, 64, 3, 3), (10, 64), (33,), (5, 65), (3, 0))
    scores = [CHANGES[kind](torch.randn(shape)).to(dtype) for shape in shapes]
    total = sum(score.numel() for score in scores)
    ones = sum(int((score > 0).sum()) for score in scores)
    for kept in (0, 1, total // 50, total // 5, ones, total - 3, total):
        for key, nan in (("magnitude", "drop"), ("value", "keep"), ("value", "error")):
            check(scores, kept, key, nan, force=force)


@pytest.mark.parametrize(("at_sample", "elsewhere"), [(0.0, 1.0), (2.0, 1.0), (2.0, 0.0)])
@pytest.mark.parametrize("kept", [100, 3000, 15000, 29000])
def test_topk_when_the_sample_misleads(at_sample: float, elsewhere: float, kept: int) -> None:
    total, order = 30000, 10
    steps = np.arange(1 << order, dtype=np.uint64)
    scatter = (steps * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
    places = ((steps * np.uint64(total)) >> np.uint64(order)) + ((scatter * np.uint64(total >> order)) >> np.uint64(32))
    scores = elsewhere * (1 + torch.rand(total))
    scores[torch.from_numpy(places.astype(np.int64))] = at_sample
    check([scores], kept)


def test_thread_count_does_not_matter() -> None:
    scores = [torch.randn(400, 1031), torch.randn(700, 1024).round(decimals=2)]
    want, _ = expected(scores, 220_000, "magnitude", "error")
    for threads in (1, 2, 3, 4):
        masks, _ = select(scores, 220_000, threads=threads)
        for got, mask in zip(masks, want, strict=True):
            np.testing.assert_array_equal(got, mask)
    levels = [score.round() for score in scores]
    for threads in (1, 4):
        check(levels, 300_001, threads=threads)


@pytest.mark.parametrize("force", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "cols"), [(0, 5), (3, 0), *((7, cols) for cols in COLS), (40, 576), (3, 4099)])
def test_rows_equal_stable_sorts(rows: int, cols: int, dtype: torch.dtype, force: str) -> None:
    scores = torch.randn(rows, cols).mul(20).round().to(dtype)
    scores[:, ::7] = NAN
    for kept in sorted({0, min(1, cols), cols // 3, cols}):
        for key, nan in (("magnitude", "drop"), ("value", "keep")):
            words = new_words(scores.shape)
            pointers = scores.data_ptr(), words.data_ptr()
            code = _C.dtypes[str(dtype).removeprefix("torch.")]
            nans = _C.topk_mask_rows(*pointers, rows, cols, kept, code, key=key, nan=nan, threads=2, force=force)
            want = [expected([row], kept, key, nan)[0][0] for row in scores]
            assert nans == int(scores.isnan().sum())
            np.testing.assert_array_equal(unpack(words, scores.shape), np.array(want, dtype=bool).reshape(rows, cols))


def test_topk_refuses_bad_arguments() -> None:
    score, words = torch.zeros(4), new_words((4,))
    base = ([score.data_ptr()], [words.data_ptr()], [1], [4])
    with pytest.raises(ValueError, match="topk_mask: kept: expected 0 to 4, got 5"):
        _C.topk_mask(*base, 5, 0)
    with pytest.raises(ValueError, match="topk_mask: words: expected 1 entries, got 0"):
        _C.topk_mask(base[0], [], [1], [4], 1, 0)
    with pytest.raises(ValueError, match="key: expected one of magnitude, value, got abs"):
        _C.topk_mask(*base, 1, 0, key="abs")
    with pytest.raises(ValueError, match="nan: expected one of drop, error, keep, got raise"):
        _C.topk_mask(*base, 1, 0, nan="raise")
    with pytest.raises(ValueError, match="force: expected one of scalar"):
        _C.topk_mask(*base, 1, 0, force="mmx")
    with pytest.raises(ValueError, match="dtype: expected a code"):
        _C.topk_mask(*base, 1, 7)
    with pytest.raises(ValueError, match="topk_mask_rows: kept: expected 0 to 4, got -1"):
        _C.topk_mask_rows(score.data_ptr(), words.data_ptr(), 1, 4, -1, 0)
