# SPDX-License-Identifier: Apache-2.0
"""N:M selection in plain PyTorch: the n largest of every m, and two of four in the rows and columns of every 4 x 4 tile."""

from __future__ import annotations

import math
from itertools import combinations, product

import torch
from torch import Tensor

_PAIRS = tuple(combinations(range(4), 2))
TILE_MASKS: tuple[tuple[tuple[int, int], ...], ...] = tuple(
    rows for rows in product(_PAIRS, repeat=4) if sorted(sum(rows, ())) == [0, 0, 1, 1, 2, 2, 3, 3]
)
"""The 90 masks of a 4 x 4 tile: the columns that each row keeps. Rows keep two, columns as well. Lexicographic order."""

# No score counts more in the sum of a tile: sums are numbers then, and those of float32 scores are nowhere near.
_INFINITE = 2.0**1000


def check(n: int, m: int, transposable: bool) -> None:
    """Raise ValueError unless there is such a pattern."""
    if not (type(n) is type(m) is int and 1 <= n <= m):
        raise ValueError(f"NM: n, m: expected integers, 1 <= n <= m, got {n!r}, {m!r}")
    if type(transposable) is not bool or (transposable and (n, m) != (2, 4)):
        raise ValueError(f"NM: transposable: expected False, or True for 2:4, got {transposable!r} for {n}:{m}")


def check_shape(shape: tuple[int, ...], m: int, transposable: bool) -> tuple[int, ...]:
    """The shape; ValueError unless dim 1 is a multiple of m, and dim 0 as well where the mask is transposable."""
    for d in (1, 0) if transposable else (1,):
        if shape[d] % m:
            expected = f"expected dim {d} divisible by {m}"
            raise ValueError(f"NM: shape: {expected}, got {shape}; skip it or change pattern")
    return shape


def rank_values(scores: Tensor, key: str, nan: str) -> Tensor:
    """What is compared, larger means keep: |s| for the key "magnitude", else s. NaN means never, unless ``nan`` is "keep".

    Then NaN becomes inf, and inf the largest number below, which in float64 no narrower score can be.
    """
    values = scores.abs() if key == "magnitude" else scores
    if nan != "keep":
        return values
    most = torch.finfo(torch.float64).max
    return torch.where(torch.isnan(values), torch.inf, values.double().clamp(max=most))


def largest_of_m(values: Tensor, n: int, m: int) -> Tensor:
    """Bool mask, shape as values, of the n largest of every m along dim 1; ties go to the lowest position, NaN is out."""
    shape = values.shape
    groups = values.reshape(shape[0], shape[1] // m, m, math.prod(shape[2:]))
    place = torch.arange(m, device=values.device)[:, None]
    ahead = torch.zeros_like(groups, dtype=torch.int32)
    # Counting who is ahead needs no sort, and m is small; NaN compares False, so it is ahead of nobody.
    for j, rival in enumerate(groups.split(1, dim=2)):
        ahead += (rival > groups) | ((rival == groups) & (j < place))
    return ((ahead < n) & ~groups.isnan()).reshape(shape)


def best_tiles(values: Tensor, kept_nan: Tensor | None = None) -> Tensor:
    """Bool mask, shape as values, with two kept in each row and column of every tile of 4 rows x 4 entries of dim 1.

    Of the 90 masks the one with the largest sum, the first of ``TILE_MASKS`` among equal ones. Sums are float64, (row 0 +
    row 1) + (row 2 + row 3), of scores in [-2^1000, 2^1000], infinities included. NaN adds nothing and is out, so a tile
    with NaN may keep fewer; where ``kept_nan`` (bool, shape as values) is True it is kept and counts 2^1010.
    """
    shape = values.shape
    tiles = values.double().reshape(shape[0] // 4, 4, shape[1] // 4, 4, math.prod(shape[2:]))
    missing = tiles.isnan()
    tiles = torch.where(missing, 0.0, tiles.clamp(-_INFINITE, _INFINITE))
    if kept_nan is not None:
        kept_nan = kept_nan.reshape(tiles.shape)
        tiles, missing = torch.where(kept_nan, _INFINITE * 2.0**10, tiles), missing & ~kept_nan
    pairs = [{(i, j): row[:, :, i] + row[:, :, j] for i, j in _PAIRS} for row in tiles.unbind(1)]
    best = torch.full_like(tiles[:, 0, :, 0], -torch.inf)
    chosen = torch.zeros_like(best, dtype=torch.int64)
    for index, (a, b, c, d) in enumerate(TILE_MASKS):
        total = (pairs[0][a] + pairs[1][b]) + (pairs[2][c] + pairs[3][d])
        chosen.masked_fill_(total > best, index)
        best = torch.maximum(best, total)
    bits = torch.zeros(len(TILE_MASKS), 4, 4, dtype=torch.bool)
    for index, rows in enumerate(TILE_MASKS):
        for row, columns in enumerate(rows):
            bits[index, row, list(columns)] = True
    # [tile rows, tile columns, positions, 4, 4] -> [tile rows, 4, tile columns, 4, positions]
    kept = bits.to(values.device)[chosen].permute(0, 3, 1, 4, 2)
    return (kept & ~missing).reshape(shape)
