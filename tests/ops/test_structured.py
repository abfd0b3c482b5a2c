# SPDX-License-Identifier: Apache-2.0
"""Unit scores, expansion of units, N:M and transposable masks: tables by hand, then numpy oracles, bit by bit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import pack_oracle, rows_cols, topk_oracle
from scipy.optimize import LinearConstraint, milp
from structured_oracles import (
    all_tile_masks,
    best_of_groups,
    best_tiles_oracle,
    ordered_unit_scores,
    unit_numbers,
    unit_rectangles,
)
from torch import Tensor

from sparsekit import _C, nm, ops
from sparsekit.ops import structured_native, structured_reference

NAN, INF = math.nan, math.inf
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
PATHS = _C.cpu_features()
NORMS = [("value", 2.0), ("magnitude", 1.0), ("magnitude", 2.0), ("magnitude", INF)]
# Ragged words, one column per unit, unit edges inside words, several strips, chunks and rounds of lanes.
CASES: list[tuple[tuple[int, ...], Any]] = [
    ((3, 1), "filter"),
    ((5, 300), "filter"),
    ((2, 20000), "filter"),
    ((6, 5, 3, 3), "filter"),
    ((4, 33), "channel"),
    ((70, 7), "channel"),
    ((40, 5, 3, 3), "channel"),
    ((9, 6, 1, 1), "channel"),
    ((3, 2, 17, 19), "channel"),
    ((8300, 2), "channel"),
    ((7, 33), (2, 3)),
    ((70, 300), (40, 129)),
    ((9, 70), (4, 4)),
    ((5, 600), (3, 257)),
    ((3, 4, 3, 3), (2, 7)),
    ((65,), (1, 16)),
    ((65,), (4, 100)),
    ((33, 1100), (33, 5)),
]


def random(shape: Sequence[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal scores over nine decades, so that the order of a sum shows in its last bits."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.pow(10.0, torch.randint(-4, 5, tuple(shape), generator=generator))
    return (torch.randn(tuple(shape), generator=generator) * spread).to(dtype)


def crowded(shape: Sequence[int], dtype: torch.dtype = torch.float32, seed: int = 0, special: bool = False) -> Tensor:
    """Few values, hence many ties; with NaN, infinities and both zeros among them if special."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor([-2.0, -1.0, -0.0, 0.0, 1.0, 2.0] + [NAN, INF, -INF] * special)
    return values[torch.randint(len(values), tuple(shape), generator=generator)].to(dtype)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equality of dtype, shape and bits; every NaN counts as the same."""
    wide = torch.int64 if a.dtype == torch.float64 else torch.int32
    return (
        a.dtype == b.dtype
        and torch.equal(a.nan_to_num(7.5).view(wide), b.nan_to_num(7.5).view(wide))
        and torch.equal(a.isnan(), b.isnan())
    )


def unpacked(words: Tensor, shape: Sequence[int]) -> Tensor:
    """Dense mask of words whose padding bits are zero."""
    mask = ops.unpack_mask(words, shape)
    assert torch.equal(words, torch.from_numpy(pack_oracle(mask.numpy())))
    return mask


@pytest.mark.parametrize(
    ("groups", "p", "magnitude", "value"),
    [
        ("filter", 2.0, [5.0, 3.0], [-1.0, 1.0]),
        ("filter", 1, [7.0, 5.0], [-1.0, 1.0]),
        ("filter", INF, [4.0, 2.0], [-1.0, 1.0]),
        ("channel", 2.0, [math.sqrt(10), math.sqrt(20), 2.0], [4.0, -2.0, -2.0]),
        ("channel", 1.0, [4.0, 6.0, 2.0], [4.0, -2.0, -2.0]),
        ("channel", 3.0, [28 ** (1 / 3), 72 ** (1 / 3), 2.0], [4.0, -2.0, -2.0]),
        ((1, 2), 2.0, [[5.0, 0.0], [math.sqrt(5), 2.0]], [[-1.0, 0.0], [3.0, -2.0]]),
        ((9, 9), 0.5, [[(math.sqrt(3) + 3 + 2 * math.sqrt(2)) ** 2]], [[0.0]]),
    ],
)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_group_scores_table(groups: Any, p: float, magnitude: list, value: list, dtype: torch.dtype) -> None:
    scores = torch.tensor([[3.0, -4.0, 0.0], [1.0, 2.0, -2.0]], dtype=dtype)
    out = torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(ops.group_scores(scores, groups, p=p), torch.tensor(magnitude, dtype=out))
    assert torch.equal(ops.group_scores(scores, groups, p=p, key="value"), torch.tensor(value, dtype=out))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("shape", "groups"), CASES, ids=str)
def test_group_scores_are_added_in_the_documented_order(
    shape: tuple[int, ...], groups: Any, dtype: torch.dtype
) -> None:
    scores = random(shape, dtype, 1)
    for key, p in NORMS:
        assert same_bits(ops.group_scores(scores, groups, p=p, key=key), ordered_unit_scores(scores, groups, p, key))


def raw_group_scores(scores: Tensor, groups: Any, p: float, key: str, threads: int, force: str) -> Tensor:
    unit_shape, h, w = unit_rectangles(scores.shape, groups)
    out = torch.full(unit_shape, NAN, dtype=torch.promote_types(scores.dtype, torch.float32))
    code, sizes = _C.dtypes[str(scores.dtype).removeprefix("torch.")], (*rows_cols(scores.shape), h, w)
    _C.group_scores(scores.data_ptr(), out.data_ptr(), *sizes, code, p, key, threads, force)
    return out


@pytest.mark.parametrize("force", PATHS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_group_scores_do_not_depend_on_threads_or_instructions(dtype: torch.dtype, force: str) -> None:
    for shape, groups in CASES:
        scores = random(shape, dtype, 2)
        for key, p in NORMS:
            expected = ops.group_scores(scores, groups, p=p, key=key)
            for threads in (1, 3):
                assert same_bits(raw_group_scores(scores, groups, p, key, threads, force), expected)


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 3.0, 7.5, INF])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_group_scores_are_the_rounded_norms(dtype: torch.dtype, p: float) -> None:
    # Sums in float64 leave a float32 result one rounding, which may fall to the other side of a tie; a float64 result is off
    # by as many roundings as lie on a path through the sum.
    for shape, groups in CASES:
        scores = random(shape, dtype, 3)
        units = unit_numbers(shape, groups).reshape(-1)
        found = ops.group_scores(scores, groups, p=p).reshape(-1)
        terms = np.abs(scores.to(torch.float64).numpy().astype(np.longdouble).reshape(-1))
        for unit in range(0, found.numel(), max(1, found.numel() // 7)):
            own = terms[units == unit]
            truth = own.max() if p == INF else (own ** np.longdouble(p)).sum() ** np.longdouble(1 / p)
            if dtype == torch.float64:
                assert abs(np.longdouble(found[unit].item()) - truth) <= 40 * max(1.0, 1 / p) * 2.0**-53 * truth
            else:
                rounded = np.float32(truth)
                assert abs(np.float32(found[unit].item()) - rounded) <= np.spacing(rounded)


@pytest.mark.parametrize("p", [0.7, 3.0])
def test_other_norms_agree_with_the_oracle_to_the_last_bits(p: float) -> None:
    for shape, groups in CASES:
        scores = random(shape, torch.float64, 4)
        found, expected = ops.group_scores(scores, groups, p=p), ordered_unit_scores(scores, groups, p, "magnitude")
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("shape", "groups"), CASES, ids=str)
def test_the_reference_gives_the_same_scores_up_to_rounding(shape: tuple[int, ...], groups: Any) -> None:
    for dtype, (key, p) in itertools.product(FLOATS, [*NORMS, ("magnitude", 3.0)]):
        scores = random(shape, dtype, 5)
        units = ops.structured.units_of("test", shape, groups)
        found = structured_reference.group_scores(scores, units.grid, units.unit, p, key).reshape(units.shape)
        expected = ops.group_scores(scores, groups, p=p, key=key)
        assert found.dtype == expected.dtype
        # Signed sums cancel; what they are exact to is the sum of magnitudes.
        size = ops.group_scores(scores, groups, p=1 if key == "value" else p).double()
        eps = 1e-14 if dtype == torch.float64 else 1.2e-7
        assert ((found.double() - expected.double()).abs() <= eps * size).all()


def test_special_scores() -> None:
    scores = torch.tensor([[1.0, INF, -INF], [NAN, 1.0, 2.0], [-0.0, -0.0, -0.0], [INF, NAN, 1.0], [INF, 1.0, INF]])
    for p in (1, 2, INF, 3):
        norms = ops.group_scores(scores, "filter", p=p)
        assert norms[[0, 4]].tolist() == [INF, INF] and norms[[1, 3]].isnan().all() and norms[2] == 0
        assert norms.view(torch.int32)[1] == norms.view(torch.int32)[3] == 0x7FC00000
    sums = ops.group_scores(scores, "filter", key="value")
    assert sums[[0, 1, 3]].isnan().all() and sums[2] == 0 and sums[4] == INF
    assert set(sums.view(torch.int32)[[0, 1, 3]].tolist()) == {0x7FC00000}
    assert ops.group_scores(scores, "channel", p=INF).isnan().tolist() == [True, True, False]
    # NaN spreads over its block only, whatever place it has.
    for at in range(12):
        one = torch.ones(3, 4)
        one.view(-1)[at] = NAN
        for p in (1, 2, INF, 0.5):
            row, col = divmod(at, 4)
            expected = torch.zeros(2, 2, dtype=torch.bool)
            expected[row // 2, col // 3] = True
            assert torch.equal(ops.group_scores(one, (2, 3), p=p).isnan(), expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_extreme_scores(dtype: torch.dtype) -> None:
    info, out = torch.finfo(dtype), torch.promote_types(dtype, torch.float32)
    tiny = torch.full((1, 4), info.smallest_normal / 4, dtype=dtype)  # subnormal
    assert tiny[0, 0] > 0
    assert ops.group_scores(tiny, "filter", p=INF)[0] == tiny[0, 0].to(out)
    assert ops.group_scores(tiny, "filter", p=1)[0] == 4 * tiny[0, 0].to(out)
    if dtype != torch.float64:
        assert ops.group_scores(tiny.to(dtype), "filter", p=2)[0] == 2 * tiny[0, 0].to(out)
        huge = torch.full((1, 4), info.max, dtype=dtype)
        assert ops.group_scores(huge, "filter", p=2)[0] == 2 * huge[0, 0].to(out)
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.float16)
    for values in (every, every.view(torch.bfloat16)):
        found = ops.group_scores(values.reshape(-1, 1), "filter", key="value")
        assert same_bits(found, values.float() + 0.0)  # exact for all 16-bit numbers


def test_flushing_subnormal_numbers_leaves_small_halves() -> None:
    """They are subnormal in 16 bits, but not in the precision of the sums."""
    halves = torch.arange(64 * 32, dtype=torch.int16).view(torch.float16).reshape(32, 64)
    scores, tiles = ops.group_scores(halves, "filter"), ops.transposable_nm_mask([halves]).masks[0]
    assert torch.set_flush_denormal(True)
    try:
        flushed, flushed_tiles = ops.group_scores(halves, "filter"), ops.transposable_nm_mask([halves]).masks[0]
    finally:
        torch.set_flush_denormal(False)
    assert (scores > 0).all() and torch.equal(flushed, scores) and torch.equal(flushed_tiles, tiles)


def test_strides_and_offsets_do_not_matter() -> None:
    scores = random((8, 6, 3, 3), seed=6)
    views = [
        scores.to(memory_format=torch.channels_last),
        scores.transpose(0, 1).contiguous().transpose(0, 1),
        torch.cat([torch.zeros(1), scores.reshape(-1)])[1:].view(scores.shape),
        scores.flip(0).flip(0),
    ]
    for view, groups in itertools.product(views, ["filter", "channel", (2, 7)]):
        assert same_bits(ops.group_scores(view, groups), ops.group_scores(scores, groups))
        assert not ops.group_scores(view.requires_grad_() if view.is_leaf else view, groups).requires_grad
    for view in views:
        assert torch.equal(ops.nm_mask([view], 1, 3).masks[0], ops.nm_mask([scores], 1, 3).masks[0])
        square = view[:, :4]
        assert torch.equal(
            ops.transposable_nm_mask([square]).masks[0],
            ops.transposable_nm_mask([scores[:, :4].contiguous()]).masks[0],
        )
    broadcast = torch.tensor([[1.0], [2.0]]).expand(2, 40)
    assert ops.group_scores(broadcast, "filter", p=1).tolist() == [40.0, 80.0]


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4, 0, 3), (4, 4, 0), (0, 0)], ids=str)
def test_empty_weights(shape: tuple[int, ...]) -> None:
    scores = torch.zeros(shape)
    for groups in ("filter", "channel", (3, 3)):
        units = ops.group_scores(scores, groups)
        assert units.shape == unit_rectangles(shape, groups)[0] and not units.any()
        kept = ops.pack_mask(torch.ones(units.shape, dtype=torch.bool))
        assert torch.equal(ops.expand_units(kept, shape, groups), ops.pack_mask(torch.ones(shape, dtype=torch.bool)))
    for selection in (ops.nm_mask([scores], 1, 2), ops.transposable_nm_mask([scores])):
        assert selection.masks[0].shape == ops.words_shape(shape) and not selection.invalid
    assert ops.nm_mask([], 1, 2).masks == [] and ops.transposable_nm_mask([]).masks == []


@pytest.mark.parametrize(("shape", "groups"), CASES, ids=str)
def test_masks_are_those_of_a_stable_sort_of_the_scores(shape: tuple[int, ...], groups: Any) -> None:
    for scores in (random(shape, seed=7), crowded(shape, seed=8)):
        units = ops.group_scores(scores, groups)
        for kept in {0, 1, units.numel() // 2, units.numel()}:
            words = ops.topk_mask([units], kept, key="value").masks[0]
            chosen = topk_oracle([units], kept, "value")[0][0]
            expected = chosen.reshape(-1).numpy()[unit_numbers(shape, groups)]
            assert np.array_equal(unpacked(ops.expand_units(words, shape, groups), shape).numpy(), expected)


shapes = st.one_of(
    st.tuples(st.integers(1, 9), st.sampled_from([1, 5, 31, 32, 33, 64, 100, 257])),
    st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(1, 4), st.integers(1, 4)),
)
blocks = st.tuples(st.sampled_from([1, 2, 3, 4, 8, 50]), st.sampled_from([1, 2, 3, 4, 7, 16, 31, 32, 33, 64, 500]))


@settings(max_examples=150)
@given(shape=shapes, groups=st.one_of(st.sampled_from(["filter", "channel"]), blocks), seed=st.integers(0, 10**6))
def test_units_expand_to_their_weights(shape: tuple[int, ...], groups: Any, seed: int) -> None:
    units = ops.structured.units_of("test", shape, groups)
    chosen = torch.rand(units.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    words = ops.pack_mask(chosen)
    expected = torch.from_numpy(pack_oracle(chosen.reshape(-1).numpy()[unit_numbers(shape, groups)]))
    assert torch.equal(ops.expand_units(words, shape, groups), expected)
    assert torch.equal(structured_reference.expand_units(words, shape, units.grid, units.unit), expected)
    out = torch.full_like(expected, -1)
    listed, sizes = words.shape[0] != units.grid[0], (*rows_cols(shape), *units.unit)
    _C.expand_units(words.data_ptr(), out.data_ptr(), *sizes, listed, threads=3)
    assert torch.equal(out, expected)


@pytest.mark.parametrize(
    ("n", "group", "kept"),
    [
        (2, [4.0, 3.0, 2.0, 1.0], "1100"),
        (2, [1.0, -2.0, 3.0, -4.0], "0011"),
        (2, [5.0, 5.0, 5.0, 5.0], "1100"),
        (2, [1.0, 5.0, -5.0, 5.0], "0110"),
        (1, [-0.0, 0.0, 0.0, -0.0], "1000"),
        (2, [0.0, INF, -INF, INF], "0110"),
        (2, [NAN, 1.0, NAN, 2.0], "0101"),
        (3, [NAN, 0.0, NAN, 2.0], "0101"),
        (2, [NAN, NAN, NAN, NAN], "0000"),
        (4, [1.0, -1.0, 0.0, 7.0], "1111"),
        (1, [1e-45, 0.0, 3e-45, 1e-45], "0010"),
    ],
)
def test_nm_table(n: int, group: list[float], kept: str) -> None:
    selection = ops.nm_mask([torch.tensor([group])], n, 4, nan="drop")
    assert "".join(str(int(x)) for x in unpacked(selection.masks[0], (1, 4))[0]) == kept and not selection.invalid
    # The same group along dim 1 of a convolution, beside others.
    weight = torch.zeros(2, 8, 3, 1)
    weight[1, 4:, 2, 0] = torch.tensor(group)
    selection = ops.nm_mask([weight], n, 4)
    mask = unpacked(selection.masks[0], weight.shape)[1, 4:, 2, 0]
    assert "".join(str(int(x)) for x in mask) == kept and bool(selection.invalid) == any(map(math.isnan, group))


@pytest.mark.parametrize("m", range(1, 9))
def test_nm_against_all_patterns(m: int) -> None:
    for n in range(1, m + 1):
        scores = crowded((6, 3 * m), seed=m + n)
        mask = unpacked(ops.nm_mask([scores], n, m, key="value").masks[0], scores.shape)
        for values, own in zip(scores.reshape(-1, m).tolist(), mask.reshape(-1, m).tolist(), strict=True):
            # The only pattern in which everything kept beats everything removed; among equals the first does.
            beats = [
                all(
                    values[i] > values[j] or (values[i] == values[j] and i < j)
                    for i in kept
                    for j in set(range(m)) - kept
                )
                for kept in map(set, itertools.combinations(range(m), n))
            ]
            patterns = list(itertools.combinations(range(m), n))
            assert beats.count(True) == 1 and [i for i in range(m) if own[i]] == list(patterns[beats.index(True)])
            assert sum(v for v, k in zip(values, own, strict=True) if k) == max(
                sum(values[i] for i in kept) for kept in patterns
            )


nm_shapes = st.tuples(
    st.integers(1, 5), st.sampled_from([1, 2, 3, 4, 5, 8, 16, 31, 32, 64]), st.integers(1, 5), st.integers(1, 10)
)


@settings(max_examples=200)
@given(
    sizes=nm_shapes,
    less=st.integers(0, 63),
    dtype=st.sampled_from(FLOATS),
    key=st.sampled_from(["value", "magnitude"]),
    nan=st.sampled_from(["error", "drop", "keep"]),
    seed=st.integers(0, 10**6),
)
def test_nm_is_a_stable_sort_of_every_group(
    sizes: tuple[int, int, int, int], less: int, dtype: torch.dtype, key: str, nan: str, seed: int
) -> None:
    rows, m, groups, spatial = sizes
    shape = (rows, m * groups, spatial) if spatial > 1 else (rows, m * groups)
    n = max(1, m - less)
    scores = [crowded(shape, dtype, seed, special=bool(seed % 3)), random(shape, dtype, seed)]
    expected = [best_of_groups(s, n, m, key, nan) for s in scores]
    invalid = nan == "error" and any(bool(s.isnan().any()) for s in scores)
    for function in (ops.nm_mask, lambda s, n, m, key, nan: structured_reference.nm_mask(s, n, m, key, nan)):
        words, flag = function(scores, n, m, key=key, nan=nan)
        assert all(torch.equal(unpacked(w, shape), e) for w, e in zip(words, expected, strict=True))
        assert bool(flag) == invalid and flag.dtype == torch.bool and flag.ndim == 0


@pytest.mark.parametrize("force", PATHS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_masks_do_not_depend_on_threads_or_instructions(dtype: torch.dtype, force: str) -> None:
    shape = (24, 40, 3, 3)
    scores, code = crowded(shape, dtype, 9, special=True), _C.dtypes[str(dtype).removeprefix("torch.")]
    tiles, groups = ops.transposable_nm_mask([scores]).masks[0], ops.nm_mask([scores], 3, 10).masks[0]
    for threads in (1, 2, 5):
        words = torch.full_like(groups, -1)
        pointers = scores.data_ptr(), words.data_ptr()
        missing = _C.nm_mask(*pointers, 24, 40, 9, 3, 10, code, threads=threads, force=force)
        assert torch.equal(words, groups) and missing == int(scores.isnan().sum())
        missing = _C.transposable_nm_mask(*pointers, 24, 40, 9, code, threads=threads, force=force)
        assert torch.equal(words, tiles) and missing == int(scores.isnan().sum())


def test_groups_too_long_for_the_module() -> None:
    scores = random((1, 32768), seed=10)
    mask = unpacked(ops.nm_mask([scores], 40, 32768).masks[0], scores.shape)
    assert torch.equal(mask, topk_oracle([scores], 40)[0][0])


def test_a_tile_has_ninety_masks() -> None:
    masks = all_tile_masks()
    ours = np.array([[[col in row for col in range(4)] for row in rows] for rows in nm.TILE_MASKS])
    assert masks.shape == (90, 4, 4) and len({mask.tobytes() for mask in ours}) == 90
    assert np.array_equal(ours, masks)


@pytest.mark.parametrize(
    ("tile", "mask"),
    [
        ([[0.0] * 4] * 4, ["1100", "1100", "0011", "0011"]),
        ([[1, 2, 3, 4]] * 4, ["1100", "1100", "0011", "0011"]),
        ([[9, 9, 0, 0], [0, 9, 9, 0], [0, 0, 9, 9], [9, 0, 0, 9]], ["1100", "0110", "0011", "1001"]),
        # Each row's best pair would fill two columns; the best compromise gives up the smallest losses.
        ([[9, 8, 0, 0], [9, 8, 0, 0], [9, 8, 7, 0], [9, 8, 0, 5]], ["1100", "1100", "0011", "0011"]),
        ([[5, 0, 0, 0], [5, 0, 0, 0], [6, 0, 0, 0], [7, 0, 0, 0]], ["0110", "0110", "1001", "1001"]),
        ([[INF, 1, 1, 1], [INF, 1, 1, 1], [INF, 1, 1, 1], [1, 1, 1, 1]], ["1100", "1100", "0011", "0011"]),
    ],
)
def test_transposable_table(tile: list[list[float]], mask: list[str]) -> None:
    scores = torch.tensor(tile, dtype=torch.float32)
    kept = unpacked(ops.transposable_nm_mask([scores]).masks[0], (4, 4))
    if mask != ["0110", "0110", "1001", "1001"]:
        assert ["".join(str(int(x)) for x in row) for row in kept] == mask
    else:
        assert kept[2, 0] and kept[3, 0] and kept.sum() == 8


@pytest.mark.parametrize("seed", range(6))
def test_transposable_masks_are_the_optimum_of_an_integer_program(seed: int) -> None:
    scores = torch.randint(-50, 51, (4, 4), generator=torch.Generator().manual_seed(seed)).float()
    rows = np.kron(np.eye(4), np.ones(4))
    columns = np.kron(np.ones(4), np.eye(4))
    for key, values in (("value", scores), ("magnitude", scores.abs())):
        solved = milp(
            -values.double().numpy().reshape(-1),
            constraints=LinearConstraint(np.vstack([rows, columns]), 2, 2),
            integrality=np.ones(16),
            bounds=(0, 1),
        )
        mask = unpacked(ops.transposable_nm_mask([scores], key=key).masks[0], (4, 4))
        assert mask.sum(0).tolist() == mask.sum(1).tolist() == [2] * 4
        assert float(values[mask].sum()) == round(-solved.fun)


tile_shapes = st.tuples(st.integers(1, 3), st.integers(1, 9), st.sampled_from([1, 1, 2, 3, 9]))


@settings(max_examples=100)
@given(
    sizes=tile_shapes,
    dtype=st.sampled_from(FLOATS),
    key=st.sampled_from(["value", "magnitude"]),
    nan=st.sampled_from(["error", "drop", "keep"]),
    seed=st.integers(0, 10**6),
)
def test_transposable_masks_are_the_first_best(
    sizes: tuple[int, int, int], dtype: torch.dtype, key: str, nan: str, seed: int
) -> None:
    rows, columns, spatial = sizes
    shape = (4 * rows, 4 * columns, spatial) if spatial > 1 else (4 * rows, 4 * columns)
    scores = [crowded(shape, dtype, seed, special=bool(seed % 3)), random(shape, dtype, seed)]
    expected = [best_tiles_oracle(s, key, nan) for s in scores]
    invalid = nan == "error" and any(bool(s.isnan().any()) for s in scores)
    for function in (ops.transposable_nm_mask, structured_reference.transposable_nm_mask):
        words, flag = function(scores, key=key, nan=nan)
        assert all(torch.equal(unpacked(w, shape), e) for w, e in zip(words, expected, strict=True))
        assert bool(flag) == invalid and flag.dtype == torch.bool and flag.ndim == 0


@pytest.mark.parametrize("spatial", [(), (3, 3)], ids=str)
def test_the_transposed_mask_is_two_of_four_as_well(spatial: tuple[int, ...]) -> None:
    scores = random((16, 40, *spatial), seed=11)
    mask = unpacked(ops.transposable_nm_mask([scores]).masks[0], scores.shape)
    for turned in (mask, mask.transpose(0, 1)):
        assert (turned.unflatten(1, (-1, 4)).sum(2) == 2).all()
    # More freedom keeps more.
    plain = unpacked(ops.nm_mask([scores], 2, 4).masks[0], scores.shape)
    assert scores.abs()[plain].sum() >= scores.abs()[mask].sum()


def test_kept_nan_come_before_infinity_in_tiles() -> None:
    scores = torch.ones(4, 4)
    scores[0, 3], scores[0, 1], scores[0, 2], scores[2, 3] = NAN, INF, INF, -NAN
    kept = unpacked(ops.transposable_nm_mask([scores], nan="keep").masks[0], (4, 4))
    assert kept[0, 3] and kept[2, 3] and kept.sum() == 8
    kept = unpacked(ops.transposable_nm_mask([scores], nan="drop").masks[0], (4, 4))
    assert kept[0].tolist() == [False, True, True, False] and not kept[2, 3]


def test_every_op_has_both_compiled_implementations() -> None:
    names = set(ops.structured.STRUCTURED_OPS)
    assert set(structured_native.CPU_IMPLEMENTATIONS) == set(structured_native.CUDA_IMPLEMENTATIONS) == names


def test_ops_compile_without_graph_breaks() -> None:
    @torch.compile(backend="aot_eager", fullgraph=True)
    def project(scores: Tensor) -> tuple[Tensor, Tensor]:
        units = ops.group_scores(scores, "channel", p=1)
        words = ops.topk_mask([units], 3, key="value").masks[0]
        return ops.expand_units(words, scores.shape, "channel"), ops.nm_mask([scores], 2, 4).masks[0]

    scores = random((6, 8, 3, 3), seed=12)
    channels, of_four = project(scores)
    assert int(ops.popcount(channels)) == 3 * 54 and int(ops.popcount(of_four)) == scores.numel() // 2
