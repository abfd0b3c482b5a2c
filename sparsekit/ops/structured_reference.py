# SPDX-License-Identifier: Apache-2.0
"""Readable PyTorch implementations of the structured ops: the oracles of masks, and what serves other devices.

Sums of units are float64 in PyTorch's own order here, in that of csrc/group_order.h in the compiled module: rounded to
float32 they rarely differ, and then in the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsekit import nm
from sparsekit.ops.reference import invalid_flag, pack_mask, rows_cols, unpack_mask


def score_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the scores of units: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def group_scores(scores: Tensor, grid: Sequence[int], unit: Sequence[int], p: float, key: str) -> Tensor:
    """Scores [high, wide] of the units h x w of the [rows, cols] view, smaller at the edges."""
    (rows, cols), (high, wide), (h, w) = rows_cols(scores.shape), grid, unit
    if not scores.numel():
        return scores.new_zeros(high, wide, dtype=score_dtype(scores.dtype))
    view = scores.detach().reshape(rows, cols)
    if (rows, cols) != (high * h, wide * w):
        view = torch.nn.functional.pad(view, (0, wide * w - cols, 0, high * h - rows))
    view = view.reshape(high, h, wide, w)
    # float64 keeps the squares of float32 scores in range and makes rounding differences rare.
    if key == "value":
        sums = view.sum((1, 3), dtype=torch.float64)
    else:
        sums = torch.linalg.vector_norm(view, p, (1, 3), dtype=torch.float64)
    return sums.to(score_dtype(scores.dtype))


def expand_units(words: Tensor, shape: Sequence[int], grid: Sequence[int], unit: Sequence[int]) -> Tensor:
    """Element words of ``shape`` from unit words: of a mask of shape grid, or of one row that lists the units."""
    (rows, cols), (high, wide), (h, w) = rows_cols(shape), grid, unit
    listed = words.shape[0] != high
    bits = unpack_mask(words, (high * wide,) if listed else (high, wide)).reshape(high, 1, wide, 1)
    mask = bits.expand(high, h, wide, w).reshape(high * h, wide * w)[:rows, :cols]
    return pack_mask(mask.reshape(tuple(shape)))


def nm_mask(scores: Sequence[Tensor], n: int, m: int, key: str, nan: str) -> tuple[list[Tensor], Tensor]:
    """Words of the n largest of every m along dim 1, and whether a NaN makes them invalid."""
    masks = [nm.largest_of_m(nm.rank_values(s.detach(), key, nan), n, m) for s in scores]
    return [pack_mask(mask) for mask in masks], invalid_flag(scores, nan)


def transposable_nm_mask(scores: Sequence[Tensor], key: str, nan: str) -> tuple[list[Tensor], Tensor]:
    """Words of the best mask of every 4 x 4 tile with two kept per row and column, and whether a NaN makes them invalid."""
    words = []
    for s in scores:
        values = nm.rank_values(s.detach(), key, "drop")
        words.append(pack_mask(nm.best_tiles(values, torch.isnan(s) if nan == "keep" else None)))
    return words, invalid_flag(scores, nan)
