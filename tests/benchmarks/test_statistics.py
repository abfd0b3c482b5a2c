# SPDX-License-Identifier: Apache-2.0
"""Statistics against literal values, scipy and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sparsekit.benchmarks.statistics import (
    Estimate,
    Interval,
    describe,
    noninferiority,
    paired_difference,
    ratio_interval,
)


def test_describe_by_hand() -> None:
    """1, 2, 3, 4: mean 2.5, sd sqrt(5/3), t(0.975, 3) = 3.1824."""
    found = describe([1.0, 2.0, 3.0, 4.0])
    assert (found.n, found.mean) == (4, 2.5)
    assert found.sd == pytest.approx(math.sqrt(5 / 3))
    assert found.interval is not None
    assert found.interval.high - 2.5 == pytest.approx(3.182446 * math.sqrt(5 / 3) / 2, rel=1e-6)
    assert found.interval.high - 2.5 == pytest.approx(2.5 - found.interval.low)


def test_describe_one_value_has_no_spread() -> None:
    assert describe([0.97]) == Estimate(1, 0.97, None, None)


def test_describe_equal_values() -> None:
    assert describe([2.0, 2.0, 2.0]) == Estimate(3, 2.0, 0.0, Interval(2.0, 2.0))


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.inf]])
def test_describe_refuses(values: list[float]) -> None:
    with pytest.raises(ValueError, match="describe: values: expected at least one finite number"):
        describe(values)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_level_refused(level: float) -> None:
    with pytest.raises(ValueError, match=r"level: expected a number in \(0, 1\)"):
        describe([1.0, 2.0], level)


def test_paired_difference_agrees_with_scipy() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=7), rng.normal(size=7)
    found = paired_difference(a.tolist(), b.tolist())
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((expected.low, expected.high))


def test_paired_difference_cancels_what_the_seeds_share() -> None:
    found = paired_difference([0.5, 0.7, 0.9], [0.49, 0.69, 0.89])
    assert found.mean == pytest.approx(0.01)
    assert found.sd == pytest.approx(0.0, abs=1e-12)


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="paired_difference: values: expected pairs, got 1 and 2 numbers"):
        paired_difference([1.0], [1.0, 2.0])


def test_ratio_interval_needs_three_pairs() -> None:
    assert ratio_interval([2.0], [1.0]) is None
    assert ratio_interval([2.0, 4.0], [1.0, 2.0]) is None


def test_ratio_interval_of_a_fixed_ratio_is_a_point() -> None:
    found = ratio_interval([2.0, 4.0, 8.0], [1.0, 2.0, 4.0])
    assert found == Interval(2.0, 2.0)


def test_ratio_interval_is_seeded_and_holds_the_ratio() -> None:
    a, b = [3.0, 3.3, 2.8, 3.1, 3.05], [1.0, 1.1, 1.05, 0.9, 1.0]
    found = ratio_interval(a, b)
    assert found == ratio_interval(a, b)
    assert found is not None and found.low < sum(a) / sum(b) < found.high
    assert found != ratio_interval(a, b, seed=1)


def test_ratio_interval_covers() -> None:
    """Of 200 simulated comparisons with 10 pairs most intervals hold the true ratio 2."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        found = ratio_interval(rng.normal(2, 0.1, 10).tolist(), rng.normal(1, 0.05, 10).tolist(), resamples=400)
        assert found is not None
        hits += found.low <= 2 <= found.high
    assert hits >= 165


def test_ratio_interval_refuses_what_is_not_a_cost() -> None:
    with pytest.raises(ValueError, match="expected positive numbers, got 0.0"):
        ratio_interval([1.0, 1.0, 0.0], [1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([0.001, 0.0, -0.001, 0.0005, -0.0005], "non-inferior"),
        ([-0.01, -0.011, -0.009, -0.0105, -0.0095], "inferior"),
        ([-0.02, 0.02, -0.02, 0.02, 0.0], "inconclusive"),
        ([0.0, 0.0, 0.0, 0.0], "inconclusive"),  # four pairs never suffice
        ([-0.0029] * 5, "non-inferior"),
        ([-0.0031] * 5, "inferior"),
        ([0.5], "inconclusive"),
        ([], "inconclusive"),
    ],
)
def test_noninferiority(differences: list[float], expected: str) -> None:
    assert noninferiority(differences) == expected


def test_noninferiority_is_one_sided_95() -> None:
    """A lower bound just above -margin counts, just below does not; t(0.95, 4) = 2.131847."""
    spread = np.array([-1.0, -0.5, 0.0, 0.5, 1.0]) * 1e-3
    half = 2.131847 * float(spread.std(ddof=1)) / math.sqrt(5)
    assert noninferiority((spread - 0.003 + half * 1.001).tolist()) == "non-inferior"
    assert noninferiority((spread - 0.003 + half * 0.999).tolist()) == "inconclusive"


def test_noninferiority_arguments() -> None:
    with pytest.raises(ValueError, match="noninferiority: margin: expected a positive number, got 0"):
        noninferiority([0.0], margin=0)
    with pytest.raises(ValueError, match="noninferiority: level"):
        noninferiority([0.0], level=0.4)
