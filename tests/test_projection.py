# SPDX-License-Identifier: Apache-2.0
"""Projection: exact counts for every pattern and allocation, equality with a brute-force oracle, NaN, contradictions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structured_oracles import best_tiles_oracle
from torch import Tensor

from sparsekit import ops
from sparsekit.allocation import ERK, Global, PerLayer, Uniform, kept_count
from sparsekit.mask import Masks
from sparsekit.patterns import NM, Block, Channel, Filter, Pattern, Unstructured
from sparsekit.projection import Projection

SHAPES = {"conv": (4, 3, 2, 2), "fc": (5, 8), "row": (1, 6), "one": (3, 1, 1)}
SHAPED = [Filter(), Channel(1.0), Block(2, 3), Block(3, 4, math.inf)]
PATTERNS = [Unstructured(), *SHAPED]
ALLOCATIONS = [
    Global(),
    Global(min_keep=1),
    Global(rounding="floor"),
    Uniform(),
    Uniform(min_keep=1),
    ERK(),
    ERK(power=0.5, min_keep=1),
    PerLayer({"conv": 0.25, "f*": 0.5}),
    PerLayer({"row": 0}, default=0.4),
]
SPARSITIES = (0, 0.1, 0.25, 0.5, 0.501, 0.6)


def draw(seed: int, levels: int = 0, shapes: Mapping[str, Sequence[int]] = SHAPES) -> dict[str, Tensor]:
    """Scores by layer: normal, or with so few values that most of them tie."""
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for name, shape in shapes.items():
        values = torch.randn(tuple(shape), generator=generator)
        scores[name] = torch.round(values * levels) / levels if levels else values
    return scores


def units_by_hand(pattern: Pattern, shape: Sequence[int]) -> list[list[int]]:
    """Flat indices of the weights of each unit, units in C order: the definition, entry by entry."""
    rows = shape[0]
    places = list(itertools.product(*map(range, shape)))
    if isinstance(pattern, Filter):
        owner = {place: place[0] for place in places}
    elif isinstance(pattern, Channel):
        owner = {place: place[1] for place in places}
    elif isinstance(pattern, Block):
        wide = -(-(math.prod(shape) // rows) // pattern.w)
        cols = math.prod(shape[1:])
        owner = {place: (place[0] // pattern.h) * wide + (i % cols) // pattern.w for i, place in enumerate(places)}
    else:
        owner = {place: i for i, place in enumerate(places)}
    groups: dict[int, list[int]] = {}
    for i, place in enumerate(places):
        groups.setdefault(owner[place], []).append(i)
    return [groups[unit] for unit in sorted(groups)]


def rank_by_hand(pattern: Pattern, values: np.ndarray, unit: list[int], key: str) -> float:
    own = values[unit]
    if np.isinf(own).any() and (np.isnan(own).any() or (key == "value" and np.ptp(np.sign(own[np.isinf(own)])))):
        return math.nan  # without numpy's warning about inf - inf
    if len(unit) == 1 and isinstance(pattern, Unstructured):
        return float(abs(own[0]) if key == "magnitude" else own[0])
    if key == "value":
        return float(np.float32(own.sum()))
    return float(np.float32(np.linalg.norm(own, getattr(pattern, "p", 1.0))))


def best(ranks: Sequence[tuple[float, int]], kept: int, nan: str) -> set[int]:
    """Places of the ``kept`` best of (rank, place): NaN first or never, then by value, ties to the lowest place."""
    able = [(rank, place) for rank, place in ranks if nan == "keep" or not math.isnan(rank)]
    order = sorted(able, key=lambda x: (0 if math.isnan(x[0]) else 1, 0.0 if math.isnan(x[0]) else -x[0], x[1]))
    return {place for _, place in order[:kept]}


def project_by_hand(
    scores: Mapping[str, Tensor], pattern: Pattern, budget: int | Mapping[str, int], floor: int, key: str, nan: str
) -> dict[str, Tensor]:
    """Masks by sorting Python tuples; a floor first secures the best units of each layer."""
    layout, ranks, start = {}, [], 0
    for name, s in scores.items():
        values = s.double().numpy().reshape(-1)
        units = units_by_hand(pattern, s.shape)
        layout[name] = (start, units)
        ranks += [(rank_by_hand(pattern, values, unit, key), start + i) for i, unit in enumerate(units)]
        start += len(units)
    parts = {name: ranks[begin : begin + len(units)] for name, (begin, units) in layout.items()}
    if isinstance(budget, int):
        chosen = set().union(*(best(part, floor, nan) for part in parts.values()))
        chosen |= best([r for r in ranks if r[1] not in chosen], budget - len(chosen), nan)
    else:
        chosen = set().union(*(best(parts[name], budget[name], nan) for name in scores))
    masks = {}
    for name, (begin, units) in layout.items():
        flat = torch.zeros(scores[name].numel(), dtype=torch.bool)
        for i, unit in enumerate(units):
            flat[unit] = begin + i in chosen
        masks[name] = flat.view(scores[name].shape)
    return masks


def dense(masks: Masks) -> dict[str, Tensor]:
    return {name: mask.dense() for name, mask in masks.items()}


def same(masks: Masks, expected: Mapping[str, Tensor]) -> bool:
    return list(masks) == list(expected) and all(torch.equal(masks[n].dense(), m) for n, m in expected.items())


def units_kept(pattern: Pattern, masks: Masks) -> dict[str, int]:
    """Units kept by layer, after a check that no unit is torn."""
    kept = {}
    for name, mask in dense(masks).items():
        flat = mask.reshape(-1)
        units = [flat[unit] for unit in units_by_hand(pattern, mask.shape)]
        assert all(bool(unit.all()) or not bool(unit.any()) for unit in units)
        kept[name] = sum(bool(unit.all()) for unit in units)
    return kept


@pytest.mark.parametrize("allocation", ALLOCATIONS, ids=repr)
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.describe())
@settings(max_examples=12)
@given(seed=st.integers(0, 10**6), sparsity=st.sampled_from(SPARSITIES), levels=st.sampled_from((0, 1, 2)))
def test_counts_are_exact_and_masks_are_the_oracles(pattern, allocation, seed, sparsity, levels) -> None:
    key = "magnitude" if seed % 2 else "value"
    scores = draw(seed, levels)
    before = {name: s.clone() for name, s in scores.items()}
    projection = Projection(pattern, allocation)
    units = {name: len(units_by_hand(pattern, shape)) for name, shape in SHAPES.items()}
    try:
        budget = allocation(SHAPES, units, sparsity)
    except ValueError as error:  # more floors than budget; then the projection must say so too
        with pytest.raises(ValueError, match="min_keep: expected at most") as caught:
            projection(scores, sparsity, key)
        assert str(caught.value) == str(error)
        return
    assert projection.budget(SHAPES, sparsity) == budget
    masks, invalid = projection(scores, sparsity, key)
    kept = units_kept(pattern, masks)
    if isinstance(budget, int):
        assert sum(kept.values()) == budget
        assert all(kept[name] >= min(allocation.min_keep, n) for name, n in units.items())
        if allocation in (Global(), Global(min_keep=1)):
            assert budget == kept_count(sum(units.values()), sparsity)
    else:
        assert kept == budget
    floor = allocation.min_keep if isinstance(budget, int) else 0
    assert same(masks, project_by_hand(scores, pattern, budget, floor, key, "error"))
    assert invalid.dtype == torch.bool and invalid.ndim == 0 and not bool(invalid)
    assert all(torch.equal(scores[name], value) for name, value in before.items())


SPECIAL = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -2.0)


@pytest.mark.parametrize("nan", ["error", "drop", "keep"])
@pytest.mark.parametrize("floor", [0, 1, 2])
@pytest.mark.parametrize("pattern", [Unstructured(), Filter(), Block(1, 2)], ids=lambda p: p.describe())
@settings(max_examples=25)
@given(data=st.data())
def test_nan_and_infinite_scores(pattern, floor, nan, data) -> None:
    shapes = {"a": (3, 2), "b": (2, 3), "c": (2, 1)}
    values = st.sampled_from(SPECIAL)
    scores = {}
    for name, shape in shapes.items():
        n = math.prod(shape)
        scores[name] = torch.tensor(data.draw(st.lists(values, min_size=n, max_size=n))).view(shape)
    key = data.draw(st.sampled_from(("magnitude", "value")))
    sparsity = data.draw(st.sampled_from((0, 0.15) if floor == 2 else (0, 0.15, 0.5)))
    masks, invalid = Projection(pattern, Global(min_keep=floor), nan)(scores, sparsity, key)
    missing = any(bool(torch.isnan(s).any()) for s in scores.values())
    ranks = [pattern.unit_scores(s, key) for s in scores.values()]
    unrankable = sum(int(torch.isnan(r).sum()) for r in ranks)
    assert bool(invalid) == (nan == "error" and unrankable > 0) and (unrankable > 0) >= missing
    budget = kept_count(sum(r.numel() for r in ranks), sparsity)
    if nan != "error" or not unrankable:
        assert same(masks, project_by_hand(scores, pattern, budget, floor, key, nan))
        able = sum(r.numel() for r in ranks) - (unrankable if nan == "drop" else 0)
        assert sum(units_kept(pattern, masks).values()) == min(budget, able)


def test_a_floor_of_nans_gives_its_places_to_others() -> None:
    scores = {"a": torch.tensor([[math.nan, math.nan, 1.0]]), "b": torch.tensor([[5.0, 4.0, 3.0]])}
    masks, _ = Projection("unstructured", Global(min_keep=2), nan="drop")(scores, 0.333)
    assert masks["a"].dense().tolist() == [[False, False, True]] and masks["b"].count() == 3


@pytest.mark.parametrize("projection", [Projection(nan="keep"), Projection(allocation=Global(min_keep=1), nan="keep")])
def test_kept_nan_ranks_above_inf(projection) -> None:
    scores = {"a": torch.tensor([[math.inf, 1.0, math.nan, math.inf]])}
    assert projection(scores, 0.75).masks["a"].dense().tolist() == [[False, False, True, False]]
    assert projection(scores, 0.5).masks["a"].dense().tolist() == [[True, False, True, False]]
    half = {"a": torch.tensor([[math.inf, 65504.0, 1.0]], dtype=torch.float16)}
    assert projection(half, 0.6).masks["a"].dense().tolist() == [[True, False, False]]


@pytest.mark.parametrize("projection", [Projection(), Projection(allocation="uniform"), Projection("filter", "erk")])
def test_error_flags_nan_and_nothing_else(projection) -> None:
    scores = draw(0)
    assert not bool(projection(scores, 0.5).invalid)
    scores["fc"][2, 3] = math.inf
    assert not bool(projection(scores, 0.5).invalid)
    scores["fc"][2, 3] = math.nan
    assert bool(projection(scores, 0.5).invalid)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.describe())
def test_every_float_dtype_any_strides(pattern, dtype) -> None:
    scores = {name: s.to(dtype) for name, s in draw(3, levels=4).items()}
    views = {name: s.transpose(0, 1).contiguous().transpose(0, 1) for name, s in scores.items()}
    views["conv"] = scores["conv"].to(memory_format=torch.channels_last)
    masks, _ = Projection(pattern)(scores, 0.5)
    assert Projection(pattern)(views, 0.5).masks == masks
    budget = kept_count(sum(len(units_by_hand(pattern, s.shape)) for s in scores.values()), 0.5)
    assert same(masks, project_by_hand(scores, pattern, budget, 0, "magnitude", "error"))


def test_parameters_are_scores_too() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 4))
    masks, _ = Projection()({"w": weight}, 0.5)
    assert masks.count() == 8 and not masks["w"].words.requires_grad


@pytest.mark.parametrize("n, m", [(2, 4), (1, 4), (1, 1), (4, 4), (1, 3)])
@pytest.mark.parametrize("key", ["magnitude", "value"])
def test_n_of_m(n, m, key) -> None:
    shapes = {"conv": (3, 2 * m, 2, 1), "fc": (5, 3 * m)}
    for levels in (0, 1):
        scores = draw(n + m, levels, shapes)
        masks, invalid = Projection(NM(n, m))(scores, 1 - n / m, key)
        assert not bool(invalid) and list(masks) == list(shapes)
        for name, s in scores.items():
            ranks = (s.abs() if key == "magnitude" else s).reshape(s.shape[0], -1, m, math.prod(s.shape[2:]))
            order = ranks.sort(dim=2, descending=True, stable=True).indices[:, :, :n]
            expected = torch.zeros_like(ranks, dtype=torch.bool).scatter_(2, order, True).view(s.shape)
            assert torch.equal(masks[name].dense(), expected)
            assert masks[name].count() == s.numel() * n // m


@pytest.mark.parametrize(
    "nan, expected", [("error", [False, True, True, False]), ("drop", [False, True, True, False]), ("keep", [True] * 2)]
)
def test_n_of_m_with_nan(nan, expected) -> None:
    scores = {"a": torch.tensor([[math.nan, math.inf, 1.0, 0.0]])}
    masks, invalid = Projection("2:4", nan=nan)(scores, 0.5)
    assert masks["a"].dense()[0].tolist() == (expected + [False, False])[:4] and bool(invalid) == (nan == "error")
    few = {"a": torch.tensor([[math.nan, math.nan, math.nan, 7.0]])}
    assert Projection("2:4", nan="drop")(few, 0.5).masks["a"].dense()[0].tolist() == [False, False, False, True]
    one = {"a": torch.tensor([[math.inf, 1.0, math.nan, math.inf]])}
    assert Projection("1:4", nan="keep")(one, 0.75).masks["a"].dense()[0].tolist() == [False, False, True, False]


@pytest.mark.parametrize("nan", ["error", "drop", "keep"])
@pytest.mark.parametrize("key", ["magnitude", "value"])
def test_transposable(key, nan) -> None:
    shapes = {"conv": (8, 4, 2, 1), "fc": (4, 12)}
    projection = Projection("2:4-transposable", nan=nan)
    for levels in (0, 1):
        scores = draw(7, levels, shapes)
        masks, invalid = projection(scores, 0.5, key)
        assert not bool(invalid) and list(masks) == list(shapes)
        assert same(masks, {name: best_tiles_oracle(s, key, nan) for name, s in scores.items()})
        assert masks.count() * 2 == masks.numel
    scores["fc"][1, 2] = math.nan
    masks, invalid = projection(scores, 0.5, key)
    assert bool(invalid) == (nan == "error") and bool(masks["fc"].dense()[1, 2]) == (nan == "keep")
    assert same(masks, {name: best_tiles_oracle(s, key, nan) for name, s in scores.items()})


class PlainFilter(Filter):
    """The same pattern, but not ours: everything goes through its own methods."""


class PlainChannel(Channel):
    """As PlainFilter."""


class PlainBlock(Block):
    """As PlainFilter."""


class PlainNM(NM):
    """As PlainFilter."""


TWINS = [
    (Filter(), PlainFilter()),
    (Filter(math.inf), PlainFilter(math.inf)),
    (Channel(1), PlainChannel(1)),
    (Channel(3), PlainChannel(3)),
    (Block(2, 3), PlainBlock(2, 3)),
    (Block(3, 40, 1), PlainBlock(3, 40, 1)),
]


@pytest.mark.parametrize("allocation", [Global(), Global(min_keep=1), Uniform(), ERK(min_keep=1)], ids=repr)
@pytest.mark.parametrize("ours, theirs", TWINS, ids=lambda p: repr(p))
def test_fused_projections_equal_those_through_the_patterns_own_methods(ours, theirs, allocation) -> None:
    shapes = SHAPES | {"wide": (6, 11, 3, 3), "square": (33, 70)}
    for key, nan in itertools.product(("magnitude", "value"), ("error", "drop", "keep")):
        scores = draw(11, 0, shapes)
        if nan != "error":
            scores["wide"][2, 3, 1, 1], scores["fc"][4, 4] = math.nan, math.inf
        fused = Projection(ours, allocation, nan)(scores, 0.4, key)
        generic = Projection(theirs, allocation, nan)(scores, 0.4, key)
        assert fused.masks == generic.masks and bool(fused.invalid) == bool(generic.invalid)


@pytest.mark.parametrize("n, m, transposable", [(2, 4, False), (1, 3, False), (2, 4, True)])
def test_fused_n_of_m_equals_the_patterns_own_selection(n, m, transposable) -> None:
    shapes = {"conv": (8, 2 * m, 3, 3), "fc": (12, 5 * m)}
    for key, nan in itertools.product(("magnitude", "value"), ("error", "drop")):
        for levels in (0, 1):
            scores = draw(13, levels, shapes)
            scores["fc"][3, 2] = math.nan
            fused = Projection(NM(n, m, transposable), nan=nan)(scores, 1 - n / m, key)
            generic = Projection(PlainNM(n, m, transposable), nan=nan)(scores, 1 - n / m, key)
            assert fused.masks == generic.masks and bool(fused.invalid) == bool(generic.invalid) == (nan == "error")


@pytest.mark.parametrize("allocation", [Global(), Global(min_keep=1), Uniform()], ids=repr)
@pytest.mark.parametrize("pattern", [*SHAPED, NM(1, 1)], ids=repr)
def test_no_mask_of_single_weights_is_formed(pattern, allocation, monkeypatch) -> None:
    if isinstance(pattern, NM) and allocation.min_keep:
        return
    scores = {"conv": torch.randn(8, 6, 3, 3), "fc": torch.randn(16, 40)}
    expected = Projection(pattern, allocation)(scores, 0.0 if isinstance(pattern, NM) else 0.5)
    units = {name: math.prod(pattern.unit_shape(s.shape)) for name, s in scores.items()}
    real = ops.pack_mask

    def pack(mask: Tensor) -> Tensor:
        assert mask.numel() in units.values() and mask.numel() < 432
        return real(mask)

    monkeypatch.setattr(ops, "pack_mask", pack)
    for method in ("expand", "unit_scores", "select"):
        monkeypatch.setattr(type(pattern), method, lambda *a: pytest.fail("went through the pattern"), raising=False)
    again = Projection(pattern, allocation)(scores, 0.0 if isinstance(pattern, NM) else 0.5)
    assert again.masks == expected.masks


def bip_structured(scores: Mapping[str, Tensor], sparsity: float, dim: int) -> dict[str, Tensor]:
    """Layer-wise structured masks as BiP describes them: rank filters or input channels by their L2 norm, keep the top."""
    masks = {}
    for name, s in scores.items():
        norms = s.transpose(0, dim).flatten(1).norm(dim=1)
        kept = kept_count(len(norms), sparsity)
        chosen = torch.zeros(len(norms), dtype=torch.bool)
        chosen[norms.argsort(descending=True)[:kept]] = True
        masks[name] = chosen.view([-1 if d == dim else 1 for d in range(s.ndim)]).expand(s.shape)
    return masks


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.72])
@pytest.mark.parametrize("pattern, dim", [("filter", 0), ("channel", 1)])
def test_the_structured_masks_of_bip(pattern, dim, sparsity) -> None:
    shapes = {"conv": (16, 12, 3, 3), "pointwise": (24, 16, 1, 1), "fc": (10, 24)}
    for seed in range(5):
        scores = draw(seed, 0, shapes)
        masks, _ = Projection(pattern, "uniform")(scores, sparsity)
        assert same(masks, bip_structured(scores, sparsity, dim))


def test_names_stand_for_objects() -> None:
    assert Projection("filter", "uniform") == Projection(Filter(), Uniform())
    assert Projection("2:4") == Projection(NM(2, 4), Global())
    assert Projection(allocation={"a": 0.5}) == Projection(allocation=PerLayer({"a": 0.5}))


def test_empty_layers_and_nothing_kept() -> None:
    scores = {"none": torch.empty(0, 4), "a": torch.ones(2, 2)}
    masks, _ = Projection()(scores, 0.5)
    assert masks["none"].numel == 0 and masks["a"].dense().tolist() == [[True, True], [False, False]]
    assert Projection()({"a": torch.ones(1, 3)}, 0.9).masks.count() == 0
    assert Projection(allocation=Uniform(min_keep=1))(scores, 0.5).masks["a"].count() == 2


FC = {"fc": torch.randn(4, 8)}


@pytest.mark.parametrize(
    "act, error, message",
    [
        (lambda: Projection()({}, 0.5), ValueError, "Projection: scores: expected at least one layer, got none"),
        (lambda: Projection()(FC, 0.5, key="rank"), ValueError, "Projection: key: expected one of value, magnitude"),
        (lambda: Projection(nan="skip"), ValueError, "Projection: nan: expected one of error, drop, keep, got 'skip'"),
        (lambda: Projection("filters"), ValueError, "as_pattern: pattern: expected unstructured, filter"),
        (lambda: Projection(allocation="even"), ValueError, "as_allocation: allocation: expected one of global"),
        (lambda: Projection()(FC, 1.0), ValueError, r"Global: sparsity: expected a number in \[0, 1\), got 1.0"),
        (lambda: Projection()(FC, math.nan), ValueError, r"Global: sparsity: expected a number in \[0, 1\), got nan"),
        (lambda: Projection()(FC, None), TypeError, r"Global: sparsity: expected a number in \[0, 1\), got NoneType"),
        (lambda: Projection("2:4")(FC, 0.9), ValueError, "Projection: sparsity: expected 0.5 for 2:4, got 0.9"),
        (lambda: Projection("2:4")(FC, math.nan), ValueError, r"sparsity: expected a number in \[0, 1\), got nan"),
        (lambda: Projection("2:4")(FC, "x"), ValueError, r"sparsity: expected a number in \[0, 1\), got x"),
        (
            lambda: Projection("2:3")(FC, 1 - 2 / 3),
            ValueError,
            r"NM: shape: expected dim 1 divisible by 3, got \(4, 8\)",
        ),
        (
            lambda: Projection("2:4", "erk"),
            ValueError,
            "Projection: allocation: expected global or uniform, as 2:4 fixes",
        ),
        (
            lambda: Projection("2:4-transposable")(FC, 0.25),
            ValueError,
            "Projection: sparsity: expected 0.5 for 2:4-transposable, got 0.25",
        ),
        (
            lambda: Projection("2:4-transposable")({"fc": torch.randn(6, 8)}, 0.5),
            ValueError,
            r"NM: shape: expected dim 0 divisible by 4, got \(6, 8\)",
        ),
        (
            lambda: Projection("2:4-transposable", "erk"),
            ValueError,
            "Projection: allocation: expected global or uniform, as 2:4-transposable fixes",
        ),
        (lambda: Projection("2:4", {"fc": 0.9}), ValueError, "Projection: allocation: expected global or uniform"),
        (
            lambda: Projection("2:4", Global(min_keep=1)),
            ValueError,
            "Projection: allocation: expected global or uniform",
        ),
        (lambda: Projection("filter")({"b": torch.ones(3)}, 0.5), ValueError, "Filter: shape: expected at least 2 dim"),
        (
            lambda: Projection()({"a": torch.ones(3, dtype=torch.int32)}, 0.5),
            TypeError,
            r"Projection: scores\['a'\]: expected a floating point tensor, got torch.int32",
        ),
        (
            lambda: Projection(allocation={"conv*": 0.5})(FC, 0.5),
            ValueError,
            "PerLayer: sparsities: expected names or globs",
        ),
        (
            lambda: Projection(allocation=Global(min_keep=9))(FC, 0.9),
            ValueError,
            "Global: min_keep: expected at most 3 units",
        ),
    ],
)
def test_contradictions_are_named(act, error, message) -> None:
    with pytest.raises(error, match=message):
        act()


class OneRanking:
    """An allocation of someone else's making that ranks all layers together."""

    min_keep = 0

    def __call__(self, shapes, units, sparsity) -> int:
        return kept_count(sum(units.values()), sparsity)


