# SPDX-License-Identifier: Apache-2.0
"""Patterns: which weights are kept or removed together, as one unit. Units count in C order of ``unit_shape``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from sparsekit import nm

Key = Literal["magnitude", "value"]
Units = tuple[Tensor, tuple[int, ...], float]


@runtime_checkable
class Pattern(Protocol):
    """What a projection asks of a pattern. A new one derives from this class and states the first two or three methods.

    ``shape`` is always the shape of a weight. Every method raises ValueError or TypeError on arguments that do not fit.
    """

    def unit_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the tensor that holds one entry per unit."""
        ...

    def describe(self) -> str:
        """The name that ``as_pattern`` turns back into an equal pattern."""
        ...

    def units_of(self, x: Tensor) -> Units:
        """x as (view, dims, p): reducing dims leaves one entry per unit, the p-norm ranks units; padding is zero."""
        return x, (), 1.0

    def unit_size(self, shape: Sequence[int]) -> int:
        """Weights in one full unit; units at a ragged edge are smaller: ``reduce_sum`` of ones counts them."""
        self.unit_shape(shape)
        view, dims, _ = self.units_of(torch.empty(tuple(shape), device="meta"))
        return math.prod(view.shape[d] for d in dims)

    def unit_scores(self, scores: Tensor, key: Key = "magnitude") -> Tensor:
        """One score per unit, float32 or wider where a unit has several weights; NaN spreads over its unit.

        scores: floats, shape of the weight. key: "magnitude" (p-norm over the unit, or |s|) or "value" (sum, or s).
        """
        where = f"{type(self).__name__}.unit_scores"
        if key not in ("magnitude", "value"):
            raise ValueError(f"{where}: key: expected 'magnitude' or 'value', got {key!r}")
        if not _tensor(where, "scores", scores).is_floating_point():
            raise TypeError(f"{where}: scores: expected a floating point tensor, got {scores.dtype}")
        self.unit_shape(scores.shape)
        view, dims, p = self.units_of(scores)
        if not dims:
            return view.abs() if key == "magnitude" else view
        # float64 keeps the squares of float32 scores in range and makes rounding differences between devices rare.
        add, wide = key == "value" or view.numel() == 0, torch.float64
        units = view.sum(dims, dtype=wide) if add else torch.linalg.vector_norm(view, p, dims, dtype=wide)
        return units.to(torch.promote_types(scores.dtype, torch.float32))

    def reduce_sum(self, x: Tensor) -> Tensor:
        """Sum over each unit: shape ``unit_shape``, int64 for bool and integers, else float32 or wider."""
        self.unit_shape(_tensor(f"{type(self).__name__}.reduce_sum", "x", x).shape)
        view, dims, _ = self.units_of(x)
        wide, out = (torch.float64, torch.float32) if x.is_floating_point() else (torch.int64, torch.int64)
        return (view.sum(dims, dtype=wide) if dims else view).to(torch.promote_types(x.dtype, out))

    def expand(self, unit_values: Tensor, shape: Sequence[int]) -> Tensor:
        """Each unit's value (any dtype) repeated over its weights, in ``shape``; may be a view: do not write to it."""
        where, expected = f"{type(self).__name__}.expand", self.unit_shape(shape)
        if tuple(_tensor(where, "unit_values", unit_values).shape) != expected:
            raise ValueError(f"{where}: unit_values: expected shape {expected}, got {tuple(unit_values.shape)}")
        view, dims, _ = self.units_of(torch.empty(tuple(shape), device="meta"))
        for d in dims:
            unit_values = unit_values.unsqueeze(d)
        return unit_values.expand(view.shape)

    def fixed_budget(self, shape: Sequence[int]) -> int | None:
        """Units kept when the pattern itself fixes that number, else None."""
        self.unit_shape(shape)
        return None


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Every weight is a unit of its own."""

    def unit_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return _dims("Unstructured", shape, 0)

    def describe(self) -> str:
        return "unstructured"


@dataclass(frozen=True)
class Filter(Pattern):
    """A unit is an output channel (dim 0), ranked by the p-norm of its scores; p > 0, may be inf. BiP uses p = 2."""

    p: float = 2.0

    def __post_init__(self) -> None:
        _check_p("Filter", self.p)

    def unit_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return _dims("Filter", shape, 2)[:1]

    def units_of(self, x: Tensor) -> Units:
        return x, tuple(range(1, x.ndim)), self.p

    def describe(self) -> str:
        return "filter" + _suffix(self.p)


@dataclass(frozen=True)
class Channel(Pattern):
    """A unit is an input channel (dim 1: of a grouped layer, of the group), ranked as in Filter. SpODE uses p = 1."""

    p: float = 2.0

    def __post_init__(self) -> None:
        _check_p("Channel", self.p)

    def unit_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return _dims("Channel", shape, 2)[1:2]

    def units_of(self, x: Tensor) -> Units:
        return x, (0, *range(2, x.ndim)), self.p

    def describe(self) -> str:
        return "channel" + _suffix(self.p)


@dataclass(frozen=True, repr=False)
class NM(Pattern):
    """n of every m consecutive input positions (dim 1) are kept, for each output channel and kernel position.

    Dim 1 must be a multiple of m; 1 <= n <= m. Masks come from ``select``. Source: Zhou et al., ICLR 2021 (N:M).
    transposable: for 2:4, also two of every four output channels (dim 0, a multiple of 4) are kept, so that the transposed
    weight is 2:4 too; of all such masks the one with the largest sum in every 4 x 4 tile.
    """

    n: int
    m: int
    transposable: bool = False

    def __post_init__(self) -> None:
        nm.check(self.n, self.m, self.transposable)

    def __repr__(self) -> str:
        return f"NM(n={self.n}, m={self.m}{', transposable=True' if self.transposable else ''})"

    def unit_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return nm.check_shape(_dims("NM", shape, 2), self.m, self.transposable)

    def fixed_budget(self, shape: Sequence[int]) -> int | None:
        return math.prod(self.unit_shape(shape)) // self.m * self.n

    def select(self, scores: Tensor) -> Tensor:
        """Bool mask, shape as scores, of the largest values; ties go to the lowest position, NaN is out."""
        self.unit_shape(_tensor("NM.select", "scores", scores).shape)
        return nm.best_tiles(scores) if self.transposable else nm.largest_of_m(scores, self.n, self.m)

    def describe(self) -> str:
        return f"{self.n}:{self.m}{'-transposable' if self.transposable else ''}"


@dataclass(frozen=True)
class Block(Pattern):
    """A unit is an h x w block of the [shape[0], rest] view (a vector is one row), smaller at the edges; h, w >= 1."""

    h: int
    w: int
    p: float = 2.0

    def __post_init__(self) -> None:
        if not (type(self.h) is type(self.w) is int and self.h >= 1 and self.w >= 1):
            raise ValueError(f"Block: h, w: expected integers >= 1, got {self.h!r}, {self.w!r}")
        _check_p("Block", self.p)

    def unit_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        rows, cols = _rows_cols(_dims("Block", shape, 1))
        return -(-rows // self.h), -(-cols // self.w)

    def units_of(self, x: Tensor) -> Units:
        (rows, cols), (high, wide) = _rows_cols(x.shape), self.unit_shape(x.shape)
        grid = x.new_zeros(high * self.h, wide * self.w)
        grid[:rows, :cols] = x.reshape(rows, cols)
        return grid.reshape(high, self.h, wide, self.w), (1, 3), self.p

    def expand(self, unit_values: Tensor, shape: Sequence[int]) -> Tensor:
        rows, cols = _rows_cols(_dims("Block", shape, 1))
        grid = Pattern.expand(self, unit_values, shape).flatten(2).flatten(0, 1)
        return grid[:rows, :cols].reshape(tuple(shape))

    def describe(self) -> str:
        return f"block{self.h}x{self.w}" + _suffix(self.p)


def as_pattern(pattern: str | Pattern) -> Pattern:
    """The pattern of a name: "unstructured", "filter", "channel", "<n>:<m>", "2:4-transposable" or "block<h>x<w>".

    Filter, channel and block take a suffix for a norm other than 2: "channel-l1", "filter-linf". A pattern stays itself.
    """
    if isinstance(pattern, Pattern) and not isinstance(pattern, type):
        return pattern
    if not isinstance(pattern, str):
        raise TypeError(f"as_pattern: pattern: expected a name or a Pattern, got {type(pattern).__name__}")
    if found := re.fullmatch(r"(\d+):(\d+)(-transposable)?", pattern):
        return NM(int(found[1]), int(found[2]), found[3] is not None)
    if found := re.fullmatch(r"(filter|channel|block(\d+)x(\d+))(?:-l(inf|\d+(?:\.\d+)?(?:e[+-]\d+)?))?", pattern):
        p = float(found[4] or 2.0)
        if found[2]:
            return Block(int(found[2]), int(found[3]), p)
        return Filter(p) if found[1] == "filter" else Channel(p)
    if pattern != "unstructured":
        names = "unstructured, filter, channel, 2:4, block4x4 or alike"
        raise ValueError(f"as_pattern: pattern: expected {names}, got {pattern!r}")
    return Unstructured()


def _tensor(where: str, argument: str, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{where}: {argument}: expected a Tensor, got {type(x).__name__}")
    return x


def _dims(where: str, shape: Sequence[int], least: int) -> tuple[int, ...]:
    dims = tuple(shape)
    if len(dims) < least or not all(type(n) is int and n >= 0 for n in dims):
        raise ValueError(f"{where}: shape: expected at least {least} dimensions, all integers >= 0, got {dims}")
    return dims


def _rows_cols(dims: Sequence[int]) -> tuple[int, int]:
    return (1, dims[0]) if len(dims) == 1 else (dims[0], math.prod(dims[1:]))


def _check_p(where: str, p: float) -> None:
    if not (isinstance(p, (int, float)) and p > 0):
        raise ValueError(f"{where}: p: expected a number > 0 or inf, got {p!r}")


def _suffix(p: float) -> str:
    return "" if p == 2 else f"-l{float(p)!r}".removesuffix(".0")
