# SPDX-License-Identifier: Apache-2.0
"""Allocations against tables by hand, then properties: exact totals, bounds, order, determinism."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsekit.allocation import ERK, Allocation, Global, PerLayer, Uniform, as_allocation, kept_count

NET = {"conv1": (4, 3, 3, 3), "layer1.conv": (8, 4, 3, 3), "layer2.conv": (8, 8, 3, 3), "fc": (10, 8)}
UNITS = {name: math.prod(shape) for name, shape in NET.items()}
sparsities = st.decimals(0, "0.9999", places=4)
nets = st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=4), min_size=1, max_size=8).map(
    lambda shapes: {f"l{i}": tuple(shape) for i, shape in enumerate(shapes)}
)


def units_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    return {name: math.prod(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("n", "sparsity", "kept"),
    [
        (0, 0.5, 0),
        (1, 0.0, 1),
        (1, 0.49, 1),
        (1, 0.5, 0),
        (10, 0.25, 7),
        (10, 0.35, 6),
        (100, 0.29, 71),
        (1000, 0.145, 855),
        (50, 0.29, 35),
        (200, 0.575, 85),
        (270_474, 0.9, 27_047),
        (3, "1/3", 2),
        (11_173_962, 0.999999999, 0),
        (10**9, 0.999999999, 1),
        (10**12, 0.1, 9 * 10**11),
    ],
)
def test_kept_count_table(n: int, sparsity: Any, kept: int) -> None:
    assert kept_count(n, sparsity) == kept


def test_kept_count_reads_the_decimal_that_was_written() -> None:
    # 0.145 * 100 is 14.499999999999998 in floats, 14.5 as written: a half rounds towards removal.
    assert 0.145 * 100 < 14.5
    written: list[Any] = [0.145, "0.145", Decimal("0.145"), Fraction(29, 200), np.float64(0.145), np.float32(0.145)]
    assert [kept_count(100, value) for value in written] == [85] * len(written)
    zeros: list[Any] = [0, np.int64(0), "0", Decimal(0), -0.0]
    assert [kept_count(10, value) for value in zeros] == [10] * len(zeros)


@given(st.integers(0, 10**7), sparsities)
def test_kept_count_is_the_nearest_integer(n: int, sparsity: Decimal) -> None:
    exact = n * (1 - Fraction(sparsity))
    kept = kept_count(n, sparsity)
    assert 0 <= kept <= n
    assert abs(kept - exact) <= Fraction(1, 2)
    assert kept == kept_count(n, float(sparsity)) == kept_count(n, str(sparsity))


@pytest.mark.parametrize("sparsity", [1, 1.0, 1.5, -0.1, math.nan, math.inf, "abc", "1/0", Decimal("NaN"), "1.0"])
def test_sparsity_out_of_range(sparsity: Any) -> None:
    for where, call in {
        "kept_count": lambda: kept_count(10, sparsity),
        "Global": lambda: Global()(NET, UNITS, sparsity),
        "Uniform": lambda: Uniform()(NET, UNITS, sparsity),
        "ERK": lambda: ERK()(NET, UNITS, sparsity),
        "PerLayer": lambda: PerLayer({})(NET, UNITS, sparsity),
    }.items():
        with pytest.raises(ValueError, match=rf"{where}: sparsity: expected a number in \[0, 1\), got {sparsity}"):
            call()


@pytest.mark.parametrize("sparsity", [True, None, [0.5], 1j])
def test_sparsity_that_is_no_number(sparsity: Any) -> None:
    with pytest.raises(TypeError, match=r"kept_count: sparsity: expected a number in \[0, 1\), got "):
        kept_count(10, sparsity)


@pytest.mark.parametrize("n", [-1, 1.0, True, "3"])
def test_number_of_units_is_checked(n: Any) -> None:
    with pytest.raises(ValueError, match=r"kept_count: n: expected an integer >= 0, got"):
        kept_count(n, 0.5)
    with pytest.raises(ValueError, match=r"Uniform: units\['a'\]: expected an integer >= 0"):
        Uniform()({"a": (4, 4)}, {"a": n}, 0.5)


def test_global_counts_over_the_concatenation() -> None:
    assert UNITS == {"conv1": 108, "layer1.conv": 288, "layer2.conv": 576, "fc": 80}
    assert Global()(NET, UNITS, 0.9) == 105
    assert Global(min_keep=3)(NET, UNITS, 0.9) == 105
    assert Global()({}, {}, 0.5) == 0


def test_uniform_table() -> None:
    assert Uniform()(NET, UNITS, 0.9) == {"conv1": 11, "layer1.conv": 29, "layer2.conv": 58, "fc": 8}
    assert Uniform()(NET, UNITS, 0) == UNITS


def test_erk_table() -> None:
    """Densities 13/108 : 18/288 : 22/576 : 18/80 times the units are 13 : 18 : 22 : 18; 105 kept of 71 parts."""
    exact = [Fraction(105, 71) * part for part in (13, 18, 22, 18)]
    assert [round(float(x), 3) for x in exact] == [19.225, 26.62, 32.535, 26.62]
    # Floors 19, 26, 32, 26 leave two: to the two equal remainders of .62.
    assert ERK()(NET, UNITS, 0.9) == {"conv1": 19, "layer1.conv": 27, "layer2.conv": 32, "fc": 27}


def test_erk_pins_dense_layers() -> None:
    """At 50 % the small layers would exceed density 1: they are whole and the others share what is left."""
    kept = ERK()(NET, UNITS, 0.5)
    assert kept["fc"] == 80
    assert kept["conv1"] == 108
    # 526 - 188 = 338 over 18 : 22.
    assert kept == {"conv1": 108, "layer1.conv": 152, "layer2.conv": 186, "fc": 80}
    assert ERK()(NET, UNITS, 0) == UNITS


def test_erk_largest_remainder_gives_ties_to_the_first_layers() -> None:
    shapes = dict.fromkeys("abcd", (3, 3))
    assert ERK()(shapes, units_of(shapes), "0.5") == {"a": 5, "b": 5, "c": 4, "d": 4}


def test_erk_with_power_zero_is_one_density() -> None:
    assert ERK(power=0)(NET, UNITS, 0.5) == {name: n // 2 for name, n in UNITS.items()}


def test_erk_counts_units_of_a_structured_pattern() -> None:
    """Densities come from the weights' shapes, counts are in filters."""
    shapes = {"a": (16, 4), "b": (16, 16)}
    assert ERK()(shapes, {"a": 16, "b": 16}, 0.5) == {"a": 11, "b": 5}


