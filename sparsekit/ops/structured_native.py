# SPDX-License-Identifier: Apache-2.0
"""The structured ops by the compiled module: registered for CPU tensors, written for CUDA tensors.

``CUDA_IMPLEMENTATIONS`` serves no op yet, as in native.py: each function takes the op's arguments with CUDA tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsekit.ops import structured_reference as reference
from sparsekit.ops.native import _C, _SCORE_DTYPES, _threads
from sparsekit.ops.reference import rows_cols, words_shape
from sparsekit.ops.schemas import LIBRARY

# The module ranks within a group in 16 bits.
_LARGEST_GROUP = 32767


def _code(scores: Tensor) -> int:
    return _C.dtypes[_SCORE_DTYPES[scores.dtype]]


def _queue(x: Tensor) -> tuple[int, int]:
    """(device index, stream) that work on x is launched on."""
    return x.device.index, torch.cuda.current_stream(x.device).cuda_stream


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
    _C.group_scores(scores.data_ptr(), out.data_ptr(), *sizes, _code(scores), p, key, _threads(scores.numel()))
    return out


def _cuda_group_scores(scores: Tensor, grid: Sequence[int], unit: Sequence[int], p: float, key: str) -> Tensor:
    if not scores.numel():
        return _no_scores(scores, grid)
    scores = scores.contiguous()
    out = scores.new_empty(tuple(grid), dtype=reference.score_dtype(scores.dtype))
    sizes = (*rows_cols(scores.shape), *unit)
    scratch = scores.new_empty(_C.group_scores_scratch(*sizes), dtype=torch.float64)
    pointers = scores.data_ptr(), out.data_ptr(), scratch.data_ptr()
    _C.cuda_group_scores(*pointers, *sizes, _code(scores), p, key, *_queue(scores))
    return out


def _expand_units(units: Tensor, shape: Sequence[int], grid: Sequence[int], unit: Sequence[int]) -> Tensor:
    units, words = units.contiguous(), units.new_empty(words_shape(shape))
    if words.numel():
        listed, sizes = units.shape[0] != grid[0], (*rows_cols(shape), *unit)
        _C.expand_units(units.data_ptr(), words.data_ptr(), *sizes, listed, _threads(words.numel() * 32))
    return words


def _cuda_expand_units(units: Tensor, shape: Sequence[int], grid: Sequence[int], unit: Sequence[int]) -> Tensor:
    units, words = units.contiguous(), units.new_empty(words_shape(shape))
    if words.numel():
        listed, sizes = units.shape[0] != grid[0], (*rows_cols(shape), *unit)
        _C.cuda_expand_units(units.data_ptr(), words.data_ptr(), *sizes, listed, *_queue(units))
    return words


def _nm_mask(scores: Sequence[Tensor], n: int, m: int, key: str, nan: str) -> tuple[list[Tensor], Tensor]:
    if m > _LARGEST_GROUP:
        return reference.nm_mask(scores, n, m, key, nan)
    found, missing = [], 0
    for s in (s.contiguous() for s in scores):
        words = torch.empty(words_shape(s.shape), dtype=torch.int32)
        pointers, sizes = (s.data_ptr(), words.data_ptr()), (*_channels(s.shape), n, m)
        if s.numel():
            missing += _C.nm_mask(*pointers, *sizes, _code(s), key, nan, _threads(s.numel()))
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
            _C.cuda_nm_mask(*pointers, *sizes, _code(s), key, nan, invalid.data_ptr(), *_queue(s))
        found.append(words)
    return found, invalid


def _transposable_nm_mask(scores: Sequence[Tensor], key: str, nan: str) -> tuple[list[Tensor], Tensor]:
    found, missing = [], 0
    for s in (s.contiguous() for s in scores):
        words = torch.empty(words_shape(s.shape), dtype=torch.int32)
        pointers, sizes = (s.data_ptr(), words.data_ptr()), _channels(s.shape)
        if s.numel():
            missing += _C.transposable_nm_mask(*pointers, *sizes, _code(s), key, nan, _threads(s.numel()))
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
            _C.cuda_transposable_nm_mask(*pointers, *sizes, _code(s), key, nan, flag, *_queue(s))
        found.append(words)
    return found, invalid


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
    for _name, _implementation in CPU_IMPLEMENTATIONS.items():
        LIBRARY.impl(_name, _implementation, "CPU")
