# SPDX-License-Identifier: Apache-2.0
"""CPU implementations from the compiled module ``sparsekit._C``, added to the ops that schemas.py defines.

Without the module the reference implementations keep serving; ``capabilities`` says so for each op. The CUDA functions of
the module serve no op yet: PyTorch does, until they have matched their oracle on a device (tests marked ``gpu``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsekit.ops import reference
from sparsekit.ops.schemas import LIBRARY, OP_NAMES

try:
    from sparsekit import _C  # pyright: ignore[reportAttributeAccessIssue]
except ImportError:
    _C: Any = None

_SCORE_DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
# Below this many elements starting a thread costs more than it saves.
_SERIAL = 1 << 16


def _threads(elements: int) -> int:
    return torch.get_num_threads() if elements >= _SERIAL else 1


def _pack_mask(mask: Tensor) -> Tensor:
    mask = mask.contiguous()
    rows, cols = reference.rows_cols(mask.shape)
    words = torch.empty(reference.words_shape(mask.shape), dtype=torch.int32)
    _C.pack_mask(mask.data_ptr(), words.data_ptr(), rows, cols, _threads(mask.numel()))
    return words


def _unpack_mask(words: Tensor, shape: Sequence[int]) -> Tensor:
    words = words.contiguous()
    rows, cols = reference.rows_cols(shape)
    mask = torch.empty(tuple(shape), dtype=torch.bool)
    _C.unpack_mask(words.data_ptr(), mask.data_ptr(), rows, cols, _threads(mask.numel()))
    return mask


def _popcount(words: Tensor) -> Tensor:
    words = words.contiguous()
    return torch.tensor(_C.popcount(words.data_ptr(), words.numel(), _threads(words.numel() * 32)), dtype=torch.int64)


def _mask_counts(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    pairs = [(b.contiguous(), a.contiguous()) for b, a in zip(before, after, strict=True)]
    pointers = [b.data_ptr() for b, _ in pairs], [a.data_ptr() for _, a in pairs]
    sizes, counts = [b.numel() for b, _ in pairs], torch.empty(len(pairs), 3, dtype=torch.int64)
    _C.mask_counts(*pointers, sizes, counts.data_ptr(), torch.get_num_threads())
    return counts


def _layout(weight: Tensor) -> int | None:
    """Spatial positions interleaved with the channels in memory: 1 for C order, H*W for channels_last, None for others."""
    if weight.is_contiguous():
        return 1
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        return weight.shape[2] * weight.shape[3]
    if weight.ndim == 5 and weight.is_contiguous(memory_format=torch.channels_last_3d):
        return weight.shape[2] * weight.shape[3] * weight.shape[4]
    return None


def _mask_weight(weight: Tensor, words: Tensor, dtype: torch.dtype) -> Tensor:
    spatial = _layout(weight)
    if spatial is None or weight.element_size() not in (2, 4, 8) or weight.is_neg() or weight.is_conj():
        return reference.mask_weight(weight, words, dtype)
    words, out = words.contiguous(), torch.empty_like(weight)
    rows, cols = reference.rows_cols(weight.shape)
    _C.mask_weights(
        [weight.data_ptr()],
        [words.data_ptr()],
        [out.data_ptr()],
        [rows],
        [cols],
        weight.element_size(),
        [spatial],
        _threads(weight.numel()),
    )
    return out if dtype == weight.dtype else out.to(dtype)


def _topk_mask(
    scores: Sequence[Tensor], kept: Sequence[int], key: str, scope: str, nan: str
) -> tuple[list[Tensor], Tensor]:
    dtypes = {s.dtype for s in scores}
    if len(dtypes) != 1 and scope == "global":
        return reference.topk_mask(scores, kept, key, scope, nan)
    values = [s.detach().contiguous() for s in scores]
    words = [torch.empty(reference.words_shape(s.shape), dtype=torch.int32) for s in scores]
    groups = [slice(None)] if scope == "global" else [slice(i, i + 1) for i in range(len(scores))]
    missing = 0
    for group, budget in zip(groups, kept, strict=True):
        missing += _select(values[group], words[group], budget, key, scope, nan)
    return words, torch.tensor(nan == "error" and missing > 0)


def _select(values: list[Tensor], words: list[Tensor], kept: int, key: str, scope: str, nan: str) -> int:
    """One selection (or one for each row) by the compiled module; returns the number of NaN."""
    rows, cols = zip(*(reference.rows_cols(v.shape) for v in values), strict=True)
    dtype = _C.dtypes[_SCORE_DTYPES[values[0].dtype]]
    pointers, targets = [v.data_ptr() for v in values], [w.data_ptr() for w in words]
    threads = _threads(sum(v.numel() for v in values))
    if scope == "row":
        return _C.topk_mask_rows(pointers[0], targets[0], rows[0], cols[0], kept, dtype, key, nan, threads)
    return _C.topk_mask(pointers, targets, list(rows), list(cols), kept, dtype, key, nan, threads)


CPU_IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "pack_mask": _pack_mask,
    "unpack_mask": _unpack_mask,
    "popcount": _popcount,
    "mask_counts": _mask_counts,
    "mask_weight": _mask_weight,
    "topk_mask": _topk_mask,
}

if _C is not None:
    for _name, _implementation in CPU_IMPLEMENTATIONS.items():
        LIBRARY.impl(_name, _implementation, "CPU")


def native_info() -> dict[str, Any]:
    """Is the compiled module there, with CUDA code, and which CPU instruction sets can it use (best last)?"""
    if _C is None:
        return {"built": False, "cuda": False, "cpu_features": []}
    return {"built": True, "cuda": bool(_C.has_cuda), "cpu_features": list(_C.cpu_features())}


def capabilities() -> dict[str, dict[str, str]]:
    """Op -> {device: what serves it}: "native" (sparsekit._C), "torch", or "native mask + torch" for the masked layers."""
    whole, part = ("torch", "torch") if _C is None else ("native", "native mask + torch")
    return {name: {"cpu": part if name.startswith("masked_") else whole, "cuda": "torch"} for name in OP_NAMES}