def test_erk_takes_empty_layers() -> None:
    assert ERK()({"a": (0, 3), "b": (4, 4)}, {"a": 0, "b": 16}, 0.5) == {"a": 0, "b": 8}


@given(nets, sparsities, st.sampled_from([0, 0.5, 1.0, 2]), st.randoms())
def test_erk_properties(shapes: dict[str, tuple[int, ...]], sparsity: Decimal, power: float, rng: Any) -> None:
    units = units_of(shapes)
    kept = ERK(power)(shapes, units, sparsity)
    assert list(kept) == list(units)
    assert sum(kept.values()) == kept_count(sum(units.values()), sparsity)
    assert all(0 <= kept[name] <= units[name] for name in units)
    assert kept == ERK(power)(shapes, units, sparsity)
    # Any two layers kept in part have densities in the ratio of their shapes, up to rounding.
    partial = [name for name in units if 1 < kept[name] < units[name] - 1]
    if len(partial) > 1:
        one, two = rng.sample(partial, 2)
        ratio = {x: (sum(shapes[x]) / math.prod(shapes[x])) ** power * units[x] for x in (one, two)}
        low, high = (kept[one] - 1) / ratio[one], (kept[one] + 1) / ratio[one]
        assert low <= (kept[two] + 1) / ratio[two] * (1 + 1e-9)
        assert high >= (kept[two] - 1) / ratio[two] * (1 - 1e-9)


@given(nets, sparsities, st.integers(0, 30), st.sampled_from(["uniform", "erk", "dict"]))
def test_min_keep_properties(shapes: dict[str, tuple[int, ...]], sparsity: Decimal, least: int, rule: str) -> None:
    units = units_of(shapes)
    make: dict[str, Any] = {"uniform": Uniform, "erk": ERK, "dict": lambda **kw: PerLayer({"*": sparsity}, **kw)}
    plain = make[rule]()(shapes, units, sparsity)
    allocation = make[rule](min_keep=least)
    if sum(min(least, n) for n in units.values()) > sum(plain.values()):
        with pytest.raises(ValueError, match=r"min_keep: expected at most \d+ units in all, got \d+, which needs \d+"):
            allocation(shapes, units, sparsity)
        return
    kept = allocation(shapes, units, sparsity)
    assert sum(kept.values()) == sum(plain.values())
    assert list(kept) == list(units)
    for name, n in units.items():
        assert min(least, n) <= kept[name] <= n
        assert kept[name] <= max(plain[name], least)
    if all(plain[name] >= min(least, n) for name, n in units.items()):
        assert kept == plain
    # Whoever gives stays with the largest: nobody that gave keeps less, by more than one, than another layer.
    gave = [kept[name] for name in units if kept[name] < plain[name]]
    if gave:
        assert max(kept.values()) - min(gave) <= 1


def test_min_keep_table() -> None:
    shapes = {"a": (10,), "b": (100,), "c": (90,), "d": (2,)}
    units = units_of(shapes)
    assert Uniform()(shapes, units, 0.9) == {"a": 1, "b": 10, "c": 9, "d": 0}
    # "a" wants 4 and "d" 2 more units: 5 in all from "b" and "c", which level at 7 (14 = 19 - 5).
    assert Uniform(min_keep=4)(shapes, units, 0.9) == {"a": 4, "b": 7, "c": 7, "d": 2}
    assert Uniform(min_keep=3)(shapes, units, 0.9) == {"a": 3, "b": 8, "c": 7, "d": 2}
    with pytest.raises(ValueError, match=r"Uniform: min_keep: expected at most 20 units in all, got 7, which needs 23"):
        Uniform(min_keep=7)(shapes, units, 0.9)


