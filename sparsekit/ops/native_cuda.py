# SPDX-License-Identifier: Apache-2.0
"""CUDA implementations from the compiled module ``sparsekit._C``; serving.py decides whether they serve a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsekit.ops import multi_native, multi_samples, reference, structured_native
from sparsekit.ops.native import _C, SCORE_DTYPES, layout, place


def pack_mask(mask: Tensor) -> Tensor:
    """As ops.pack_mask."""
    mask = mask.contiguous()
    words = torch.empty(reference.words_shape(mask.shape), dtype=torch.int32, device=mask.device)
    _C.cuda_pack_mask(mask.data_ptr(), words.data_ptr(), *reference.rows_cols(mask.shape), *place(mask))
    return words


def unpack_mask(words: Tensor, shape: Sequence[int]) -> Tensor:
    """As ops.unpack_mask."""
    words = words.contiguous()
    mask = torch.empty(tuple(shape), dtype=torch.bool, device=words.device)
    _C.cuda_unpack_mask(words.data_ptr(), mask.data_ptr(), *reference.rows_cols(shape), *place(words))
    return mask


def popcount(words: Tensor) -> Tensor:
    """As ops.popcount."""
    words = words.contiguous()
    total = torch.empty((), dtype=torch.int64, device=words.device)
    _C.cuda_popcount(words.data_ptr(), words.numel(), total.data_ptr(), *place(words))
    return total


def mask_counts(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    """As ops.mask_counts."""
    pairs = [(b.contiguous(), a.contiguous()) for b, a in zip(before, after, strict=True)]
    counts = torch.empty(len(pairs), 3, dtype=torch.int64, device=before[0].device)
    pointers = [b.data_ptr() for b, _ in pairs], [a.data_ptr() for _, a in pairs]
    _C.cuda_mask_counts(*pointers, [b.numel() for b, _ in pairs], counts.data_ptr(), *place(before[0]))
    return counts


def mask_weight(weight: Tensor, words: Tensor, dtype: torch.dtype) -> Tensor:
    """As ops.mask_weight; other layouts and casts than the kernel has go the reference's way."""
    spatial = layout(weight)
    kernel_casts = dtype == weight.dtype or (weight.dtype == torch.float32 and dtype in (torch.bfloat16, torch.float16))
    if spatial is None or not kernel_casts or weight.dtype not in SCORE_DTYPES or weight.is_neg():
        return reference.mask_weight(weight, words, dtype)
    words, out = words.contiguous(), torch.empty_like(weight, dtype=dtype)
    rows, cols = reference.rows_cols(weight.shape)
    codes = [_C.dtypes[SCORE_DTYPES[d]] for d in (weight.dtype, dtype)]
    pointers = [weight.data_ptr()], [words.data_ptr()], [out.data_ptr()]
    _C.cuda_mask_weights(*pointers, [rows], [cols], *codes, [spatial], *place(weight))
    return out


def topk_mask(
    scores: Sequence[Tensor],
    kept: Sequence[int],
    key: str,
    scope: str,
    nan: str,
    warm: Tensor | None = None,
    method: str = "bracket",
) -> tuple[list[Tensor], Tensor, Tensor]:
    """As ops.topk_mask: no waiting for the device, one allocation for all words and one for the workspace."""
    dtypes = {s.dtype for s in scores}
    if len(dtypes) != 1 and scope == "global":
        return reference.topk_mask(scores, kept, key, scope, nan)
    values = [s.detach().contiguous() for s in scores]
    words, options = _empty_words(values), (key, nan, method)
    if scope == "row":
        return words, _select_rows(values, words, kept, options), reference.next_warm(warm, values[0])
    if scope == "global" or len(dtypes) == 1:
        known = reference.next_warm(warm, values[0]) if warm is None else warm.clone()
        return words, _select(values, words, kept, scope == "tensor", options, known), known
    invalid = torch.zeros((), dtype=torch.bool, device=values[0].device)
    for dtype in sorted(dtypes, key=str):
        chosen = [i for i, value in enumerate(values) if value.dtype == dtype]
        parts = [values[i] for i in chosen], [words[i] for i in chosen], [kept[i] for i in chosen]
        invalid = invalid | _select(*parts, True, options, reference.next_warm(None, values[0]))
    return words, invalid, reference.next_warm(warm, values[0])


