# SPDX-License-Identifier: Apache-2.0
"""Sparsity as a function of the step, and the sparsity series of the papers. Sparsity is the fraction removed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction


def _check_sparsity(function: str, argument: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{function}: {argument}: expected a number in [0, 1), got {value!r}")
    if not 0 <= value < 1:
        raise ValueError(f"{function}: {argument}: expected a number in [0, 1), got {value!r}")


@dataclass(frozen=True)
class Constant:
    """The same sparsity at every step."""

    final: float

    def __post_init__(self) -> None:
        _check_sparsity("Constant", "final", self.final)

    def __call__(self, step: int) -> float:
        """Sparsity at ``step``."""
        return self.final


@dataclass(frozen=True)
class _Ramp:
    """From ``initial`` at step ``start`` (and before) to ``final`` at step ``end`` (and after), exactly.

    initial, final: sparsities in [0, 1). start, end: steps, 0 <= start < end.
    """

    initial: float
    final: float
    start: int
    end: int

    def __post_init__(self) -> None:
        name = type(self).__name__
        _check_sparsity(name, "initial", self.initial)
        _check_sparsity(name, "final", self.final)
        if not 0 <= self.start < self.end:
            raise ValueError(f"{name}: end: expected 0 <= start < end, got start={self.start}, end={self.end}")

    def __call__(self, step: int) -> float:
        """Sparsity at ``step``."""
        if step <= self.start:
            return self.initial
        if step >= self.end:
            return self.final
        return self._between((step - self.start) / (self.end - self.start))

    def _between(self, t: float) -> float:
        raise NotImplementedError


@dataclass(frozen=True)
class Linear(_Ramp):
    """Sparsity grows in equal steps."""

    def _between(self, t: float) -> float:
        return self.initial + (self.final - self.initial) * t


@dataclass(frozen=True)
class Cubic(_Ramp):
    """final + (initial - final) * (1 - t)^3 (Zhu and Gupta, 2017): fast at first, gentle near the end."""

    def _between(self, t: float) -> float:
        return self.final + (self.initial - self.final) * (1 - t) ** 3


@dataclass(frozen=True)
class Geometric(_Ramp):
    """Density falls by the same factor at every step: k^t (SpODE's "exp" steps)."""

    def _between(self, t: float) -> float:
        before, after = 1 - self.initial, 1 - self.final
        return 1 - before * (after / before) ** t


@dataclass(frozen=True)
class InverseGeometric(_Ramp):
    """The geometric ramp mirrored: small reductions first (SpODE's "invexp" steps)."""

    def _between(self, t: float) -> float:
        before, after = 1 - self.initial, 1 - self.final
        return 1 - (before + after - before * (after / before) ** (1 - t))


SCHEDULES: dict[str, Callable[..., Callable[[int], float]]] = {
    "linear": Linear,
    "cubic": Cubic,
    "geometric": Geometric,
    "inverse-geometric": InverseGeometric,
}


def as_schedule(name: str, *, initial: float, final: float, start: int, end: int) -> Callable[[int], float]:
    """A schedule by name: "constant" (always ``final``), "linear", "cubic", "geometric", "inverse-geometric"."""
    if name == "constant":
        return Constant(final)
    if name not in SCHEDULES:
        raise ValueError(f"as_schedule: name: expected one of constant, {', '.join(SCHEDULES)}, got {name!r}")
    return SCHEDULES[name](initial, final, start, end)


def imp_ladder(target: float, rate: float = 0.2) -> tuple[float, ...]:
    """Sparsities after each round of IMP: 1 - (1 - rate)^n while below ``target``, then ``target`` exactly.

    Args:
        target: final sparsity in [0, 1); 0 gives no round.
        rate: fraction of the remaining weights removed per round, in (0, 1).

    A last round that would do less than a quarter of a round's work is merged into the one before it, so that a target
    written with three digits (0.986 for 1 - 0.8^19) takes the rounds that it is named after.
    """
    _check_sparsity("imp_ladder", "target", target)
    if not 0 < rate < 1:
        raise ValueError(f"imp_ladder: rate: expected a number in (0, 1), got {rate!r}")
    ladder: list[float] = []
    # Powers of an exact decimal: 0.8 as a float would drift off 0.64 by the second round.
    remaining, factor = Fraction(1), 1 - Fraction(str(rate))
    while float(1 - remaining * factor) < target and (1 - target) / float(remaining * factor) < 1 - rate / 4:
        remaining *= factor
        ladder.append(float(1 - remaining))
    return (*ladder, float(target)) if target > 0 else ()


def _series(*kept: float) -> tuple[float, ...]:
    return tuple(round(1 - k, 10) for k in kept)


# Kept fractions of the BiP repository's README, 0.8^n as printed there (unstructured), and in tenths (structured).
BIP_SERIES = _series(0.8, 0.64, 0.512, 0.41, 0.328, 0.262, 0.2097, 0.1678, 0.1342, 0.1074, 0.0859) + _series(
    0.0687, 0.055, 0.044, 0.035, 0.028, 0.0225, 0.018, 0.0144, 0.0115, 0.0092
)
STRUCTURED_SERIES = tuple(round(0.1 * n, 10) for n in range(1, 10))
# Kept fractions of the SpODE experiments.
SPODE_SERIES = _series(0.1, 0.07, 0.05, 0.035, 0.02)
SPODE_STRUCTURED_SERIES = _series(0.28, 0.2, 0.14, 0.1, 0.07)
# The sparsities of this project's own tables.
TABLE_SERIES = (0.488, 0.672, 0.738, 0.79, 0.866, 0.893, 0.945, 0.972, 0.986)


def rounds_to(target: float, rate: float = 0.2) -> int:
    """Rounds that IMP takes to ``target``; see ``imp_ladder``."""
    return len(imp_ladder(target, rate))


def density_to_sparsity(density: float) -> float:
    """1 - density, with the error of the subtraction rounded away at the 12th decimal."""
    if not 0 < density <= 1 or not math.isfinite(density):
        raise ValueError(f"density_to_sparsity: density: expected a number in (0, 1], got {density!r}")
    return round(1 - density, 12)
