# SPDX-License-Identifier: Apache-2.0
"""Means, intervals and verdicts over seeds. Plain numbers in, plain numbers out; nothing here knows about pruning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Verdict = Literal["non-inferior", "inferior", "inconclusive"]

MARGIN = 0.003
"""Largest loss of accuracy, as a fraction, that still counts as equal: 0.3 points."""

MINIMUM_PAIRS = 5
"""Paired seeds below which no verdict is given."""


@dataclass(frozen=True)
class Interval:
    """Closed interval low <= high, in the unit of the values it was computed from."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """Mean of n values with their spread.

    Args:
        n: number of values, at least 1.
        mean: arithmetic mean.
        sd: sample standard deviation (divisor n - 1); None for n = 1.
        interval: two-sided t interval of the mean; None for n = 1.
    """

    n: int
    mean: float
    sd: float | None
    interval: Interval | None


def describe(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean, standard deviation and t interval of the mean.

    Args:
        values: at least one finite number.
        level: coverage of the interval, in (0, 1).

    Returns:
        The estimate; without sd and interval for a single value.
    """
    x = _numbers("describe", "values", values)
    _check_level("describe", level)
    mean = float(x.mean())
    if x.size == 1:
        return Estimate(1, mean, None, None)
    sd = float(x.std(ddof=1))
    half = float(stats.t.ppf(0.5 + level / 2, x.size - 1)) * sd / float(np.sqrt(x.size))
    return Estimate(int(x.size), mean, sd, Interval(mean - half, mean + half))


def paired_difference(treated: Sequence[float], baseline: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean of treated - baseline with the t interval of the paired differences.

    Args:
        treated: one number per seed.
        baseline: the number of the same seed at the same position.
        level: coverage of the interval, in (0, 1).
    """
    a, b = _pairs("paired_difference", treated, baseline)
    return describe((a - b).tolist(), level)


def ratio_interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    level: float = 0.95,
    resamples: int = 4999,
    seed: int = 0,
) -> Interval | None:
    """Percentile bootstrap interval of sum(numerators) / sum(denominators), resampling whole pairs.

    Args:
        numerators: positive numbers, one per seed, such as the seconds of the baseline.
        denominators: positive numbers of the same seeds, such as the seconds of the method.
        level: coverage, in (0, 1).
        resamples: bootstrap samples, at least 1.
        seed: of the resampling; the same numbers always give the same interval.

    Returns:
        The interval, or None below 3 pairs, where resampling says nothing.
    """
    a, b = _pairs("ratio_interval", numerators, denominators)
    _check_level("ratio_interval", level)
    if min(a.min(), b.min()) <= 0:
        raise ValueError(f"ratio_interval: values: expected positive numbers, got {min(a.min(), b.min())}")
    if a.size < 3:
        return None
    picks = np.random.default_rng(seed).integers(0, a.size, size=(resamples, a.size))
    ratios = a[picks].sum(axis=1) / b[picks].sum(axis=1)
    low, high = np.quantile(ratios, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(low), float(high))


def noninferiority(
    differences: Sequence[float], margin: float = MARGIN, level: float = 0.95, minimum: int = MINIMUM_PAIRS
) -> Verdict:
    """Whether a method loses at most `margin` against its baseline, by one-sided t bounds of the mean difference.

    Args:
        differences: method - baseline of each paired seed; higher is better.
        margin: loss that still counts as equal, in the unit of the differences, > 0.
        level: one-sided confidence, in (0.5, 1).
        minimum: pairs below which the answer is always "inconclusive".

    Returns:
        "non-inferior" if the lower bound is above -margin, "inferior" if the upper bound is below -margin.
    """
    if margin <= 0:
        raise ValueError(f"noninferiority: margin: expected a positive number, got {margin}")
    if not 0.5 < level < 1:
        raise ValueError(f"noninferiority: level: expected a number in (0.5, 1), got {level}")
    if len(differences) < max(minimum, 2):
        return "inconclusive"
    # The two-sided interval of coverage 2 * level - 1 has the one-sided bounds of the wanted level as its ends.
    bounds = describe(differences, 2 * level - 1).interval
    assert bounds is not None
    if bounds.low > -margin:
        return "non-inferior"
    return "inferior" if bounds.high < -margin else "inconclusive"


def _numbers(function: str, argument: str, values: Sequence[float]) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"{function}: {argument}: expected at least one finite number, got {values!r}")
    return x


def _pairs(function: str, first: Sequence[float], second: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    if len(first) != len(second):
        raise ValueError(f"{function}: values: expected pairs, got {len(first)} and {len(second)} numbers")
    return _numbers(function, "values", first), _numbers(function, "values", second)


def _check_level(function: str, level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"{function}: level: expected a number in (0, 1), got {level}")