def _select_rows(
    values: Sequence[Tensor], words: Sequence[Tensor], kept: Sequence[int], options: tuple[str, str, str]
) -> Tensor:
    """Selections in each row of each tensor; returns the flag of invalid scores."""
    invalid = torch.zeros((), dtype=torch.bool, device=values[0].device)
    for value, target, budget in zip(values, words, kept, strict=True):
        sizes, code = reference.rows_cols(value.shape), _C.dtypes[SCORE_DTYPES[value.dtype]]
        pointers = value.data_ptr(), target.data_ptr()
        _C.cuda_topk_mask_rows(*pointers, *sizes, budget, code, *options[:2], invalid.data_ptr(), *place(value))
    return invalid


def _empty_words(values: Sequence[Tensor]) -> list[Tensor]:
    """Words for all values in one allocation, each at a multiple of 16 bytes."""
    shapes = [reference.words_shape(value.shape) for value in values]
    sizes = [rows * width for rows, width in shapes]
    padded = [-(-size // 4) * 4 for size in sizes]
    parts = torch.empty(sum(padded), dtype=torch.int32, device=values[0].device).split(padded)
    return [part[:size].view(shape) for part, size, shape in zip(parts, sizes, shapes, strict=True)]


def _select(
    values: Sequence[Tensor],
    words: Sequence[Tensor],
    kept: Sequence[int],
    per_tensor: bool,
    options: tuple[str, str, str],
    warm: Tensor,
) -> Tensor:
    """Selections over scores of one dtype by the compiled module; returns the flag of invalid scores."""
    rows, cols = (list(sizes) for sizes in zip(*(reference.rows_cols(v.shape) for v in values), strict=True))
    dtype, (key, nan, method) = _C.dtypes[SCORE_DTYPES[values[0].dtype]], options
    size = _C.cuda_topk_workspace(rows, cols, per_tensor, dtype)
    workspace = torch.empty(size, dtype=torch.uint8, device=values[0].device)
    invalid = torch.empty((), dtype=torch.bool, device=values[0].device)
    pointers = [v.data_ptr() for v in values], [w.data_ptr() for w in words]
    outputs = invalid.data_ptr(), warm.data_ptr() if len(warm) else 0, workspace.data_ptr(), size
    _C.cuda_topk_mask(
        *pointers, rows, cols, list(kept), per_tensor, dtype, key, nan, *outputs, *place(values[0]), method=method
    )
    return invalid


def samples(device: torch.device) -> dict[str, list[tuple[Any, ...]]]:
    """Arguments by op on which compiled code and reference must agree before the compiled code serves."""
    generator = torch.Generator().manual_seed(0)
    many = torch.randn(96, 1000, generator=generator)
    odd = torch.randn(70, 3, 3, 3, generator=generator).mul(4).round()
    odd[3, 1], odd[5, 0] = torch.nan, -torch.inf
    mask, poisoned = many > 0, torch.where(many > 0, many, torch.nan)
    words = reference.pack_mask(mask)
    many, odd, mask, poisoned, words = (t.to(device) for t in (many, odd, mask, poisoned, words))
    flat, narrow = many.reshape(-1)[1:], many.bfloat16()
    selections = [
        ([many, odd, flat], [20_000], "magnitude", "global", "drop"),
        ([narrow, odd.bfloat16()], [50_000], "value", "global", "error"),
        ([narrow, torch.ones_like(narrow)], [60_000], "magnitude", "global", "keep"),
        ([many.half(), odd.half()], [30_000, 500], "magnitude", "tensor", "keep"),
        ([many, odd], [300, 9], "value", "row", "error"),
    ]
    return {
        "pack_mask": [(mask,), (mask.reshape(-1, 125),)],
        "unpack_mask": [(words, list(mask.shape))],
        "popcount": [(words,)],
        "mask_counts": [([words, words[:5], words[:0]], [words.roll(1, 0), words[1:6], words[:0]])],
        "mask_weight": [(poisoned, words, torch.float32), (poisoned, words, torch.bfloat16)],
        "topk_mask": selections,
        **structured_native.samples(device),
        **multi_samples.samples(device),
    }


CUDA_IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "pack_mask": pack_mask,
    "unpack_mask": unpack_mask,
    "popcount": popcount,
    "mask_counts": mask_counts,
    "mask_weight": mask_weight,
    "topk_mask": topk_mask,
    **structured_native.CUDA_IMPLEMENTATIONS,
    **multi_native.CUDA_IMPLEMENTATIONS,
}
