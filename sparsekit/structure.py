# SPDX-License-Identifier: Apache-2.0
"""What can be seen in a mask: the pattern that it follows, and the units that nothing connects any more."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsekit.patterns import Block, Channel, Filter, Pattern

# 2:4 first: it is what hardware asks for, and a 1:2 mask is one.
_GROUPS = (4, 2, 8, 16, 32)
_SIDES = (1, 2, 4, 8, 16, 32, 64)
_BLOCKS = sorted(((h, w) for h in _SIDES for w in _SIDES if h * w >= 4), key=lambda side: (-side[0] * side[1], side))
# Fewer groups or blocks agree by chance.
_LEAST = 8


def structure_of(kept: Tensor) -> str:
    """The pattern of a mask.

    Args:
        kept: bool, shape of a weight, True where it is kept.

    Returns:
        "dense", "empty", "filter" (whole output units), "channel" (whole entries of dim 1), "filter+channel", "<n>:<m>"
        or "2:4-transposable" (exactly n of every m along dim 1), "block<h>x<w>" (the largest that fits), else
        "unstructured". Where there are fewer than eight groups or blocks, nothing is concluded from them.
    """
    if bool(kept.all()):
        return "dense"
    if not bool(kept.any()):
        return "empty"
    if kept.ndim < 2:
        return "unstructured"
    rows, columns = (_whole(kept, pattern) for pattern in (Filter(), Channel()))
    if rows or columns:
        return "filter" if rows else "channel"
    if _is_outer_product(kept):
        return "filter+channel"
    return _groups(kept) or _blocks(kept) or "unstructured"


def _whole(kept: Tensor, pattern: Pattern) -> bool:
    """Is every unit of the pattern kept or removed as a whole, and more than one weight?"""
    if pattern.unit_size(kept.shape) < 2:
        return False
    return torch.equal(pattern.expand(pattern.reduce_sum(kept) > 0, kept.shape), kept)


def _is_outer_product(kept: Tensor) -> bool:
    if min(kept.shape[:2]) < 2:
        return False
    rows, columns = kept.flatten(1).any(1), kept.transpose(0, 1).flatten(1).any(1)
    alive = int(rows.sum()), int(columns.sum())
    outer = (rows[:, None] & columns).reshape(*kept.shape[:2], *[1] * (kept.ndim - 2))
    return min(alive) > 1 and torch.equal(outer.expand_as(kept), kept)


def _group_size(kept: Tensor, dim: int, m: int) -> int:
    """Kept in each group of m along ``dim`` if that is the same number, neither 0 nor m, in all of them; else 0."""
    if kept.shape[dim] % m or kept.numel() < _LEAST * m:
        return 0
    counts = kept.movedim(dim, -1).reshape(-1, m).sum(1)
    n = int(counts[0])
    return n if 0 < n < m and bool((counts == n).all()) else 0


def _groups(kept: Tensor) -> str | None:
    for m in _GROUPS:
        if n := _group_size(kept, 1, m):
            both = (n, m) == (2, 4) and _group_size(kept, 0, 4) == 2
            return f"{n}:{m}{'-transposable' if both else ''}"
    return None


def _blocks(kept: Tensor) -> str | None:
    rows, columns = kept.shape[0], kept[0].numel()
    for h, w in _BLOCKS:
        if h <= rows and w <= columns and (rows * columns) // (h * w) >= _LEAST and _whole(kept, Block(h, w)):
            return f"block{h}x{w}"
    return None


def dead_units(kept: Tensor) -> tuple[int, int]:
    """Outputs and inputs that no weight connects.

    Args:
        kept: bool, shape of a weight [out, in, ...].

    Returns:
        Entries of dim 0 without any kept weight, and entries of dim 1; of a grouped convolution dim 1 counts inputs of the
        group, and one is dead if it is so in every group. (0, 0) for a vector.
    """
    if kept.ndim < 2:
        return 0, 0
    outputs, inputs = kept.flatten(1).any(1), kept.transpose(0, 1).flatten(1).any(1)
    return int((~outputs).sum()), int((~inputs).sum())
