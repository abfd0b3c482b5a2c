# SPDX-License-Identifier: Apache-2.0
"""Allocation: from a sparsity to exact integer budgets, numbers of units kept. The only module that rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from difflib import get_close_matches
from fnmatch import fnmatchcase
from fractions import Fraction
from numbers import Real
from typing import Protocol, runtime_checkable

Budget = int | dict[str, int]
Number = float | str | Decimal | Fraction
Shapes = Mapping[str, Sequence[int]]


def kept_count(n: int, sparsity: Number) -> int:
    """Units kept of n at a sparsity: ``n - floor(sparsity * n + 1/2)``, with sparsity read as an exact decimal.

    Args:
        n: number of units, >= 0.
        sparsity: fraction removed, in [0, 1); 0.29 means 29/100, not the float nearest to it.
    Raises ValueError out of range, TypeError for what is not a number.
    """
    if type(n) is not int or n < 0:
        raise ValueError(f"kept_count: n: expected an integer >= 0, got {n!r}")
    return _kept(n, _exact("kept_count", "sparsity", sparsity))


@runtime_checkable
class Allocation(Protocol):
    """A rule that divides a sparsity among layers.

    Called with (shapes, units, sparsity): weight shapes and numbers of units (0 <= units) by layer name, with the same
    keys, and the fraction of units removed, in [0, 1). Returns one int (one ranking over all layers) or the units kept
    of each layer, in the order of ``units``. Raises ValueError when ``min_keep`` asks for more than there is.
    """

    @property
    def min_keep(self) -> int:
        """Units that every layer keeps at least; a smaller layer is kept whole."""
        ...

    def __call__(self, shapes: Shapes, units: Mapping[str, int], sparsity: Number) -> Budget: ...


@dataclass(frozen=True)
class Global:
    """One ranking over all layers: the budget is one int. ``min_keep`` is left to the projection, which sees scores.

    rounding: "nearest" is ``kept_count``; "floor" removes floor(sparsity * n) units, as the released BiP code counts.
    """

    min_keep: int = 0
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        _check_min_keep("Global", self.min_keep)
        if self.rounding not in ("nearest", "floor"):
            raise ValueError(f"Global: rounding: expected nearest or floor, got {self.rounding!r}")

    def __call__(self, shapes: Shapes, units: Mapping[str, int], sparsity: Number) -> int:
        total, removed = _total("Global", shapes, units), _exact("Global", "sparsity", sparsity)
        kept = total - math.floor(removed * total) if self.rounding == "floor" else _kept(total, removed)
        _floors("Global", units, self.min_keep, kept)
        return kept


@dataclass(frozen=True)
class Uniform:
    """Every layer at the same sparsity, each rounded by ``kept_count``."""

    min_keep: int = 0

    def __post_init__(self) -> None:
        _check_min_keep("Uniform", self.min_keep)

    def __call__(self, shapes: Shapes, units: Mapping[str, int], sparsity: Number) -> dict[str, int]:
        _total("Uniform", shapes, units)
        removed = _exact("Uniform", "sparsity", sparsity)
        return _raised("Uniform", {name: _kept(n, removed) for name, n in units.items()}, units, self.min_keep)


@dataclass(frozen=True)
class ERK:
    """Density of a layer proportional to (sum of its dimensions / product of its dimensions) ** power, at most 1.

    The counts add up to ``kept_count`` of all units: layers that would exceed density 1 are kept whole, the others are
    floored and the rest goes to the largest remainders, ties to the first layer. power in [0, 8]; 0 is one density.
    Source: Erdos-Renyi-kernel, Evci et al., "Rigging the lottery", ICML 2020, section 3.
    """

    power: float = 1.0
    min_keep: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.power, bool) or not isinstance(self.power, Real) or not 0 <= self.power <= 8:
            raise ValueError(f"ERK: power: expected a number in [0, 8], got {self.power!r}")
        _check_min_keep("ERK", self.min_keep)

    def __call__(self, shapes: Shapes, units: Mapping[str, int], sparsity: Number) -> dict[str, int]:
        kept = _kept(_total("ERK", shapes, units), _exact("ERK", "sparsity", sparsity))
        ratio = {name: _density_ratio(shapes[name], self.power) for name, n in units.items() if n}
        dense: set[str] = set()
        while True:
            rest = kept - sum(units[name] for name in dense)
            mass = sum(ratio[name] * units[name] for name in ratio.keys() - dense)
            scale = rest / mass if mass else Fraction(0)
            full = {name for name in ratio.keys() - dense if scale * ratio[name] > 1}
            if not full:
                break
            dense |= full
        share = {name: Fraction(units[name]) if name in dense else scale * ratio[name] * units[name] for name in ratio}
        counts = {name: math.floor(share.get(name, 0)) for name in units}
        by_remainder = sorted(share, key=lambda name: counts[name] - share[name])
        for name in by_remainder[: kept - sum(counts.values())]:
            counts[name] += 1
        return _raised("ERK", counts, units, self.min_keep)


@dataclass(frozen=True)
class PerLayer:
    """A sparsity for each layer by name or glob; an exact name comes first, then the first glob that matches.

    sparsities: name or glob -> fraction removed, in [0, 1). default: fraction for layers that none matches; None gives
    them the sparsity of the call. A key that decides for no layer is an error.
    """

    sparsities: Mapping[str, Number] = field(hash=False)
    default: Number | None = None
    min_keep: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.sparsities, Mapping):
            kind = type(self.sparsities).__name__
            raise TypeError(f"PerLayer: sparsities: expected a mapping of names to numbers, got {kind}")
        # A copy, so that a later change of the caller's dict cannot change a frozen value.
        object.__setattr__(self, "sparsities", dict(self.sparsities))
        for key, value in self.sparsities.items():
            _exact("PerLayer", f"sparsities[{key!r}]", value)
        if self.default is not None:
            _exact("PerLayer", "default", self.default)
        _check_min_keep("PerLayer", self.min_keep)

    def __call__(self, shapes: Shapes, units: Mapping[str, int], sparsity: Number) -> dict[str, int]:
        _total("PerLayer", shapes, units)
        default = _exact("PerLayer", "sparsity", sparsity) if self.default is None else self.default
        rule = {name: self._key(name) for name in units}
        for key in self.sparsities.keys() - set(rule.values()):
            if any(fnmatchcase(name, key) for name in units):
                raise ValueError(f"PerLayer: sparsities: expected {key!r} before the globs that match its layers")
            close = get_close_matches(key, list(units), n=3, cutoff=0.4)
            hint = f"; close names: {', '.join(close)}" if close else ""
            raise ValueError(f"PerLayer: sparsities: expected names or globs of layers, got {key!r}{hint}")
        wanted = {name: default if key is None else self.sparsities[key] for name, key in rule.items()}
        counts = {name: kept_count(units[name], value) for name, value in wanted.items()}
        return _raised("PerLayer", counts, units, self.min_keep)

    def _key(self, name: str) -> str | None:
        if name in self.sparsities:
            return name
        return next((key for key in self.sparsities if fnmatchcase(name, key)), None)


def as_allocation(allocation: str | Mapping[str, Number] | Allocation) -> Allocation:
    """The allocation of a name ("global", "uniform", "erk") or of a mapping (``PerLayer``); an allocation as it is."""
    if isinstance(allocation, str):
        if allocation not in _NAMED:
            expected = ", ".join(_NAMED)
            raise ValueError(f"as_allocation: allocation: expected one of {expected}, got {allocation!r}")
        return _NAMED[allocation]()
    if isinstance(allocation, Mapping):
        return PerLayer(allocation)
    if isinstance(allocation, Allocation) and not isinstance(allocation, type):
        return allocation
    kind = type(allocation).__name__
    raise TypeError(f"as_allocation: allocation: expected a name, a mapping or an Allocation, got {kind}")


_NAMED: dict[str, type[Global] | type[Uniform] | type[ERK]] = {"global": Global, "uniform": Uniform, "erk": ERK}


def _exact(where: str, argument: str, value: Number) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, (Real, str, Decimal)):
        raise TypeError(f"{where}: {argument}: expected a number in [0, 1), got {type(value).__name__}")
    try:
        # str of a float is the shortest decimal that means it: the number that was written.
        fraction = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        fraction = Fraction(-1)
    if not 0 <= fraction < 1:
        raise ValueError(f"{where}: {argument}: expected a number in [0, 1), got {value}")
    return fraction


def _kept(n: int, sparsity: Fraction) -> int:
    return n - math.floor(sparsity * n + Fraction(1, 2))


def _density_ratio(shape: Sequence[int], power: float) -> Fraction:
    ratio = Fraction(sum(shape) or 1, math.prod(shape))
    return ratio if power == 1 else Fraction(float(ratio) ** float(power))


def _check_min_keep(where: str, min_keep: int) -> None:
    if type(min_keep) is not int or min_keep < 0:
        raise ValueError(f"{where}: min_keep: expected an integer >= 0, got {min_keep!r}")


def _total(where: str, shapes: Shapes, units: Mapping[str, int]) -> int:
    if shapes.keys() != units.keys():
        names = ", ".join(sorted(shapes.keys() ^ units.keys()))
        raise ValueError(f"{where}: units: expected the layers of shapes, got a difference in {names}")
    for name, n in units.items():
        if type(n) is not int or n < 0 or (n and 0 in shapes[name]):
            raise ValueError(f"{where}: units[{name!r}]: expected an integer >= 0 that fits the shape, got {n!r}")
    return sum(units.values())


def _floors(where: str, units: Mapping[str, int], min_keep: int, kept: int) -> dict[str, int]:
    floors = {name: min(min_keep, n) for name, n in units.items()}
    if (need := sum(floors.values())) > kept:
        raise ValueError(f"{where}: min_keep: expected at most {kept} units in all, got {min_keep}, which needs {need}")
    return floors


def _raised(where: str, counts: dict[str, int], units: Mapping[str, int], min_keep: int) -> dict[str, int]:
    """Lift every layer to its floor and take the excess from the layers that keep most; the total is unchanged."""
    total = sum(counts.values())
    floors = _floors(where, units, min_keep, total)

    def cut(level: int) -> dict[str, int]:
        return {name: max(min(n, level), floors[name]) for name, n in counts.items()}

    low, high = 0, max(counts.values(), default=0)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(cut(middle).values()) <= total else (low, middle - 1)
    result, above = cut(low), cut(low + 1)
    # Of the layers that stand at the level, the first ones keep one more.
    spare = [name for name in result if above[name] > result[name]]
    for name in spare[: total - sum(result.values())]:
        result[name] += 1
    return result