@pytest.mark.parametrize("allocation", [OneRanking(), Global(), Uniform(), ERK(), PerLayer({"conv": 0.3})])
def test_a_warm_start_serves_every_allocation(allocation) -> None:
    scores, projection = draw(3), Projection(allocation=allocation)
    warm = projection.warm_start(len(scores), torch.device("cpu"))
    expected = projection(scores, 0.5).masks
    for _ in range(2):
        assert projection(scores, 0.5, "magnitude", warm).masks == expected


@pytest.mark.parametrize(
    ("warm", "error", "message"),
    [
        ("warm", TypeError, "Projection: warm: expected an int64 tensor, as warm_start makes it, got str"),
        (
            torch.zeros(9, 3),
            TypeError,
            "Projection: warm: expected an int64 tensor, as warm_start makes it, got torch.f",
        ),
        (ops.warm_start(1), ValueError, "Projection: warm: expected what warm_start makes for 2 layers on cpu, got"),
        (ops.warm_start(2, "meta"), ValueError, "Projection: warm: expected what warm_start makes for 2 layers on cpu"),
    ],
)
def test_a_warm_start_that_does_not_fit_is_refused(warm, error, message) -> None:
    with pytest.raises(error, match=message):
        Projection(allocation="uniform")({"a": torch.ones(4, 4), "b": torch.ones(4, 4)}, 0.5, "value", warm)
