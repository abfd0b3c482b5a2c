# SPDX-License-Identifier: Apache-2.0
"""Structured masks: scores of units, masks from decisions on units, n of every m. Schemas, fakes and public functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sparsekit.ops import shards
from sparsekit.ops import structured_reference as reference
from sparsekit.ops.masks import KEYS, NAN_POLICIES, Selection, check_words, choose
from sparsekit.ops.reference import rows_cols, words_shape
from sparsekit.ops.schemas import DEFAULT, LIBRARY, OP_NAMES

Groups = Literal["filter", "channel"] | tuple[int, int]
STRUCTURED_OPS = ("group_scores", "expand_units", "nm_mask", "transposable_nm_mask")

LIBRARY.define("group_scores(Tensor scores, SymInt[] grid, SymInt[] unit, float p, str key) -> Tensor")
LIBRARY.define("expand_units(Tensor units, SymInt[] shape, SymInt[] grid, SymInt[] unit) -> Tensor")
LIBRARY.define("nm_mask(Tensor[] scores, int n, int m, str key, str nan) -> (Tensor[], Tensor)")
LIBRARY.define("transposable_nm_mask(Tensor[] scores, str key, str nan) -> (Tensor[], Tensor)")
OP_NAMES += STRUCTURED_OPS
for _name in STRUCTURED_OPS:
    LIBRARY.impl(_name, getattr(reference, _name), DEFAULT)


def _fake_group_scores(scores: Tensor, grid: Sequence[int], unit: Sequence[int], p: float, key: str) -> Tensor:
    return scores.new_empty(tuple(grid), dtype=reference.score_dtype(scores.dtype))


def _fake_expand_units(units: Tensor, shape: Sequence[int], grid: Sequence[int], unit: Sequence[int]) -> Tensor:
    return units.new_empty(words_shape(shape))


def _fake_masks(scores: Sequence[Tensor], *arguments: int | str) -> tuple[list[Tensor], Tensor]:
    words = [s.new_empty(words_shape(s.shape), dtype=torch.int32) for s in scores]
    return words, scores[0].new_empty((), dtype=torch.bool)


def _fake_nm(scores: Sequence[Tensor], n: int, m: int, key: str, nan: str) -> tuple[list[Tensor], Tensor]:
    return _fake_masks(scores)


def _fake_tiles(scores: Sequence[Tensor], key: str, nan: str) -> tuple[list[Tensor], Tensor]:
    return _fake_masks(scores)


_FAKES = (_fake_group_scores, _fake_expand_units, _fake_nm, _fake_tiles)
for _name, _fake in zip(STRUCTURED_OPS, _FAKES, strict=True):
    torch.library.register_fake(f"sparsekit::{_name}", _fake, lib=LIBRARY)


class Units(NamedTuple):
    """Units as rectangles of the [rows, cols] view of a weight.

    shape: of a tensor with one entry per unit. grid: (high, wide), the same entries in rows and columns. unit: (h, w).
    """

    shape: tuple[int, ...]
    grid: tuple[int, int]
    unit: tuple[int, int]


def units_of(function: str, shape: Sequence[int], groups: Groups) -> Units:
    """The units of a weight of ``shape``; raises ValueError or TypeError in the name of ``function``."""
    dims, (rows, cols) = tuple(shape), rows_cols(shape)
    if groups in ("filter", "channel"):
        if len(dims) < 2:
            raise ValueError(f"{function}: shape: expected at least 2 dimensions for {groups}s, got {dims}")
        if groups == "filter":
            return Units(dims[:1], (rows, 1), (1, cols))
        return Units(dims[1:2], (1, dims[1]), (rows, math.prod(dims[2:])))
    if not (isinstance(groups, tuple) and len(groups) == 2 and all(type(n) is int and n >= 1 for n in groups)):
        expected = "'filter', 'channel' or a block (h, w) of ints >= 1"
        raise ValueError(f"{function}: groups: expected {expected}, got {groups!r}")
    grid = (-(-rows // groups[0]), -(-cols // groups[1]))
    # A block that is larger than the weight is all of it, so that nothing need be padded.
    return Units(grid, grid, (min(groups[0], max(rows, 1)), min(groups[1], max(cols, 1))))


def _check_scores(name: str, scores: Tensor) -> None:
    shards.check_score(name, scores)
    if shards.is_spread(scores):
        raise TypeError(f"{name}: expected a plain tensor, got a DTensor; use Projection")


def group_scores(scores: Tensor, groups: Groups, *, p: float = 2.0, key: str = "magnitude") -> Tensor:
    """One score per filter, channel or block, in one pass over the scores.

    Args:
        scores: floats, any strides. Never modified, not differentiated.
        groups: "filter" (dim 0), "channel" (dim 1), or a block (h, w) of the [rows, cols] view, smaller at the edges.
        p: of the norm, > 0, may be inf.
        key: "magnitude", the p-norm over the unit, or "value", its sum.

    Returns:
        float32 (float64 for float64 scores): [shape[0]], [shape[1]] or [ceil(rows/h), ceil(cols/w)]. NaN spreads over its
        unit; a unit without weights scores 0. Sums are float64; where the compiled module serves, their order is fixed,
        so that the result does not depend on threads or device (for p other than 1, 2, inf: on the device's pow).

    Raises:
        ValueError, TypeError: an argument is out of range or of a wrong kind.
    """
    choose("group_scores", "key", key, KEYS)
    _check_scores("group_scores: scores", scores)
    if not (isinstance(p, (int, float)) and p > 0):
        raise ValueError(f"group_scores: p: expected a number > 0 or inf, got {p!r}")
    units = units_of("group_scores", scores.shape, groups)
    found = torch.ops.sparsekit.group_scores(scores.detach(), units.grid, units.unit, float(p), key)
    return found.reshape(units.shape)


def expand_units(words: Tensor, shape: Sequence[int], groups: Groups) -> Tensor:
    """The packed mask of a weight of ``shape`` whose units are kept or removed as ``words`` says.

    Args:
        words: int32 words (as ``pack_mask``) of a mask with one entry per unit, of the shape that ``group_scores`` gives.
        shape: of the weight.
        groups: "filter", "channel" or a block (h, w).

    Returns:
        int32 words of a mask of ``shape``; no mask of single weights is formed on the way.

    Raises:
        ValueError, TypeError: an argument is out of range or of a wrong kind.
    """
    units = units_of("expand_units", shape, groups)
    check_words("expand_units", words, units.shape, "units")
    return torch.ops.sparsekit.expand_units(words, list(shape), units.grid, units.unit)


def _checked(function: str, scores: Sequence[Tensor], key: str, nan: str, multiples: Sequence[int]) -> list[Tensor]:
    """The scores, detached; raises unless dim d of each is a multiple of multiples[d]."""
    choose(function, "key", key, KEYS)
    choose(function, "nan", nan, NAN_POLICIES)
    if isinstance(scores, Tensor) or not isinstance(scores, Sequence):
        got = "one tensor" if isinstance(scores, Tensor) else type(scores).__name__
        raise TypeError(f"{function}: scores: expected a sequence of tensors, got {got}")
    for i, s in enumerate(scores):
        _check_scores(f"{function}: scores[{i}]", s)
        if s.device != scores[0].device:
            raise ValueError(f"{function}: scores[{i}]: expected device {scores[0].device}, got {s.device}")
        if s.ndim < 2 or any(n % multiple for n, multiple in zip(s.shape, multiples, strict=False)):
            expected = " and ".join(f"dim {d} divisible by {m}" for d, m in enumerate(multiples) if m > 1)
            expected = expected or "at least 2 dimensions"
            raise ValueError(f"{function}: scores[{i}]: expected {expected}, got shape {tuple(s.shape)}")
    return [s.detach() for s in scores]


def nm_mask(scores: Sequence[Tensor], n: int, m: int, *, key: str = "magnitude", nan: str = "error") -> Selection:
    """Masks that keep the n largest of every m consecutive entries of dim 1, for each row and kernel position.

    Args:
        scores: float tensors [out, in, ...] with ``in`` divisible by m, any strides, one device. Never modified.
        n, m: integers, 1 <= n <= m.
        key: rank by "magnitude" |s| or by signed "value".
        nan: "error" sets ``invalid``; "drop" never keeps a NaN, so fewer than n may be left; "keep" ranks NaN above inf.

    Returns:
        Selection of int32 words. Ties go to the lowest position, -0.0 equals 0.0.

    Raises:
        ValueError, TypeError: an argument is out of range or of a wrong kind.
    """
    if not (type(n) is type(m) is int and 1 <= n <= m):
        raise ValueError(f"nm_mask: n, m: expected integers, 1 <= n <= m, got {n!r}, {m!r}")
    checked = _checked("nm_mask", scores, key, nan, (1, m))
    if not checked:
        return Selection([], torch.zeros((), dtype=torch.bool))
    return Selection(*torch.ops.sparsekit.nm_mask(checked, n, m, key, nan))


def transposable_nm_mask(scores: Sequence[Tensor], *, key: str = "magnitude", nan: str = "error") -> Selection:
    """2:4 masks whose transposes are 2:4 too: two kept in each row and column of every 4 x 4 tile of dims 0 and 1.

    Of the 90 such masks of a tile the one with the largest sum of scores, for each kernel position on its own.

    Args:
        scores: float tensors [out, in, ...], both divisible by 4, any strides, one device. Never modified.
        key: sum |s| ("magnitude") or s ("value").
        nan: "error" sets ``invalid``; "drop" takes the best sum of what is not NaN and keeps no NaN, so a tile may keep
            fewer; "keep" keeps as many NaN as a mask can.

    Returns:
        Selection of int32 words. Sums are float64, (row 0 + row 1) + (row 2 + row 3), of scores within +-2^1000,
        infinities included; among equal sums the first mask in lexicographic order of the columns kept row by row.

    Raises:
        ValueError, TypeError: an argument is out of range or of a wrong kind.
    """
    checked = _checked("transposable_nm_mask", scores, key, nan, (4, 4))
    if not checked:
        return Selection([], torch.zeros((), dtype=torch.bool))
    return Selection(*torch.ops.sparsekit.transposable_nm_mask(checked, key, nan))
