# SPDX-License-Identifier: Apache-2.0
"""The structured ops by the compiled module, for CPU and CUDA tensors; serving.py decides where the latter serve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsekit.ops import structured_reference as reference
from sparsekit.ops.native import _C, SCORE_DTYPES, place, threads_for
from sparsekit.ops.reference import rows_cols, words_shape
from sparsekit.ops.schemas import LIBRARY
from sparsekit.ops.structured import STRUCTURED_OPS

# The module ranks within a group in 16 bits.
_LARGEST_GROUP = 32767


def _code(scores: Tensor) -> int:
    return _C.dtypes[SCORE_DTYPES[scores.dtype]]


def _channels(shape: Sequence[int]) -> tuple[int, int, int]:
    """A weight that is not empty as (rows, channels, spatial positions)."""
    rows, cols = rows_cols(shape)
    return rows, shape[1], cols // max(shape[1], 1)


def _no_scores(scores: Tensor, grid: Sequence[int]) -> Tensor:
    return scores.new_zeros(tuple(grid), dtype=reference.score_dtype(scores.dtype))


def _group_scores(scores: Tensor, grid: Sequence[int], unit: Sequence[int], p: float, key: str) -> Tensor:
    if not scores.numel():
        return _no_scores(scores, grid)
    scores = scores.contiguous()
    out = torch.empty(tuple(grid), dtype=reference.score_dtype(scores.dtype))
    sizes = (*rows_cols(scores.shape), *unit)
    _C.group_scores(scores.data_ptr(), out.data_ptr(), *sizes, _code(scores), p, key, threads_for(scores.numel()))
    return out


def _cuda_group_scores(scores: Tensor, grid: Sequence[int], unit: Sequence[int], p: float, key: str) -> Tensor:
    if not scores.numel():
        return _no_scores(scores, grid)
    scores = scores.contiguous()
    out = scores.new_empty(tuple(grid), dtype=reference.score_dtype(scores.dtype))
    sizes = (*rows_cols(scores.shape), *unit)
    scratch = scores.new_empty(_C.group_scores_scratch(*sizes), dtype=torch.float64)
    pointers = scores.data_ptr(), out.data_ptr(), scratch.data_ptr()
    _C.cuda_group_scores(*pointers, *sizes, _code(scores), p, key, *place(scores))
    return out


def _expand_units(units: Tensor, shape: Sequence[int], grid: Sequence[int], unit: Sequence[int]) -> Tensor:
    units, words = units.contiguous(), units.new_empty(words_shape(shape))
    if words.numel():
        listed, sizes = units.shape[0] != grid[0], (*rows_cols(shape), *unit)
        _C.expand_units(units.data_ptr(), words.data_ptr(), *sizes, listed, threads_for(words.numel() * 32))
    return words


def _cuda_expand_units(units: Tensor, shape: Sequence[int], grid: Sequence[int], unit: Sequence[int]) -> Tensor:
    units, words = units.contiguous(), units.new_empty(words_shape(shape))
    if words.numel():
        listed, sizes = units.shape[0] != grid[0], (*rows_cols(shape), *unit)
        _C.cuda_expand_units(units.data_ptr(), words.data_ptr(), *sizes, listed, *place(units))
    return words


def _nm_mask(scores: Sequence[Tensor], n: int, m: int, key: str, nan: str) -> tuple[list[Tensor], Tensor]:
    if m > _LARGEST_GROUP:
        return reference.nm_mask(scores, n, m, key, nan)
    found, missing = [], 0
    for s in (s.contiguous() for s in scores):
        words = torch.empty(words_shape(s.shape), dtype=torch.int32)
        pointers, sizes = (s.data_ptr(), words.data_ptr()), (*_channels(s.shape), n, m)
        if s.numel():
            missing += _C.nm_mask(*pointers, *sizes, _code(s), key, nan, threads_for(s.numel()))
        found.append(words)
    return found, torch.tensor(nan == "error" and missing > 0)


def _cuda_nm_mask(scores: Sequence[Tensor], n: int, m: int, key: str, nan: str) -> tuple[list[Tensor], Tensor]:
    if m > _LARGEST_GROUP:
        return reference.nm_mask(scores, n, m, key, nan)
    found, invalid = [], scores[0].new_zeros((), dtype=torch.bool)
    for s in (s.contiguous() for s in scores):
        words = s.new_empty(words_shape(s.shape), dtype=torch.int32)
        pointers, sizes = (s.data_ptr(), words.data_ptr()), (*_channels(s.shape), n, m)
        if s.numel():
            _C.cuda_nm_mask(*pointers, *sizes, _code(s), key, nan, invalid.data_ptr(), *place(s))
        found.append(words)
    return found, invalid


def _transposable_nm_mask(scores: Sequence[Tensor], key: str, nan: str) -> tuple[list[Tensor], Tensor]:
    found, missing = [], 0
    for s in (s.contiguous() for s in scores):
        words = torch.empty(words_shape(s.shape), dtype=torch.int32)
        pointers, sizes = (s.data_ptr(), words.data_ptr()), _channels(s.shape)
        if s.numel():
            missing += _C.transposable_nm_mask(*pointers, *sizes, _code(s), key, nan, threads_for(s.numel()))
        found.append(words)
    return found, torch.tensor(nan == "error" and missing > 0)


def _cuda_transposable_nm_mask(scores: Sequence[Tensor], key: str, nan: str) -> tuple[list[Tensor], Tensor]:
    found, invalid = [], scores[0].new_zeros((), dtype=torch.bool)
    for s in (s.contiguous() for s in scores):
        words = s.new_empty(words_shape(s.shape), dtype=torch.int32)
        scratch = s.new_empty(s.numel() // 16, dtype=torch.int16)
        pointers = s.data_ptr(), words.data_ptr(), scratch.data_ptr()
        sizes, flag = _channels(s.shape), invalid.data_ptr()
        if s.numel():
            _C.cuda_transposable_nm_mask(*pointers, *sizes, _code(s), key, nan, flag, *place(s))
        found.append(words)
    return found, invalid


def summed_in_order(scores: Tensor, grid: Sequence[int], unit: Sequence[int], p: float, key: str) -> Tensor:
    """group_scores of a tensor of any device by the module's CPU code, whose sums have the order of the kernels."""
    return _group_scores(scores.cpu(), grid, unit, p, key).to(scores.device)


