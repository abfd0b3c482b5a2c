# SPDX-License-Identifier: Apache-2.0
"""Patterns: which weights are kept or removed together. A pattern reduces scores to units and expands decisions.

Units are ordered as the C order of ``unit_shape``, so ties between units go to the lowest one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Pattern(Protocol):
    """What the projection and the pruners need to know about a structure."""

    def unit_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the tensor with one entry per unit, for a weight of ``shape``."""
        ...

    def unit_scores(self, scores: Tensor, key: str = "magnitude") -> Tensor:
        """One score per unit: the norm of |s| ("magnitude") or the sum of s ("value") over the unit."""
        ...

    def expand(self, units: Tensor, shape: Sequence[int]) -> Tensor:
        """Give every weight of ``shape`` the value of its unit."""
        ...

    def reduce_sum(self, x: Tensor) -> Tensor:
        """Sum of ``x`` over each unit: [unit_shape]."""
        ...


def _check_rank(name: str, shape: Sequence[int]) -> None:
    if len(shape) < 2:
        raise ValueError(f"{name}: shape: expected at least 2 dimensions, got {tuple(shape)}")


def _check_key(name: str, key: str) -> None:
    if key not in ("magnitude", "value"):
        raise ValueError(f"{name}: key: expected magnitude or value, got {key!r}")


@dataclass(frozen=True)
class Unstructured:
    """Every weight is a unit of its own."""

    def unit_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The weight's own shape."""
        return tuple(shape)

    def unit_scores(self, scores: Tensor, key: str = "magnitude") -> Tensor:
        """|s| or s."""
        _check_key("Unstructured", key)
        return scores.abs() if key == "magnitude" else scores

    def expand(self, units: Tensor, shape: Sequence[int]) -> Tensor:
        """The units themselves."""
        return units.reshape(tuple(shape))

    def reduce_sum(self, x: Tensor) -> Tensor:
        """x itself."""
        return x


@dataclass(frozen=True)
class _Slices:
    """Slices of a weight along one dimension; p is the order of the norm that scores a slice."""

    p: float = 2.0

    def __post_init__(self) -> None:
        if not (isinstance(self.p, (int, float)) and math.isfinite(self.p) and self.p > 0):
            raise ValueError(f"{type(self).__name__}: p: expected a number > 0, got {self.p!r}")

    def _dim(self) -> int:
        raise NotImplementedError

    def unit_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """[number of slices]."""
        _check_rank(type(self).__name__, shape)
        return (int(shape[self._dim()]),)

    def reduce_sum(self, x: Tensor) -> Tensor:
        """Sum over each slice."""
        _check_rank(type(self).__name__, x.shape)
        return x.sum(dim=[d for d in range(x.ndim) if d != self._dim()])

    def unit_scores(self, scores: Tensor, key: str = "magnitude") -> Tensor:
        """(sum |s|^p)^(1/p) over a slice, or the sum of s. Accumulated in at least fp32."""
        _check_key(type(self).__name__, key)
        wide = scores if scores.dtype == torch.float64 else scores.float()
        if key == "value":
            return self.reduce_sum(wide)
        # Scaled by the largest entry, so that squares of tiny or huge scores neither vanish nor overflow.
        top = wide.abs().amax().clamp_min(torch.finfo(wide.dtype).tiny) if wide.numel() else wide.new_ones(())
        scale = torch.where(torch.isfinite(top), top, torch.ones_like(top))
        return self.reduce_sum((wide / scale).abs().pow(self.p)).pow(1 / self.p) * scale

    def expand(self, units: Tensor, shape: Sequence[int]) -> Tensor:
        """Broadcast [slices] over a weight of ``shape``."""
        view = [1] * len(shape)
        view[self._dim()] = -1
        return units.reshape(view).expand(tuple(shape))


@dataclass(frozen=True)
class Filter(_Slices):
    """Output channels (dim 0); the score of a filter is the p-norm of its weights' scores."""

    def _dim(self) -> int:
        return 0


@dataclass(frozen=True)
class Channel(_Slices):
    """Input channels (dim 1, per group for grouped convolutions); scored like ``Filter``."""

    def _dim(self) -> int:
        return 1


