# SPDX-License-Identifier: Apache-2.0
"""Schedules: which sparsity to aim at in which step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from typing import Protocol, runtime_checkable


@runtime_checkable
class Schedule(Protocol):
    """A rule step -> sparsity.

    step: an integer >= 0. Returns the fraction removed, in [0, 1). Any function of that kind will do.
    """

    def __call__(self, step: int) -> float: ...


@dataclass(frozen=True)
class Constant:
    """The same sparsity in every step. final: in [0, 1)."""

    final: float

    def __post_init__(self) -> None:
        _check_sparsity("Constant", "final", self.final)

    def __call__(self, step: int) -> float:
        _check_step("Constant", step)
        return self.final


@dataclass(frozen=True)
class Linear:
    """Sparsity rises in equal steps.

    initial, final: in [0, 1), initial <= final; exactly initial up to step ``start``, exactly final from ``end`` on.
    With start == end the sparsity jumps there. The same arguments serve all ramps below.
    """

    initial: float
    final: float
    start: int
    end: int

    def __post_init__(self) -> None:
        _check_ramp("Linear", self.initial, self.final, self.start, self.end)

    def __call__(self, step: int) -> float:
        return _ramp(self, step, lambda u: self.initial + (self.final - self.initial) * u)


@dataclass(frozen=True)
class Cubic:
    """Sparsity rises fast first: final + (initial - final) * (1 - u)^3, u from 0 at start to 1 at end.

    Source: Zhu and Gupta, "To prune, or not to prune", 2017, equation 1.
    """

    initial: float
    final: float
    start: int
    end: int

    def __post_init__(self) -> None:
        _check_ramp("Cubic", self.initial, self.final, self.start, self.end)

    def __call__(self, step: int) -> float:
        return _ramp(self, step, lambda u: self.final + (self.initial - self.final) * (1 - u) ** 3)


@dataclass(frozen=True)
class Geometric:
    """Every step removes the same fraction of what remains: kept fraction d0^(1-u) * d1^u.

    Source: SpODE's step sizes ("exp"); IMP's ladder is the same curve.
    """

    initial: float
    final: float
    start: int
    end: int

    def __post_init__(self) -> None:
        _check_ramp("Geometric", self.initial, self.final, self.start, self.end)

    def __call__(self, step: int) -> float:
        return _ramp(self, step, lambda u: 1 - _geometric(1 - self.initial, 1 - self.final, u))


@dataclass(frozen=True)
class InverseGeometric:
    """Geometric with the order of its steps reversed: the smallest first, the largest last. Source: SpODE, "invexp"."""

    initial: float
    final: float
    start: int
    end: int

    def __post_init__(self) -> None:
        _check_ramp("InverseGeometric", self.initial, self.final, self.start, self.end)

    def __call__(self, step: int) -> float:
        both = 1 - self.initial + 1 - self.final
        return _ramp(self, step, lambda u: 1 - (both - _geometric(1 - self.initial, 1 - self.final, 1 - u)))


_Ramp = Linear | Cubic | Geometric | InverseGeometric
_RAMPS: dict[str, Callable[[float, float, int, int], _Ramp]] = {
    "linear": Linear,
    "cubic": Cubic,
    "geometric": Geometric,
    "inverse_geometric": InverseGeometric,
}
# The names that ``as_schedule`` knows.
TABLE = ("constant", *_RAMPS)


def as_schedule(
    schedule: str | Schedule, final: float | None = None, *, initial: float = 0.0, start: int = 0, end: int = 0
) -> Schedule:
    """The schedule of a name; a schedule is returned as it is.

    Args:
        schedule: "constant", "linear", "cubic", "geometric", "inverse_geometric", or a function step -> sparsity.
        final: sparsity at the end, in [0, 1). Needed with a name; a schedule that ends elsewhere is an error.
        initial, start, end: as in ``Linear``; unused by "constant" and by a schedule.
    """
    if isinstance(schedule, str):
        if final is None:
            raise ValueError(f"as_schedule: final: expected a number in [0, 1) with {schedule!r}, got None")
        if schedule == "constant":
            return Constant(final)
        if schedule not in _RAMPS:
            raise ValueError(f"as_schedule: schedule: expected one of {', '.join(TABLE)}, got {schedule!r}")
        return _RAMPS[schedule](initial, final, start, end)
    if not isinstance(schedule, Schedule) or isinstance(schedule, type):
        raise TypeError(f"as_schedule: schedule: expected a name or a function, got {type(schedule).__name__}")
    ends_at = getattr(schedule, "final", final)
    if final is not None and ends_at != final:
        raise ValueError(f"as_schedule: final: expected {ends_at}, where {schedule!r} ends, got {final}")
    return schedule


def imp_ladder(target: float, rate: float = 0.2) -> tuple[float, ...]:
    """Sparsities after each round of iterative magnitude pruning: 1 - (1 - rate)^n, the last exactly ``target``.

    The number of rounds is the nearest integer to log(1 - target) / log(1 - rate), at least 1, so that a target that
    was rounded for a table (0.738 for 1 - 0.8^6) costs no round of its own. Hence the last round cuts between half and
    one and a half times (in logarithm) what the others cut.

    Args:
        target: in [0, 1).
        rate: fraction of the remaining units that a round removes, in (0, 1).
    Source: Frankle and Carbin, "The lottery ticket hypothesis", ICLR 2019 (rate 0.2).
    """
    _check_sparsity("imp_ladder", "target", target)
    if isinstance(rate, bool) or not isinstance(rate, Real) or not 0 < rate < 1:
        raise ValueError(f"imp_ladder: rate: expected a number in (0, 1), got {rate!r}")
    rounds = max(1, round(math.log(1 - target) / math.log(1 - rate)))
    # In fractions, so that the rungs are 0.2, 0.36, 0.488 and not 0.19999999999999996.
    left = 1 - Fraction(str(rate))
    return (*(float(1 - left**n) for n in range(1, rounds)), target)


def _geometric(first: float, last: float, u: float) -> float:
    return first * (last / first) ** u


def _ramp(schedule: _Ramp, step: int, curve: Callable[[float], float]) -> float:
    _check_step(type(schedule).__name__, step)
    if step >= schedule.end:
        return schedule.final
    if step <= schedule.start:
        return schedule.initial
    # Rounding may carry a flat curve an ulp past its ends.
    value = curve((step - schedule.start) / (schedule.end - schedule.start))
    return min(max(value, schedule.initial), schedule.final)


def _check_step(where: str, step: int) -> None:
    if type(step) is not int or step < 0:
        raise ValueError(f"{where}: step: expected an integer >= 0, got {step!r}")


def _check_sparsity(where: str, argument: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value < 1:
        raise ValueError(f"{where}: {argument}: expected a number in [0, 1), got {value!r}")


def _check_ramp(where: str, initial: float, final: float, start: int, end: int) -> None:
    _check_sparsity(where, "initial", initial)
    _check_sparsity(where, "final", final)
    if initial > final:
        raise ValueError(f"{where}: initial: expected at most final={final}, got {initial}")
    if type(start) is not int or start < 0:
        raise ValueError(f"{where}: start: expected an integer >= 0, got {start!r}")
    if type(end) is not int or end < start:
        raise ValueError(f"{where}: end: expected an integer >= start={start}, got {end!r}")
