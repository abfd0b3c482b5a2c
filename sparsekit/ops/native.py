# SPDX-License-Identifier: Apache-2.0
"""CPU implementations from the compiled module ``sparsekit._C``, added to the ops that schemas.py defines.

Without the module, and with SPARSEKIT_KERNELS=off, the reference implementations keep serving; ``capabilities`` says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparsekit.ops import formulas, reference, threshold
from sparsekit.ops.schemas import LIBRARY, masked_conv_backward, masked_linear_backward

try:
    from sparsekit import _C  # pyright: ignore[reportAttributeAccessIssue]
except ImportError:
    _C: Any = None
if os.environ.get("SPARSEKIT_KERNELS") == "off":
    _C = None

SCORE_DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
# Below this many elements starting a thread costs more than it saves.
_SERIAL = 1 << 16
# Masking is done at the speed of memory, which one thread nearly reaches; others have to be started, and to take their
# processors from the waiting threads of PyTorch's products.
STREAMED = 1 << 22
# For more rows of x than these, PyTorch's product gains more than the masked weight costs; a weight that fits the caches
# costs less. By the least number of weights.
FEW_TOKENS = {1 << 22: 64, 0: 8}


def place(tensor: Tensor) -> tuple[int, int]:
    """Device index and address of the current stream, where the CUDA functions of the module launch."""
    stream = torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0
    return tensor.get_device() if tensor.is_cuda else 0, stream


def threads_for(elements: int, least: int = _SERIAL) -> int:
    """Threads that so many elements are worth, if one thread alone does fewer than ``least``."""
    return torch.get_num_threads() if elements >= least else 1


def _pack_mask(mask: Tensor) -> Tensor:
    mask = mask.contiguous()
    rows, cols = reference.rows_cols(mask.shape)
    words = torch.empty(reference.words_shape(mask.shape), dtype=torch.int32)
    _C.pack_mask(mask.data_ptr(), words.data_ptr(), rows, cols, threads_for(mask.numel()))
    return words


def _unpack_mask(words: Tensor, shape: Sequence[int]) -> Tensor:
    words = words.contiguous()
    rows, cols = reference.rows_cols(shape)
    mask = torch.empty(tuple(shape), dtype=torch.bool)
    _C.unpack_mask(words.data_ptr(), mask.data_ptr(), rows, cols, threads_for(mask.numel()))
    return mask


def _popcount(words: Tensor) -> Tensor:
    words = words.contiguous()
    return torch.tensor(
        _C.popcount(words.data_ptr(), words.numel(), threads_for(words.numel() * 32)), dtype=torch.int64
    )


def _mask_counts(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    pairs = [(b.contiguous(), a.contiguous()) for b, a in zip(before, after, strict=True)]
    pointers = [b.data_ptr() for b, _ in pairs], [a.data_ptr() for _, a in pairs]
    sizes, counts = [b.numel() for b, _ in pairs], torch.empty(len(pairs), 3, dtype=torch.int64)
    _C.mask_counts(*pointers, sizes, counts.data_ptr(), torch.get_num_threads())
    return counts


def layout(weight: Tensor) -> int | None:
    """Spatial positions interleaved with the channels in memory: 1 for C order, H*W for channels_last, None for others."""
    if weight.is_contiguous():
        return 1
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        return weight.shape[2] * weight.shape[3]
    if weight.ndim == 5 and weight.is_contiguous(memory_format=torch.channels_last_3d):
        return weight.shape[2] * weight.shape[3] * weight.shape[4]
    return None


def _mask_weight(weight: Tensor, words: Tensor, dtype: torch.dtype) -> Tensor:
    spatial = layout(weight)
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
        threads_for(weight.numel(), STREAMED),
    )
    return out if dtype == weight.dtype else out.to(dtype)


def _topk_mask(
    scores: Sequence[Tensor],
    kept: Sequence[int],
    key: str,
    scope: str,
    nan: str,
    warm: Tensor | None = None,
    method: str = "bracket",
) -> tuple[list[Tensor], Tensor, Tensor]:
    dtypes = {s.dtype for s in scores}
    if len(dtypes) != 1 and scope == "global":
        return reference.topk_mask(scores, kept, key, scope, nan)
    values = [s.detach().contiguous() for s in scores]
    words = [torch.empty(reference.words_shape(s.shape), dtype=torch.int32) for s in scores]
    groups = [slice(None)] if scope == "global" else [slice(i, i + 1) for i in range(len(scores))]
    known = reference.next_warm(warm, values[0]) if warm is None else warm.clone()
    starts = list(known) if len(known) else [None] * len(groups)
    missing = 0
    for group, budget, start in zip(groups, kept, starts, strict=True):
        options = (key, nan, threads_for(sum(v.numel() for v in values[group])))
        if scope == "row":
            missing += _select_rows(values[group][0], words[group][0], budget, options)
        else:
            missing += _select(values[group], words[group], budget, options, start, method)
    return words, torch.tensor(nan == "error" and missing > 0), known


def _select_rows(values: Tensor, words: Tensor, kept: int, options: tuple[str, str, int]) -> int:
    """One selection in each row; returns the number of NaN."""
    dtype = _C.dtypes[SCORE_DTYPES[values.dtype]]
    return _C.topk_mask_rows(
        values.data_ptr(), words.data_ptr(), *reference.rows_cols(values.shape), kept, dtype, *options
    )


def _select(
    values: list[Tensor],
    words: list[Tensor],
    kept: int,
    options: tuple[str, str, int],
    warm: Tensor | None,
    method: str,
) -> int:
    """One selection over all values; returns the number of NaN."""
    rows, cols = zip(*(reference.rows_cols(v.shape) for v in values), strict=True)
    dtype = _C.dtypes[SCORE_DTYPES[values[0].dtype]]
    pointers, targets = [v.data_ptr() for v in values], [w.data_ptr() for w in words]
    start = 0 if warm is None else warm.data_ptr()
    return _C.topk_mask(pointers, targets, list(rows), list(cols), kept, dtype, *options, warm=start, method=method)


def _key_histogram(scores: Sequence[Tensor], first: Tensor, shift: int, bins: int, key: str, nan: str) -> Tensor:
    counts = torch.zeros(len(scores), bins, dtype=torch.int64)
    if scores:
        values, sizes = [threshold.plain(s) for s in scores], [s.numel() for s in scores]
        options = (_C.dtypes[SCORE_DTYPES[values[0].dtype]], key, nan, threads_for(sum(sizes)))
        pointers = [v.data_ptr() for v in values]
        _C.key_histogram(pointers, sizes, counts.data_ptr(), int(first), shift, bins, *options)
    return counts


def _mask_at_threshold(scores: Sequence[Tensor], limit: Tensor, ties: Tensor, key: str, nan: str) -> list[Tensor]:
    words = [torch.empty(reference.words_shape(s.shape), dtype=torch.int32) for s in scores]
    if scores:
        values, sizes = [threshold.plain(s) for s in scores], [reference.rows_cols(s.shape) for s in scores]
        rows, cols = [list(size) for size in zip(*sizes, strict=True)]
        options = (_C.dtypes[SCORE_DTYPES[values[0].dtype]], key, nan, threads_for(sum(v.numel() for v in values)))
        pointers = [v.data_ptr() for v in values], [w.data_ptr() for w in words]
        _C.mask_at_threshold(*pointers, rows, cols, int(limit), ties.tolist(), *options)
    return words


def reads_masked(x: Tensor, weight: Tensor) -> bool:
    """Does the compiled product serve, which reads the weight through the mask? For few tokens in float32."""
    tokens = x.numel() // max(weight.shape[1], 1)
    few = next(most for least, most in FEW_TOKENS.items() if weight.numel() >= least)
    plain = x.dtype == weight.dtype == torch.float32 and weight.is_contiguous() and not weight.is_neg()
    return plain and 0 < tokens <= few and weight.numel() > 0


def _masked_linear(x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None) -> Tensor:
    if not (reads_masked(x, weight) and (bias is None or bias.dtype == torch.float32)):
        return formulas.linear(x, _mask_weight(weight, words, x.dtype), bias)
    tokens = x.numel() // weight.shape[1]
    rows, words = threshold.plain(x), words.contiguous()
    y, bias = x.new_empty(*x.shape[:-1], weight.shape[0]), None if bias is None else threshold.plain(bias)
    pointers = [0 if t is None else t.data_ptr() for t in (rows, weight, words, bias, y)]
    _C.masked_linear(*pointers, tokens, *weight.shape, threads_for(weight.numel(), STREAMED))
    return y


def _mask_in_place(dz: Tensor, words: Tensor) -> Tensor:
    """where(m, dz, 0) for a gradient that nobody else holds. New memory would cost more, at its first use, than masking."""
    spatial = layout(dz)
    if spatial is None or dz.element_size() not in (2, 4, 8) or dz.is_neg() or not dz.numel():
        return _mask_weight(dz, words, dz.dtype)
    words, (rows, cols), pointer = words.contiguous(), reference.rows_cols(dz.shape), [dz.data_ptr()]
    _C.mask_weights(
        pointer,
        [words.data_ptr()],
        pointer,
        [rows],
        [cols],
        dz.element_size(),
        [spatial],
        threads_for(dz.numel(), STREAMED),
    )
    return dz


_masked_conv_backward = partial(masked_conv_backward, mask=_mask_in_place)
CPU_IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "pack_mask": _pack_mask,
    "unpack_mask": _unpack_mask,
    "popcount": _popcount,
    "mask_counts": _mask_counts,
    "mask_weight": _mask_weight,
    "masked_linear": _masked_linear,
    "masked_linear_backward": partial(masked_linear_backward, mask=_mask_in_place),
    **{f"masked_conv{n}d_backward": _masked_conv_backward for n in (1, 2, 3)},
    "topk_mask": _topk_mask,
    "key_histogram": _key_histogram,
    "mask_at_threshold": _mask_at_threshold,
}

if _C is not None:
    for _name, _implementation in CPU_IMPLEMENTATIONS.items():
        LIBRARY.impl(_name, _implementation, "CPU")