def test_min_keep_of_global_is_checked_and_carried() -> None:
    assert Global(min_keep=3).min_keep == 3
    with pytest.raises(
        ValueError, match=r"Global: min_keep: expected at most 105 units in all, got 27, which needs 108"
    ):
        Global(min_keep=27)(NET, UNITS, 0.9)


@pytest.mark.parametrize("kind", [Global, Uniform, ERK, lambda min_keep: PerLayer({}, min_keep=min_keep)])
@pytest.mark.parametrize("least", [-1, 1.0, True])
def test_min_keep_is_checked(kind: Any, least: Any) -> None:
    with pytest.raises(ValueError, match=r"min_keep: expected an integer >= 0, got"):
        kind(min_keep=least)


@pytest.mark.parametrize("power", [-1, 9, math.nan, "1", True])
def test_power_is_checked(power: Any) -> None:
    with pytest.raises(ValueError, match=r"ERK: power: expected a number in \[0, 8\], got"):
        ERK(power)


def test_per_layer_table() -> None:
    rule = PerLayer({"layer*": 0.5, "layer2.conv": 0.75}, default=0)
    assert rule(NET, UNITS, 0.9) == {"conv1": 108, "layer1.conv": 144, "layer2.conv": 144, "fc": 80}
    rest = PerLayer({"fc": 0})
    assert rest(NET, UNITS, 0.5) == {"conv1": 54, "layer1.conv": 144, "layer2.conv": 288, "fc": 80}
    first = PerLayer({"layer1.*": 0.5, "layer*": 0.25, "*": 0})
    assert first(NET, UNITS, 0.9) == {"conv1": 108, "layer1.conv": 144, "layer2.conv": 432, "fc": 80}


def test_per_layer_names_what_matches_nothing() -> None:
    with pytest.raises(ValueError, match=r"PerLayer: sparsities: expected names or globs of layers, got 'layer1.cnv'"):
        PerLayer({"layer1.cnv": 0.5})(NET, UNITS, 0.9)
    with pytest.raises(ValueError, match=r"close names: layer1.conv, layer2.conv"):
        PerLayer({"layer1.cnv": 0.5})(NET, UNITS, 0.9)
    with pytest.raises(ValueError, match=r"got 'zzzz'$"):
        PerLayer({"zzzz": 0.5})(NET, UNITS, 0.9)
    with pytest.raises(ValueError, match=r"expected 'layer1\.\*' before the globs that match its layers"):
        PerLayer({"layer*": 0.5, "layer1.*": 0.25})(NET, UNITS, 0.9)


def test_per_layer_is_checked_and_frozen() -> None:
    with pytest.raises(ValueError, match=r"PerLayer: sparsities\['fc'\]: expected a number in \[0, 1\), got 1.0"):
        PerLayer({"fc": 1.0})
    with pytest.raises(ValueError, match=r"PerLayer: default: expected a number in \[0, 1\), got 2"):
        PerLayer({}, default=2)
    not_a_mapping: Any = 0.5
    with pytest.raises(TypeError, match=r"PerLayer: sparsities: expected a mapping of names to numbers, got float"):
        PerLayer(not_a_mapping)
    mine = {"fc": 0.5}
    rule = PerLayer(mine)
    mine["fc"] = 0.75
    assert rule.sparsities == {"fc": 0.5}
    assert rule == PerLayer({"fc": 0.5})
    assert isinstance(hash(rule), int)


def test_layers_are_checked() -> None:
    with pytest.raises(ValueError, match=r"Global: units: expected the layers of shapes, got a difference in fc"):
        Global()(NET, {k: v for k, v in UNITS.items() if k != "fc"}, 0.5)
    with pytest.raises(ValueError, match=r"ERK: units\['a'\]: expected an integer >= 0 that fits the shape, got 4"):
        ERK()({"a": (0, 3)}, {"a": 4}, 0.5)


def test_names() -> None:
    assert as_allocation("global") == Global()
    assert as_allocation("uniform") == Uniform()
    assert as_allocation("erk") == ERK()
    assert as_allocation({"fc": 0.5}) == PerLayer({"fc": 0.5})
    rule = ERK(power=0.5, min_keep=2)
    assert as_allocation(rule) is rule
    assert all(isinstance(x, Allocation) for x in (Global(), Uniform(), rule, PerLayer({})))
    with pytest.raises(
        ValueError, match=r"as_allocation: allocation: expected one of global, uniform, erk, got 'layer'"
    ):
        as_allocation("layer")
    wrong: list[Any] = [3, Global, None]
    for value in wrong:
        with pytest.raises(TypeError, match=r"as_allocation: allocation: expected a name, a mapping or an Allocation"):
            as_allocation(value)
