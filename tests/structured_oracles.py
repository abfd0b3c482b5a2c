# SPDX-License-Identifier: Apache-2.0
"""Oracles of structured masks in numpy: units by index, sums in the documented order, and 4 x 4 tiles by enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from oracles import rows_cols
from torch import Tensor

Groups = str | tuple[int, int]
Add = Callable[[np.ndarray, np.ndarray], np.ndarray]


def unit_rectangles(shape: Sequence[int], groups: Groups) -> tuple[tuple[int, ...], int, int]:
    """(shape of the units, height, width) of units as rectangles of the [rows, cols] view."""
    rows, cols = rows_cols(shape)
    if groups == "filter":
        return tuple(shape[:1]), 1, cols
    if groups == "channel":
        return tuple(shape[1:2]), rows, math.prod(shape[2:])
    h, w = groups
    return (math.ceil(rows / h), math.ceil(cols / w)), h, w  # pyright: ignore[reportReturnType]


def unit_numbers(shape: Sequence[int], groups: Groups) -> np.ndarray:
    """For each weight the flat number of its unit: the definition, by index arithmetic on the weight's own dims."""
    place = np.indices(tuple(shape))
    if groups == "filter":
        return place[0]
    if groups == "channel":
        return place[1]
    rows, cols = rows_cols(shape)
    row, col = np.divmod(np.arange(rows * cols).reshape(tuple(shape)), max(cols, 1))
    h, w = groups
    return row // h * math.ceil(cols / w) + col // w  # pyright: ignore[reportOperatorIssue]


def _pairs(lanes: np.ndarray, add: Add) -> float:
    while len(lanes) > 1:
        lanes = add(lanes[0::2], lanes[1::2])
    return float(lanes[0])


def ordered_total(terms: np.ndarray, add: Add) -> float:
    """Terms [h, w] of one unit in float64, added in the order of csrc/group_order.h."""
    leaves = []
    for top in range(0, terms.shape[0], 32):
        for left in range(0, terms.shape[1], 8192):
            leaf, lanes = terms[top : top + 32, left : left + 8192], np.zeros(256)
            for row, k in itertools.product(leaf, range(0, leaf.shape[1], 256)):
                piece = row[k : k + 256]
                lanes[: len(piece)] = add(lanes[: len(piece)], piece)
            leaves.append(_pairs(lanes, add))
    lanes = np.zeros(256)
    for q in range(0, len(leaves), 256):
        piece = np.array(leaves[q : q + 256])
        lanes[: len(piece)] = add(lanes[: len(piece)], piece)
    return _pairs(lanes, add)


def ordered_unit_scores(scores: Tensor, groups: Groups, p: float, key: str) -> Tensor:
    """What ``group_scores`` gives, bit by bit; for p other than 1, 2, inf up to the last bit of a power."""
    unit_shape, h, w = unit_rectangles(scores.shape, groups)
    rows, cols = rows_cols(scores.shape)
    values = scores.detach().double().reshape(rows, cols).numpy()
    out = torch.float64 if scores.dtype == torch.float64 else torch.float32
    with np.errstate(all="ignore"):
        terms = values if key == "value" else np.abs(values)
        if key == "magnitude" and p not in (1, math.inf):
            terms = terms * terms if p == 2 else terms**p
        add: Add = np.maximum if key == "magnitude" and p == math.inf else np.add
        totals = [
            ordered_total(terms[top : top + h, left : left + w], add)
            for top, left in itertools.product(range(0, rows, h), range(0, cols, w))
        ]
        found = np.array(totals)
        if key == "magnitude" and p not in (1, math.inf):
            found = np.sqrt(found) if p == 2 else found ** (1 / p)
    return torch.from_numpy(found).to(out).reshape(unit_shape)


def best_of_groups(scores: Tensor, n: int, m: int, key: str, nan: str) -> Tensor:
    """Bool mask of the n best of every m along dim 1 by a stable lexicographic sort of each group."""
    values = scores.detach().double().numpy()
    values = np.abs(values) if key == "magnitude" else values + 0.0
    groups = values.reshape(values.shape[0], -1, m, math.prod(values.shape[2:]))
    missing = np.isnan(groups)
    ranked = np.where(missing, 0.0, groups)
    order = np.lexsort((-ranked, ~missing if nan == "keep" else missing), axis=2)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(m)[:, None], order.shape), axis=2)
    kept = (rank < n) & (~missing | (nan == "keep"))
    return torch.from_numpy(kept.reshape(values.shape))


def all_tile_masks() -> np.ndarray:
    """Bool [90, 4, 4]: of the 65536 masks of a tile those with two per row and column, by the columns that rows keep."""
    bits = (np.arange(65536)[:, None] >> np.arange(16) & 1).astype(bool).reshape(-1, 4, 4)
    masks = bits[(bits.sum(1) == 2).all(1) & (bits.sum(2) == 2).all(1)]
    return np.array(sorted(masks.tolist(), key=lambda mask: [[i for i in range(4) if row[i]] for row in mask]))


def best_tiles_oracle(scores: Tensor, key: str, nan: str) -> Tensor:
    """Bool mask: in each tile the first mask of ``all_tile_masks`` with the largest sum, without NaN unless kept."""
    values = scores.detach().double().numpy()
    values = np.abs(values) if key == "magnitude" else values
    missing = np.isnan(values)
    values = np.where(missing, 2.0**1010 if nan == "keep" else 0.0, np.clip(values, -(2.0**1000), 2.0**1000))
    kept, masks = np.zeros(values.shape, dtype=bool), all_tile_masks()
    for top, left in itertools.product(range(0, values.shape[0], 4), range(0, values.shape[1], 4)):
        tile = values[top : top + 4, left : left + 4].reshape(4, 4, -1)
        for position in range(tile.shape[2]):
            chosen = np.where(masks, tile[:, :, position], 0.0)
            rows = chosen.sum(2)  # two numbers and two zeros: the order does not matter
            sums = (rows[:, 0] + rows[:, 1]) + (rows[:, 2] + rows[:, 3])
            kept.reshape(*values.shape[:2], -1)[top : top + 4, left : left + 4, position] = masks[np.argmax(sums)]
    return torch.from_numpy(kept & ~missing if nan != "keep" else kept)
