# SPDX-License-Identifier: Apache-2.0
"""Allocation: a sparsity -> integer budgets of units to keep, global or per layer, with exact sums."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any, Protocol

Shapes = Mapping[str, Sequence[int]]
Units = Mapping[str, int]
Budget = int | dict[str, int]


def exact_sparsity(function: str, sparsity: Any) -> Fraction:
    """``sparsity`` as the decimal that a person reads (0.1 is one tenth), checked to lie in [0, 1)."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, (numbers.Real, Decimal, str)):
        raise TypeError(f"{function}: sparsity: expected a number in [0, 1), got {sparsity!r}")
    try:
        exact = Fraction(sparsity) if isinstance(sparsity, numbers.Rational) else Fraction(str(sparsity))
    except ValueError:
        raise ValueError(f"{function}: sparsity: expected a number in [0, 1), got {sparsity!r}") from None
    if not 0 <= exact < 1:
        raise ValueError(f"{function}: sparsity: expected a number in [0, 1), got {sparsity!r}")
    return exact


def kept_count(n: int, sparsity: Any) -> int:
    """Units kept of ``n``: n - floor(sparsity * n + 1/2), with ``sparsity`` taken as an exact decimal.

    Args:
        n: >= 0.
        sparsity: fraction removed in [0, 1): int, float, str, Decimal, Fraction or a NumPy number.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise ValueError(f"kept_count: n: expected an int >= 0, got {n!r}")
    return n - math.floor(exact_sparsity("kept_count", sparsity) * n + Fraction(1, 2))


class Allocation(Protocol):
    """(shapes, units, sparsity) -> units to keep: one int over all layers, or one for each."""

    @property
    def min_keep(self) -> int:
        """Units that every layer keeps at least (a smaller layer keeps all)."""
        ...

    def __call__(self, shapes: Shapes, units: Units, sparsity: Any) -> Budget: ...


def _check_min_keep(function: str, min_keep: int) -> None:
    if isinstance(min_keep, bool) or not isinstance(min_keep, int) or min_keep < 0:
        raise ValueError(f"{function}: min_keep: expected an int >= 0, got {min_keep!r}")


def _with_floor(function: str, kept: dict[str, int], units: Units, min_keep: int) -> dict[str, int]:
    """Raise small layers to ``min_keep`` and take as much from the layers with most units kept: the sum stays."""
    floors = {name: min(min_keep, n) for name, n in units.items()}
    if sum(floors.values()) > sum(kept.values()):
        total = sum(kept.values())
        raise ValueError(f"{function}: min_keep: expected at most {total} units in all, got {sum(floors.values())}")
    raised = {name: max(n, floors[name]) for name, n in kept.items()}
    excess = sum(raised.values()) - sum(kept.values())
    while excess:
        name = max(raised, key=lambda layer: raised[layer] - floors[layer])
        second = max((raised[n] - floors[n] for n in raised if n != name), default=0)
        taken = min(excess, max(1, raised[name] - floors[name] - second))
        raised[name] -= taken
        excess -= taken
    return raised


@dataclass(frozen=True)
class Global:
    """One budget over all layers: kept_count(all units, sparsity). The projection sees to ``min_keep``.

    rounding: "nearest" (kept_count), or "floor", which removes floor(sparsity * n) units as the released BiP code does.
    """

    min_keep: int = 0
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        _check_min_keep("Global", self.min_keep)
        if self.rounding not in ("nearest", "floor"):
            raise ValueError(f"Global: rounding: expected nearest or floor, got {self.rounding!r}")

    def __call__(self, shapes: Shapes, units: Units, sparsity: Any) -> int:
        """Units to keep over all layers."""
        total = sum(units.values())
        if self.rounding == "floor":
            return total - math.floor(exact_sparsity("Global", sparsity) * total)
        return kept_count(total, sparsity)


@dataclass(frozen=True)
class Uniform:
    """The same sparsity in each layer: kept_count of its own units."""

    min_keep: int = 0

    def __post_init__(self) -> None:
        _check_min_keep("Uniform", self.min_keep)

    def __call__(self, shapes: Shapes, units: Units, sparsity: Any) -> dict[str, int]:
        """Units to keep in each layer."""
        kept = {name: kept_count(n, sparsity) for name, n in units.items()}
        return _with_floor("Uniform", kept, units, self.min_keep)


@dataclass(frozen=True)
class ERK:
    """Erdos-Renyi-Kernel (Evci et al., 2020): a layer's density is proportional to sum(shape) / prod(shape).

    Layers whose density would exceed 1 are kept whole and the others share the rest; the total is kept_count(all, sparsity),
    met exactly by largest remainders. power: exponent of the ratio, 0 is uniform density.
    """

    power: float = 1.0
    min_keep: int = 0

    def __post_init__(self) -> None:
        _check_min_keep("ERK", self.min_keep)
        if not (isinstance(self.power, (int, float)) and math.isfinite(self.power) and self.power >= 0):
            raise ValueError(f"ERK: power: expected a number >= 0, got {self.power!r}")

    def __call__(self, shapes: Shapes, units: Units, sparsity: Any) -> dict[str, int]:
        """Units to keep in each layer."""
        total = kept_count(sum(units.values()), sparsity)
        ratio = {n: (sum(s) / math.prod(s)) ** self.power if math.prod(s) else 0.0 for n, s in shapes.items()}
        dense: set[str] = set()
        while True:
            free = {n: units[n] * ratio[n] for n in units if n not in dense}
            rest = total - sum(units[n] for n in dense)
            scale = rest / sum(free.values()) if sum(free.values()) else 0.0
            over = {n for n in free if ratio[n] * scale > 1}
            if not over or rest <= 0:
                break
            dense |= over
        share = {n: float(units[n]) if n in dense else free[n] * scale for n in units}
        return _with_floor("ERK", _rounded(share, units, total), units, self.min_keep)


def _rounded(share: Mapping[str, float], units: Units, total: int) -> dict[str, int]:
    """Integers near ``share`` that sum to ``total`` and stay within the layers, largest remainders first."""
    kept = {name: min(units[name], math.floor(value)) for name, value in share.items()}
    order = sorted(share, key=lambda name: kept[name] - share[name])
    missing = total - sum(kept.values())
    while missing:
        for name in order:
            if missing > 0 and kept[name] < units[name]:
                kept[name] += 1
                missing -= 1
            elif missing < 0 and kept[name] > 0:
                kept[name] -= 1
                missing += 1
    return kept


@dataclass(frozen=True)
class PerLayer:
    """Explicit sparsities: {glob over layer names: sparsity}, the first glob that matches decides.

    default: sparsity of layers that no glob matches; None takes the sparsity that the allocation is called with.
    """

    sparsities: Mapping[str, float] = field(default_factory=dict)
    default: float | None = None
    min_keep: int = 0

    def __post_init__(self) -> None:
        _check_min_keep("PerLayer", self.min_keep)
        for glob, sparsity in self.sparsities.items():
            exact_sparsity(f"PerLayer: {glob!r}", sparsity)
        if self.default is not None:
            exact_sparsity("PerLayer: default", self.default)

    def __call__(self, shapes: Shapes, units: Units, sparsity: Any) -> dict[str, int]:
        """Units to keep in each layer. Raises ValueError for a glob that matches no layer."""
        for glob in self.sparsities:
            if not any(fnmatchcase(name, glob) for name in units):
                near = difflib.get_close_matches(glob, units, n=3, cutoff=0.4)
                hint = f"; close: {', '.join(near)}" if near else ""
                raise ValueError(f"PerLayer: sparsities: expected names or globs of layers, got {glob!r}{hint}")
        default = sparsity if self.default is None else self.default
        chosen = {n: next((s for g, s in self.sparsities.items() if fnmatchcase(n, g)), default) for n in units}
        kept = {name: kept_count(n, chosen[name]) for name, n in units.items()}
        return _with_floor("PerLayer", kept, units, self.min_keep)


_BY_NAME: dict[str, type[Global] | type[Uniform] | type[ERK]] = {"global": Global, "uniform": Uniform, "erk": ERK}


def as_allocation(value: Any) -> Allocation:
    """An allocation from a name ("global", "uniform", "erk"), a mapping {glob: sparsity}, or an allocation object."""
    if isinstance(value, str) and value in _BY_NAME:
        return _BY_NAME[value]()
    if isinstance(value, Mapping):
        return PerLayer(value)
    if callable(value) and not isinstance(value, type) and hasattr(value, "min_keep"):
        return value  # pyright: ignore[reportReturnType]
    raise ValueError(f"as_allocation: expected one of {', '.join(_BY_NAME)}, a mapping or an allocation, got {value!r}")