def samples(device: torch.device) -> dict[str, list[tuple[Any, ...]]]:
    """Arguments by op, as native_cuda.samples. No p but 1, 2 and inf: other powers are the device's own."""
    generator = torch.Generator().manual_seed(1)
    wide = torch.randn(72, 4112, generator=generator)
    image = torch.randn(48, 24, 3, 3, generator=generator).mul(3).round()
    image[3, 1], image[5, 0] = torch.nan, -torch.inf
    bits = torch.randint(-(2**31), 2**31 - 1, (72, 1), generator=generator).int()
    wide, image, bits = (x.to(device) for x in (wide, image, bits))
    flat, narrow = wide.reshape(-1)[1 : 1 + 24 * 1001].reshape(24, 1001), wide.half()
    return {
        "group_scores": [
            (wide, [72, 1], [1, 4112], 2.0, "magnitude"),
            (image, [1, 24], [48, 9], 1.0, "magnitude"),
            (narrow, [18, 1028], [4, 4], 2.0, "magnitude"),
            (flat, [24, 63], [1, 16], torch.inf, "magnitude"),
            (wide.double(), [1, 4112], [72, 1], 2.0, "value"),
        ],
        "expand_units": [
            (bits[:1], [32, 1001], [1, 28], [32, 36]),
            (bits[:3].reshape(1, 3), [72, 4112], [72, 1], [1, 4112]),
            (bits, [72 * 4 - 1, 126], [72, 32], [4, 4]),
        ],
        "nm_mask": [([wide, image], 2, 4, "magnitude", "error"), ([narrow, image.bfloat16()], 5, 8, "value", "keep")],
        "transposable_nm_mask": [([wide, image], "magnitude", "drop"), ([narrow, wide], "value", "error")],
    }


CPU_IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "group_scores": _group_scores,
    "expand_units": _expand_units,
    "nm_mask": _nm_mask,
    "transposable_nm_mask": _transposable_nm_mask,
}
CUDA_IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "group_scores": _cuda_group_scores,
    "expand_units": _cuda_expand_units,
    "nm_mask": _cuda_nm_mask,
    "transposable_nm_mask": _cuda_transposable_nm_mask,
}

if _C is not None:
    for _name in STRUCTURED_OPS:
        LIBRARY.impl(_name, CPU_IMPLEMENTATIONS[_name], "CPU")