@dataclass(frozen=True)
class NM:
    """n kept of every m consecutive input positions (dim 1), for each output and kernel position."""

    n: int
    m: int

    def __post_init__(self) -> None:
        if not (isinstance(self.n, int) and isinstance(self.m, int) and 0 < self.n <= self.m):
            raise ValueError(f"NM: n, m: expected ints with 0 < n <= m, got {self.n!r}, {self.m!r}")

    def _check(self, shape: Sequence[int]) -> None:
        _check_rank("NM", shape)
        if shape[1] % self.m:
            expected = f"dimension 1 to be a multiple of {self.m} (skip the layer otherwise)"
            raise ValueError(f"NM: shape: expected {expected}, got {tuple(shape)}")

    def unit_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The weight's own shape: single weights are decided, n in each group."""
        self._check(shape)
        return tuple(shape)

    def unit_scores(self, scores: Tensor, key: str = "magnitude") -> Tensor:
        """|s| or s."""
        _check_key("NM", key)
        self._check(scores.shape)
        return scores.abs() if key == "magnitude" else scores

    def expand(self, units: Tensor, shape: Sequence[int]) -> Tensor:
        """The units themselves."""
        return units.reshape(tuple(shape))

    def reduce_sum(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def select(self, scores: Tensor) -> Tensor:
        """Bool mask of the n largest of each group of m; among equals the lowest position is kept."""
        self._check(scores.shape)
        groups = scores.movedim(1, -1)
        flat = groups.reshape(-1, self.m)
        order = torch.sort(flat, dim=1, descending=True, stable=True).indices[:, : self.n]
        mask = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, True)
        return mask.reshape(groups.shape).movedim(-1, 1).contiguous()


@dataclass(frozen=True)
class Block:
    """h x w blocks of the weight as a [rows, cols] matrix; blocks at the edges may be smaller. Scored by the 2-norm."""

    h: int
    w: int

    def __post_init__(self) -> None:
        if not (isinstance(self.h, int) and isinstance(self.w, int) and self.h > 0 and self.w > 0):
            raise ValueError(f"Block: h, w: expected ints > 0, got {self.h!r}, {self.w!r}")

    def unit_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """[ceil(rows/h), ceil(cols/w)]."""
        _check_rank("Block", shape)
        return -(-int(shape[0]) // self.h), -(-math.prod(shape[1:]) // self.w)

    def reduce_sum(self, x: Tensor) -> Tensor:
        """Sum over each block."""
        down, across = self.unit_shape(x.shape)
        matrix = x.reshape(x.shape[0], -1)
        matrix = F.pad(matrix, (0, across * self.w - matrix.shape[1], 0, down * self.h - matrix.shape[0]))
        return matrix.reshape(down, self.h, across, self.w).sum(dim=(1, 3))

    def unit_scores(self, scores: Tensor, key: str = "magnitude") -> Tensor:
        """2-norm of |s| over a block, or the sum of s. Accumulated in at least fp32."""
        _check_key("Block", key)
        wide = scores if scores.dtype == torch.float64 else scores.float()
        return self.reduce_sum(wide) if key == "value" else self.reduce_sum(wide * wide).sqrt()

    def expand(self, units: Tensor, shape: Sequence[int]) -> Tensor:
        """Repeat each block's value over its weights."""
        rows, cols = int(shape[0]), math.prod(shape[1:])
        spread = units.repeat_interleave(self.h, 0)[:rows].repeat_interleave(self.w, 1)[:, :cols]
        return spread.reshape(tuple(shape))


_BY_NAME: dict[str, Pattern] = {"unstructured": Unstructured(), "filter": Filter(), "channel": Channel()}


def as_pattern(value: Any) -> Pattern:
    """A pattern from a name ("unstructured", "filter", "channel", "2:4", "block4x4") or a pattern object."""
    if isinstance(value, str):
        if value in _BY_NAME:
            return _BY_NAME[value]
        if found := re.fullmatch(r"(\d+):(\d+)", value):
            return NM(int(found[1]), int(found[2]))
        if found := re.fullmatch(r"block(\d+)x(\d+)", value):
            return Block(int(found[1]), int(found[2]))
    elif hasattr(value, "unit_scores") and not isinstance(value, type):
        return value
    raise ValueError(f"as_pattern: expected {', '.join(_BY_NAME)}, 'N:M', 'blockHxW' or a pattern, got {value!r}")
