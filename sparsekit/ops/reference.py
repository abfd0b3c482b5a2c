# SPDX-License-Identifier: Apache-2.0
"""Readable PyTorch implementations of every op: the oracles, and what serves a device that has no kernel of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

WORD_BITS = 32
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # dtypes of scores


def rows_cols(shape: Sequence[int]) -> tuple[int, int]:
    """The [rows, cols] view that masks use: rows = dim 0, cols = the rest flattened; vectors and scalars are one row."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    return int(shape[0]), math.prod(shape[1:])


def words_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Shape of the packed words of a tensor of ``shape``: [rows, ceil(cols / 32)]."""
    rows, cols = rows_cols(shape)
    return rows, -(-cols // WORD_BITS)


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a bool tensor into int32 words, least significant bit first, each row padded with zeros to a whole word."""
    rows, cols = rows_cols(mask.shape)
    width = -(-cols // WORD_BITS)
    bits = torch.zeros(rows, width * WORD_BITS, dtype=torch.int64, device=mask.device)
    bits[:, :cols] = mask.reshape(rows, cols)
    weights = torch.ones((), dtype=torch.int64, device=mask.device) << torch.arange(WORD_BITS, device=mask.device)
    words = (bits.view(rows, width, WORD_BITS) * weights).sum(dim=2)
    # int32 has no room for 2^31: words with the top bit set wrap to negative numbers.
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack_mask(words: Tensor, shape: Sequence[int]) -> Tensor:
    """Unpack int32 words [rows, ceil(cols/32)] into a contiguous bool tensor of ``shape``."""
    rows, cols = rows_cols(shape)
    shifts = torch.arange(WORD_BITS, dtype=torch.int32, device=words.device)
    bits = (words.unsqueeze(-1) >> shifts) & 1
    return bits.reshape(rows, words.shape[1] * WORD_BITS)[:, :cols].to(torch.bool).reshape(tuple(shape)).contiguous()


def popcount(words: Tensor) -> Tensor:
    """Number of set bits in int32 words, as a 0-d int64 tensor."""
    v = words.to(torch.int64) & 0xFFFFFFFF
    v = v - ((v >> 1) & 0x55555555)
    v = (v & 0x33333333) + ((v >> 2) & 0x33333333)
    v = (v + (v >> 4)) & 0x0F0F0F0F
    return (((v * 0x01010101) >> 24) & 0xFF).sum()


def mask_counts(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    """Set bits of each pair of words before, after and in both: int64 [pairs, 3]."""
    rows = [torch.stack([popcount(b), popcount(a), popcount(b & a)]) for b, a in zip(before, after, strict=True)]
    return torch.stack(rows)


def mask_weight(weight: Tensor, words: Tensor, dtype: torch.dtype) -> Tensor:
    """``where(m, weight, 0)`` in ``dtype``, with the strides of ``empty_like(weight)``."""
    out = torch.empty_like(weight, dtype=dtype)
    mask = unpack_mask(words, weight.shape)
    # copy_ keeps the logical order whatever the strides are; where() never lets inf * 0 = NaN through.
    return out.copy_(torch.where(mask, weight, weight.new_zeros(())))


def _order_keys(scores: Tensor, key: str, nan: str) -> Tensor:
    """fp64 sort keys in which larger means keep; equal numbers (and -0.0, 0.0) get equal keys."""
    values = scores.detach().to(torch.float64).reshape(-1)
    values = values.abs() if key == "magnitude" else values + 0.0
    return values


def _select(keys: Tensor, kept: int, nan: str) -> Tensor:
    """Bool mask of the ``kept`` largest fp64 keys, ties to the lowest index; NaN is largest (keep) or never taken."""
    missing = torch.isnan(keys)
    # Two stable sorts: by value, then by NaN class; the second one leaves the order within a class as it was.
    order = torch.sort(torch.where(missing, torch.zeros_like(keys), keys), descending=True, stable=True).indices
    rank = missing[order] if nan == "keep" else ~missing[order]
    order = order[torch.sort(rank.to(torch.int8), descending=True, stable=True).indices]
    best = order[:kept]
    mask = torch.zeros(keys.numel(), dtype=torch.bool, device=keys.device)
    # NaN stands last unless it is kept, so no count of the numbers is needed: that would wait for the device.
    mask[best] = torch.ones_like(missing[best]) if nan == "keep" else ~missing[best]
    return mask


def topk_mask(
    scores: Sequence[Tensor],
    kept: Sequence[int],
    key: str,
    scope: str,
    nan: str,
    warm: Tensor | None = None,
    method: str = "bracket",
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Exact top-k masks by stable sorting: packed words per tensor, whether a NaN makes them invalid, and what comes of
    ``warm``, which with ``method`` says how a kernel should search; a sort has no use for them.
    """
    keys = [_order_keys(s, key, nan) for s in scores]
    if scope == "global":
        chosen = _select(torch.cat(keys), kept[0], nan).split([k.numel() for k in keys])
    elif scope == "tensor":
        chosen = [_select(k, n, nan) for k, n in zip(keys, kept, strict=True)]
    else:
        chosen = []
        for values, score, n in zip(keys, scores, kept, strict=True):
            rows = values.reshape(rows_cols(score.shape))
            chosen.append(torch.stack([_select(row, n, nan) for row in rows]) if len(rows) else rows.to(torch.bool))
    words = [pack_mask(c.reshape(s.shape)) for c, s in zip(chosen, scores, strict=True)]
    return words, invalid_flag(scores, nan), next_warm(warm, scores[0])


def next_warm(warm: Tensor | None, like: Tensor) -> Tensor:
    """A warm start without knowledge, in place of ``warm``; without rows if there was none."""
    return torch.zeros(0 if warm is None else len(warm), 3, dtype=torch.int64, device=like.device)


def invalid_flag(scores: Sequence[Tensor], nan: str) -> Tensor:
    """0-d bool tensor: does the policy ``error`` meet a NaN? Stays on the scores' device."""
    if nan != "error" or not scores:
        return torch.zeros((), dtype=torch.bool, device=scores[0].device if scores else None)
    return torch.stack([torch.isnan(s).any() for s in scores]).any()
