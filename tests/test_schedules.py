# SPDX-License-Identifier: Apache-2.0
"""Schedules against tables by hand, then properties: exact ends, monotony, mirror images."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsekit import schedules
from sparsekit.schedules import Constant, Cubic, Geometric, InverseGeometric, Linear

RAMPS = [Linear, Cubic, Geometric, InverseGeometric]
fractions = st.floats(0, 0.999)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(0.9), {0: 0.9, 7: 0.9}),
        (Linear(0.0, 0.8, 10, 20), {0: 0.0, 10: 0.0, 11: 0.08, 15: 0.4, 20: 0.8, 99: 0.8}),
        (Cubic(0.0, 0.8, 10, 20), {0: 0.0, 10: 0.0, 15: 0.7, 20: 0.8, 99: 0.8}),
        (Cubic(0.1, 0.9, 0, 4), {0: 0.1, 1: 0.5625, 2: 0.8, 3: 0.8875, 4: 0.9}),
        (Geometric(0.0, 0.9375, 0, 4), {0: 0.0, 1: 0.5, 2: 0.75, 3: 0.875, 4: 0.9375}),
        (InverseGeometric(0.0, 0.9375, 0, 4), {0: 0.0, 1: 0.0625, 2: 0.1875, 3: 0.4375, 4: 0.9375}),
        (Linear(0.25, 0.5, 3, 3), {0: 0.25, 2: 0.25, 3: 0.5, 4: 0.5}),
    ],
)
def test_table(schedule: schedules.Schedule, expected: dict[int, float]) -> None:
    for step, sparsity in expected.items():
        assert schedule(step) == pytest.approx(sparsity, abs=1e-12)


@given(st.sampled_from(RAMPS), fractions, fractions, st.integers(0, 50), st.integers(0, 50))
def test_ramps_have_exact_ends_and_never_fall(ramp: Any, a: float, b: float, start: int, length: int) -> None:
    initial, final = sorted((a, b))
    schedule = ramp(initial, final, start, start + length)
    values = [schedule(step) for step in range(start + length + 3)]
    assert values[-3:] == [final] * 3
    assert values[: start + (length > 0)] == [initial] * (start + (length > 0))
    assert all(0 <= x <= y < 1 for x, y in pairwise(values))


@given(st.floats(0.01, 0.99), st.integers(1, 30))
def test_geometric_removes_the_same_share_each_step_and_its_inverse_mirrors_the_steps(final: float, steps: int) -> None:
    ramp, mirror = Geometric(0.0, final, 0, steps), InverseGeometric(0.0, final, 0, steps)
    drops = [ramp(i + 1) - ramp(i) for i in range(steps)]
    back = [mirror(i + 1) - mirror(i) for i in range(steps)]
    assert back == pytest.approx(drops[::-1], abs=1e-12)
    ratio = (1 - final) ** (1 / steps)
    assert [1 - ramp(i + 1) for i in range(steps)] == pytest.approx([ratio * (1 - ramp(i)) for i in range(steps)])


@pytest.mark.parametrize("ramp", RAMPS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-0.1, 0.5, 0, 1), r"initial: expected a number in \[0, 1\), got -0.1"),
        ((0.0, 1.0, 0, 1), r"final: expected a number in \[0, 1\), got 1.0"),
        ((0.0, math.nan, 0, 1), r"final: expected a number in \[0, 1\), got nan"),
        ((0.6, 0.5, 0, 1), r"initial: expected at most final=0.5, got 0.6"),
        ((0.0, 0.5, -1, 1), r"start: expected an integer >= 0, got -1"),
        ((0.0, 0.5, 0.5, 1), r"start: expected an integer >= 0, got 0.5"),
        ((0.0, 0.5, 5, 4), r"end: expected an integer >= start=5, got 4"),
    ],
)
def test_ramp_arguments_are_checked(ramp: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"{ramp.__name__}: {message}"):
        ramp(*arguments)


@pytest.mark.parametrize("schedule", [Constant(0.5), *(ramp(0.0, 0.5, 0, 3) for ramp in RAMPS)])
@pytest.mark.parametrize("step", [-1, 1.0, True, "0"])
def test_step_is_checked(schedule: Any, step: Any) -> None:
    with pytest.raises(ValueError, match=rf"{type(schedule).__name__}: step: expected an integer >= 0, got"):
        schedule(step)


@pytest.mark.parametrize("final", [1.0, -1, True, "0.5", None])
def test_constant_is_checked(final: Any) -> None:
    with pytest.raises(ValueError, match=r"Constant: final: expected a number in \[0, 1\)"):
        Constant(final)


def test_names() -> None:
    assert schedules.TABLE == ("constant", "linear", "cubic", "geometric", "inverse_geometric")
    assert schedules.as_schedule("constant", 0.9) == Constant(0.9)
    assert schedules.as_schedule("linear", 0.9, initial=0.1, start=2, end=5) == Linear(0.1, 0.9, 2, 5)
    assert schedules.as_schedule("cubic", 0.9, end=5) == Cubic(0.0, 0.9, 0, 5)
    assert schedules.as_schedule("geometric", 0.9, end=5) == Geometric(0.0, 0.9, 0, 5)
    assert schedules.as_schedule("inverse_geometric", 0.9, end=5) == InverseGeometric(0.0, 0.9, 0, 5)
    ramp = Cubic(0.0, 0.9, 0, 5)
    assert schedules.as_schedule(ramp) is ramp
    assert schedules.as_schedule(ramp, 0.9, end=77) is ramp
    assert schedules.as_schedule(lambda step: 0.25 * (step > 3), 0.25)(4) == 0.25


def test_names_are_checked() -> None:
    expected = "constant, linear, cubic, geometric, inverse_geometric"
    with pytest.raises(ValueError, match=f"as_schedule: schedule: expected one of {expected}, got 'cubical'"):
        schedules.as_schedule("cubical", 0.9)
    with pytest.raises(ValueError, match=r"as_schedule: final: expected a number in \[0, 1\) with 'cubic', got None"):
        schedules.as_schedule("cubic")
    with pytest.raises(
        ValueError, match=r"as_schedule: final: expected 0.8, where Constant\(final=0.8\) ends, got 0.9"
    ):
        schedules.as_schedule(Constant(0.8), 0.9)
    not_a_schedule: Any = 0.9
    with pytest.raises(TypeError, match=r"as_schedule: schedule: expected a name or a function, got float"):
        schedules.as_schedule(not_a_schedule)
    a_class: Any = Cubic
    with pytest.raises(TypeError, match=r"as_schedule: schedule: expected a name or a function, got \w+"):
        schedules.as_schedule(a_class)


@pytest.mark.parametrize(
    ("target", "ladder"),
    [
        (0.0, (0.0,)),
        (0.1, (0.1,)),
        (0.2, (0.2,)),
        (0.488, (0.2, 0.36, 0.488)),
        (0.5, (0.2, 0.36, 0.5)),
        (0.672, (0.2, 0.36, 0.488, 0.5904, 0.672)),
        (0.738, (0.2, 0.36, 0.488, 0.5904, 0.67232, 0.738)),
    ],
)
def test_imp_ladder_table(target: float, ladder: tuple[float, ...]) -> None:
    assert schedules.imp_ladder(target) == ladder


def test_imp_ladder_takes_the_rounds_of_the_papers() -> None:
    printed = (0.488, 0.672, 0.738, 0.79, 0.866, 0.893, 0.945, 0.972, 0.986)
    assert [len(schedules.imp_ladder(target)) for target in printed] == [3, 5, 6, 7, 9, 10, 13, 16, 19]
    exact = tuple((5**n - 4**n) / 5**n for n in range(1, 22))
    assert [len(schedules.imp_ladder(target)) for target in exact] == list(range(1, 22))
    assert schedules.imp_ladder(exact[-1]) == exact


def test_imp_ladder_at_another_rate() -> None:
    assert schedules.imp_ladder(0.9, rate=0.5) == (0.5, 0.75, 0.9)


@given(fractions, st.floats(0.01, 0.9))
def test_imp_ladder_rises_to_the_target(target: float, rate: float) -> None:
    ladder = schedules.imp_ladder(target, rate)
    assert ladder[-1] == target
    assert all(x < y for x, y in pairwise(ladder))
    last = (1 - target) / (1 - ladder[-2]) if len(ladder) > 1 else 1 - target
    assert last > (1 - rate) ** 1.5 * (1 - 1e-9)


def test_imp_ladder_is_checked() -> None:
    with pytest.raises(ValueError, match=r"imp_ladder: target: expected a number in \[0, 1\), got 1"):
        schedules.imp_ladder(1)
    with pytest.raises(ValueError, match=r"imp_ladder: rate: expected a number in \(0, 1\), got 0.0"):
        schedules.imp_ladder(0.5, 0.0)
    with pytest.raises(ValueError, match=r"imp_ladder: rate: expected a number in \(0, 1\), got 1.0"):
        schedules.imp_ladder(0.5, 1.0)
