# SPDX-License-Identifier: Apache-2.0
"""Patterns against tables by hand, then against loops that visit every weight."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structured_oracles import best_tiles_oracle
from torch import Tensor

from sparsekit.patterns import NM, Block, Channel, Filter, Pattern, Unstructured, as_pattern

WEIGHT = torch.tensor([[3.0, -4.0, 0.0], [1.0, 2.0, -2.0]])
ALL = [Unstructured(), Filter(), Filter(1), Channel(), Channel(math.inf), NM(2, 4), NM(1, 3), Block(2, 2), Block(3, 5)]
shapes = st.lists(st.integers(1, 7), min_size=2, max_size=5).map(tuple)


def fitting(pattern: Pattern, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape, with dim 1 made a multiple of m where the pattern needs it."""
    return (shape[0], shape[1] * pattern.m, *shape[2:]) if isinstance(pattern, NM) else shape


def unit_of(pattern: Pattern, index: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The definition of each pattern: which unit a weight belongs to."""
    if isinstance(pattern, Filter):
        return index[:1]
    if isinstance(pattern, Channel):
        return index[1:2]
    if isinstance(pattern, Block):
        column = 0
        for i, n in zip(index[1:], shape[1:], strict=True):
            column = column * n + i
        return index[0] // pattern.h, column // pattern.w
    return index


def members(pattern: Pattern, x: Tensor) -> dict[tuple[int, ...], list[Any]]:
    """Entries of x by unit."""
    found: dict[tuple[int, ...], list[Any]] = {}
    for index in product(*(range(n) for n in x.shape)):
        found.setdefault(unit_of(pattern, index, tuple(x.shape)), []).append(x[index].item())
    return found


def random(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("pattern", "magnitude", "value", "size"),
    [
        (Unstructured(), [[3.0, 4.0, 0.0], [1.0, 2.0, 2.0]], WEIGHT.tolist(), 1),
        (Filter(), [5.0, 3.0], [-1.0, 1.0], 3),
        (Filter(p=1), [7.0, 5.0], [-1.0, 1.0], 3),
        (Filter(p=math.inf), [4.0, 2.0], [-1.0, 1.0], 3),
        (Channel(), [math.sqrt(10), math.sqrt(20), 2.0], [4.0, -2.0, -2.0], 2),
        (Channel(p=1), [4.0, 6.0, 2.0], [4.0, -2.0, -2.0], 2),
        (NM(1, 3), [[3.0, 4.0, 0.0], [1.0, 2.0, 2.0]], WEIGHT.tolist(), 1),
        (Block(1, 2), [[5.0, 0.0], [math.sqrt(5), 2.0]], [[-1.0, 0.0], [3.0, -2.0]], 2),
        (Block(2, 2, p=1), [[10.0, 2.0]], [[2.0, -2.0]], 4),
        (Block(5, 5, p=math.inf), [[4.0]], [[0.0]], 25),
    ],
)
def test_table(pattern: Pattern, magnitude: list[Any], value: list[Any], size: int) -> None:
    torch.testing.assert_close(pattern.unit_scores(WEIGHT), torch.tensor(magnitude))
    assert torch.equal(pattern.unit_scores(WEIGHT, key="value"), torch.tensor(value))
    assert pattern.unit_size(WEIGHT.shape) == size


def test_expand_table() -> None:
    shape = (2, 3)
    assert Filter().expand(torch.tensor([True, False]), shape).tolist() == [[True] * 3, [False] * 3]
    assert Channel().expand(torch.tensor([1, 2, 3]), shape).tolist() == [[1, 2, 3]] * 2
    assert Block(1, 2).expand(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), shape).tolist() == [[1, 1, 2], [3, 3, 4]]
    assert Block(3, 2).expand(torch.tensor([[1.0, 2.0]]), shape).tolist() == [[1, 1, 2]] * 2
    assert torch.equal(Unstructured().expand(WEIGHT, shape), WEIGHT)
    assert torch.equal(NM(1, 3).expand(WEIGHT, shape), WEIGHT)


@pytest.mark.parametrize("pattern", ALL)
@settings(max_examples=25)
@given(shape=shapes, seed=st.integers(0, 10**6))
def test_units_are_those_of_the_definition(pattern: Pattern, shape: tuple[int, ...], seed: int) -> None:
    shape = fitting(pattern, tuple(min(n, 4) for n in shape))
    scores = random(shape, seed)
    units = members(pattern, scores)
    # In C order of unit_shape, so that the lowest flat index means the same everywhere.
    assert sorted(units) == list(product(*(range(n) for n in pattern.unit_shape(shape))))
    p = getattr(pattern, "p", 1)
    norms = [torch.tensor(units[u], dtype=torch.float64).norm(p) for u in sorted(units)]
    sums = [sum(units[u]) for u in sorted(units)]
    torch.testing.assert_close(pattern.unit_scores(scores).flatten(), torch.stack(norms).float())
    torch.testing.assert_close(pattern.unit_scores(scores, "value").flatten(), torch.tensor(sums))
    torch.testing.assert_close(pattern.reduce_sum(scores).flatten(), torch.tensor(sums))
    sizes = pattern.reduce_sum(torch.ones(shape, dtype=torch.bool))
    assert sizes.dtype == torch.int64
    assert sizes.flatten().tolist() == [len(units[u]) for u in sorted(units)]
    assert pattern.unit_size(shape) >= int(sizes.max())
    if not isinstance(pattern, Block):
        assert {pattern.unit_size(shape)} == set(sizes.flatten().tolist())


@pytest.mark.parametrize("pattern", ALL)
@settings(max_examples=25)
@given(shape=shapes, seed=st.integers(0, 10**6))
def test_expand_gives_each_weight_its_unit(pattern: Pattern, shape: tuple[int, ...], seed: int) -> None:
    shape = fitting(pattern, tuple(min(n, 4) for n in shape))
    unit_shape = pattern.unit_shape(shape)
    numbers = torch.arange(math.prod(unit_shape)).reshape(unit_shape)
    expanded = pattern.expand(numbers, shape)
    assert tuple(expanded.shape) == shape
    for index in product(*(range(n) for n in shape)):
        assert expanded[index] == numbers[unit_of(pattern, index, shape)]
    keep = random(unit_shape, seed) > 0
    mask = pattern.expand(keep, shape)
    assert mask.dtype == torch.bool
    sizes = pattern.reduce_sum(torch.ones(shape, dtype=torch.bool))
    assert torch.equal(pattern.reduce_sum(mask), keep * sizes)


@pytest.mark.parametrize("pattern", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(pattern: Pattern, dtype: torch.dtype) -> None:
    scores = random((6, 12, 2)).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    for key in ("magnitude", "value"):
        units = pattern.unit_scores(scores, key)
        assert units.dtype == (dtype if isinstance(pattern, (Unstructured, NM)) else wide)
    assert pattern.reduce_sum(scores).dtype == wide


def test_norms_of_extreme_scores_stay_in_range() -> None:
    huge, tiny = torch.full((2, 4), 1e30), torch.full((2, 4), 1e-30)
    huge[1], tiny[1] = 2e30, 2e-30
    torch.testing.assert_close(Filter().unit_scores(huge), torch.tensor([2e30, 4e30]))
    torch.testing.assert_close(Filter().unit_scores(tiny), torch.tensor([2e-30, 4e-30]), rtol=1e-6, atol=0)
    assert torch.equal(Block(1, 4).unit_scores(torch.full((1, 4), 60000.0).half()), torch.tensor([[120000.0]]))


def test_not_a_number_spreads_over_its_unit_only() -> None:
    scores = torch.ones(3, 5)
    scores[1, 4] = math.nan
    assert Filter().unit_scores(scores).isnan().tolist() == [False, True, False]
    assert Channel(p=math.inf).unit_scores(scores, "value").isnan().tolist() == [False] * 4 + [True]
    assert Block(3, 2).unit_scores(scores).isnan().tolist() == [[False, False, True]]


def test_strided_and_empty_weights() -> None:
    scores = random((4, 6, 3, 3)).to(memory_format=torch.channels_last)
    for pattern in (Filter(), Channel(), Block(2, 7), NM(1, 2), Unstructured()):
        assert torch.equal(pattern.unit_scores(scores), pattern.unit_scores(scores.contiguous()))
    assert torch.equal(NM(1, 2).select(scores), NM(1, 2).select(scores.contiguous()))
    for shape in ((0, 4), (4, 0)):
        for pattern in (Unstructured(), Filter(), Filter(math.inf), Channel(), NM(1, 2), Block(3, 3)):
            units = pattern.unit_scores(torch.empty(shape))
            assert tuple(units.shape) == pattern.unit_shape(shape)
            assert not units.any()
            assert tuple(pattern.expand(units, shape).shape) == shape
        assert NM(1, 2).select(torch.empty(shape)).shape == shape


def test_a_vector_is_one_row_of_blocks() -> None:
    block = Block(2, 2, p=1)
    assert block.unit_shape((5,)) == (1, 3)
    assert block.unit_scores(torch.ones(5)).tolist() == [[2.0, 2.0, 1.0]]
    assert block.expand(torch.tensor([[1, 2, 3]]), (5,)).tolist() == [1, 1, 2, 2, 3]


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("n", "group", "kept"),
    [
        (2, [4.0, 3.0, 2.0, 1.0], [1, 1, 0, 0]),
        (2, [1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1]),
        (2, [5.0, 5.0, 5.0, 5.0], [1, 1, 0, 0]),
        (2, [1.0, 5.0, 5.0, 5.0], [0, 1, 1, 0]),
        (1, [-0.0, 0.0, 0.0, -0.0], [1, 0, 0, 0]),
        (2, [0.0, INF, -INF, INF], [0, 1, 0, 1]),
        (3, [-INF, 1.0, -INF, -INF], [1, 1, 1, 0]),
        (2, [NAN, 1.0, NAN, 2.0], [0, 1, 0, 1]),
        (3, [NAN, -INF, NAN, 2.0], [0, 1, 0, 1]),
        (3, [NAN, -INF, 1.0, 2.0], [0, 1, 1, 1]),
        (2, [NAN, NAN, NAN, NAN], [0, 0, 0, 0]),
        (4, [1.0, -1.0, 0.0, 7.0], [1, 1, 1, 1]),
    ],
)
def test_select_table(n: int, group: list[float], kept: list[int]) -> None:
    assert NM(n, 4).select(torch.tensor([group])).int().tolist() == [kept]
    # The same group along dim 1 of a convolution, beside another one.
    weight = torch.zeros(2, 8, 3, 1)
    weight[1, 4:, 2, 0] = torch.tensor(group)
    assert NM(n, 4).select(weight)[1, 4:, 2, 0].int().tolist() == kept


@given(shapes, st.integers(1, 6), st.integers(0, 5), st.integers(0, 10**6))
def test_select_is_a_stable_sort_of_every_group(shape: tuple[int, ...], m: int, less: int, seed: int) -> None:
    n = max(1, m - less)
    shape = (shape[0], m * min(shape[1], 3), *(min(k, 3) for k in shape[2:]))
    # Few values, hence many ties.
    scores = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()
    pattern = NM(n, m)
    mask = pattern.select(scores)
    groups = scores.unflatten(1, (-1, m))
    order = groups.argsort(dim=2, descending=True, stable=True)[:, :, :n]
    expected = torch.zeros_like(groups, dtype=torch.bool).scatter(2, order, True).reshape(shape)
    assert torch.equal(mask, expected)
    assert int(mask.sum()) == pattern.fixed_budget(shape)


@pytest.mark.parametrize("shape", [(4, 4), (8, 12), (4, 8, 3)], ids=str)
def test_transposable_select_keeps_the_largest_sums(shape: tuple[int, ...]) -> None:
    pattern, scores = NM(2, 4, transposable=True), random(shape, 5)
    scores[0, 1] = math.nan
    mask = pattern.select(scores)
    assert torch.equal(mask, best_tiles_oracle(scores, "value", "drop"))
    assert torch.equal(pattern.select(scores.transpose(0, 1).contiguous().transpose(0, 1)), mask)
    assert int(mask.sum()) <= pattern.fixed_budget(shape) == math.prod(shape) // 2


def test_the_plain_pattern_is_another_one() -> None:
    assert NM(2, 4) != NM(2, 4, transposable=True) and repr(NM(2, 4)) == "NM(n=2, m=4)"
    assert NM(2, 4, transposable=False) == NM(2, 4) and hash(NM(2, 4)) == hash(NM(2, 4, False))


def test_fixed_budget() -> None:
    assert NM(2, 4).fixed_budget((3, 8, 5)) == 60
    others = (Unstructured(), Filter(), Channel(), Block(2, 2))
    assert [pattern.fixed_budget((3, 8, 5)) for pattern in others] == [None] * 4


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("unstructured", Unstructured()),
        ("filter", Filter()),
        ("channel", Channel()),
        ("channel-l1", Channel(p=1)),
        ("filter-linf", Filter(p=math.inf)),
        ("filter-l0.5", Filter(p=0.5)),
        ("2:4", NM(2, 4)),
        ("1:16", NM(1, 16)),
        ("2:4-transposable", NM(2, 4, transposable=True)),
        ("block4x4", Block(4, 4)),
        ("block1x16-l1", Block(1, 16, p=1)),
    ],
)
def test_names(name: str, pattern: Pattern) -> None:
    assert as_pattern(name) == pattern
    assert pattern.describe() == name
    assert as_pattern(pattern) is pattern
    assert eval(repr(pattern), {"inf": math.inf, **globals()}) == pattern


@given(st.floats(1e-9, 1e20))
def test_every_norm_has_a_name(p: float) -> None:
    assert as_pattern(Channel(p).describe()) == Channel(p)


@pytest.mark.parametrize(
    "name", ["", "filters", "2:", "2:4:8", "2:4-", "transposable", "block4", "block4x", "channel-l", "2:4-l1", "Filter"]
)
def test_unknown_names(name: str) -> None:
    with pytest.raises(ValueError, match=r"as_pattern: pattern: expected unstructured, .* got '"):
        as_pattern(name)


@pytest.mark.parametrize("value", [None, 4, (2, 4), Filter])
def test_objects_that_are_no_pattern(value: Any) -> None:
    with pytest.raises(TypeError, match=r"as_pattern: pattern: expected a name or a Pattern, got"):
        as_pattern(value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Filter(p=0), r"Filter: p: expected a number > 0 or inf, got 0"),
        (lambda: Channel(p=math.nan), r"Channel: p: expected a number > 0 or inf, got nan"),
        (lambda: as_pattern("block2x2-l0"), r"Block: p: expected a number > 0 or inf, got 0"),
        (lambda: NM(0, 4), r"NM: n, m: expected integers, 1 <= n <= m, got 0, 4"),
        (lambda: as_pattern("5:4"), r"NM: n, m: expected integers, 1 <= n <= m, got 5, 4"),
        (lambda: NM(1.0, 4), r"NM: n, m: expected integers, 1 <= n <= m, got 1.0, 4"),  # pyright: ignore
        (
            lambda: as_pattern("1:4-transposable"),
            r"NM: transposable: expected False, or True for 2:4, got True for 1:4",
        ),
        (lambda: NM(4, 8, True), r"NM: transposable: expected False, or True for 2:4, got True for 4:8"),
        (lambda: NM(2, 4, 1), r"NM: transposable: expected False, or True for 2:4, got 1 for 2:4"),  # pyright: ignore
        (lambda: NM(5, 4, True), r"NM: n, m: expected integers, 1 <= n <= m, got 5, 4"),
        (
            lambda: NM(2, 4, True).unit_shape((8, 6)),
            r"NM: shape: expected dim 1 divisible by 4, got \(8, 6\); skip it or",
        ),
        (lambda: NM(2, 4, True).select(torch.ones(6, 8)), r"NM: shape: expected dim 0 divisible by 4, got \(6, 8\)"),
        (lambda: NM(2, 4, True).fixed_budget((2, 4)), r"NM: shape: expected dim 0 divisible by 4"),
        (lambda: Block(0, 4), r"Block: h, w: expected integers >= 1, got 0, 4"),
        (lambda: Filter().unit_shape((3,)), r"Filter: shape: expected at least 2 dimensions, all integers >= 0"),
        (lambda: Channel().unit_size((3,)), r"Channel: shape: expected at least 2 dimensions"),
        (lambda: Block(2, 2).unit_shape(()), r"Block: shape: expected at least 1 dimensions"),
        (lambda: Unstructured().unit_shape((3, -1)), r"Unstructured: shape: expected .* got \(3, -1\)"),
        (lambda: NM(2, 4).unit_shape((64, 3, 7, 7)), r"NM: shape: expected dim 1 divisible by 4, got .* skip it or"),
        (lambda: NM(2, 4).select(torch.ones(4, 6)), r"NM: shape: expected dim 1 divisible by 4, got \(4, 6\)"),
        (lambda: NM(2, 4).fixed_budget((4, 6)), r"NM: shape: expected dim 1 divisible by 4"),
        (lambda: Filter().unit_scores(WEIGHT, "norm"), r"Filter.unit_scores: key: expected 'magnitude' or 'value'"),  # pyright: ignore
        (lambda: Filter().unit_scores(torch.ones(3)), r"Filter: shape: expected at least 2 dimensions"),
        (lambda: Filter().reduce_sum(torch.ones(3)), r"Filter: shape: expected at least 2 dimensions"),
        (lambda: Filter().fixed_budget((3,)), r"Filter: shape: expected at least 2 dimensions"),
        (
            lambda: Filter().expand(torch.ones(3), (2, 3)),
            r"Filter.expand: unit_values: expected shape \(2,\), got \(3,\)",
        ),
        (lambda: Block(2, 2).expand(torch.ones(2), (2, 3)), r"Block.expand: unit_values: expected shape \(1, 2\)"),
    ],
)
def test_values_are_checked(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("pattern", ALL)
def test_types_are_checked(pattern: Any) -> None:
    kind = type(pattern).__name__
    with pytest.raises(
        TypeError, match=rf"{kind}.unit_scores: scores: expected a floating point tensor, got torch.int64"
    ):
        pattern.unit_scores(torch.ones(4, 12, dtype=torch.int64))
    with pytest.raises(TypeError, match=rf"{kind}.unit_scores: scores: expected a Tensor, got list"):
        pattern.unit_scores([[1.0]])
    with pytest.raises(TypeError, match=rf"{kind}.reduce_sum: x: expected a Tensor, got int"):
        pattern.reduce_sum(3)
    with pytest.raises(TypeError, match=rf"{kind}.expand: unit_values: expected a Tensor, got bool"):
        pattern.expand(True, (4, 12))


def test_a_pattern_of_ones_own() -> None:
    class Mine(Pattern):
        """A unit is a weight, counted once: the least that a new pattern states."""

        def unit_shape(self, shape: Any) -> tuple[int, ...]:
            return tuple(shape)

        def describe(self) -> str:
            return "mine"

    mine = as_pattern(Mine())
    assert torch.equal(mine.unit_scores(WEIGHT), WEIGHT.abs())
    assert torch.equal(mine.expand(WEIGHT, WEIGHT.shape), WEIGHT)
    assert mine.unit_size((2, 3)) == 1
