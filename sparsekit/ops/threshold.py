# SPDX-License-Identifier: Apache-2.0
"""The two local steps of a selection that several processes make together: histograms of keys, by which they find the
threshold, and the mask of a threshold that is known. Schemas, fakes and the readable implementations; native.py has the
CPU's own.

A key is an int64 that orders scores: larger means keep, equal numbers have equal keys, -0.0 that of 0.0. It is the bit
pattern of |s|, or for negative values the complement of that. With b the bits of the dtype, NaN has the lowest key,
-2^(b-1), or the highest but one when NaN is to be kept; no score has the highest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsekit.ops import reference
from sparsekit.ops.schemas import DEFAULT, LIBRARY, OP_NAMES

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_WIDEST = 64

OP_NAMES += ["key_histogram", "mask_at_threshold"]
LIBRARY.define("key_histogram(Tensor[] scores, Tensor first, int shift, int bins, str key, str nan) -> Tensor")
LIBRARY.define("mask_at_threshold(Tensor[] scores, Tensor limit, Tensor ties, str key, str nan) -> Tensor[]")


def plain(scores: Tensor) -> Tensor:
    """The scores detached, in C order, without a pending sign: what may be read as bits."""
    return scores.detach().resolve_neg().contiguous()


def _infinity(dtype: torch.dtype) -> int:
    return int(torch.tensor(math.inf, dtype=dtype).view(_INTEGERS[dtype.itemsize]).item())


def number_range(dtype: torch.dtype, key: str) -> tuple[int, int]:
    """(first, bits): the keys of numbers, and of NaN that is kept, are at least ``first`` and less than first + 2^bits."""
    if key == "magnitude":
        return 0, 8 * dtype.itemsize - 1
    return ~_infinity(dtype), 8 * dtype.itemsize


def order_keys(scores: Tensor, key: str, nan: str) -> Tensor:
    """Keys of ``scores`` in C order: int64 [numel]."""
    highest = 2 ** (8 * scores.dtype.itemsize - 1) - 1
    bits = plain(scores).reshape(-1).view(_INTEGERS[scores.dtype.itemsize]).to(torch.int64)
    missing = (bits & highest) > _infinity(scores.dtype)
    if key == "magnitude":
        bits = bits & highest
    # Negative floats count their magnitude upwards, so all bits but the sign are turned; -0.0 becomes -1.
    keys = torch.where(bits < 0, bits ^ highest, bits)
    return keys.masked_fill(keys == -1, 0).masked_fill(missing, highest - 1 if nan == "keep" else -highest - 1)


def key_histogram(scores: Sequence[Tensor], first: Tensor, shift: int, bins: int, key: str, nan: str) -> Tensor:
    """How many keys of each tensor lie in each bin; bin b is [b << shift, (b + 1) << shift) above ``first``.

    Args:
        scores: float tensors of one dtype with b bits, any shapes and strides, one device.
        first: 0-d int64 on that device, a key; neither the lowest nor the highest.
        shift: in [0, b).
        bins: in [1, 2048].
        key, nan: as in ``topk_mask``.

    Returns:
        int64 [tensors, bins] on that device. Keys outside the bins are not counted.
    """
    counts = first.new_zeros(len(scores), bins + 1)
    for row, values in zip(counts, scores, strict=True):
        keys = order_keys(values, key, nan)
        digits = (keys - first) >> shift
        if shift:
            # The shift of an unsigned number: with 64 bits the difference may have wrapped around.
            digits = digits & ((1 << (_WIDEST - shift)) - 1)
        digits = torch.where((keys >= first) & (digits >= 0) & (digits < bins), digits, bins)
        row.scatter_add_(0, digits, torch.ones_like(digits))
    return counts[:, :bins].contiguous()


def mask_at_threshold(scores: Sequence[Tensor], limit: Tensor, ties: Tensor, key: str, nan: str) -> list[Tensor]:
    """Packed masks of the keys above ``limit``, and in tensor i of the first ``ties[i]`` keys equal to it.

    Args:
        scores: float tensors of one dtype, any shapes and strides, one device.
        limit: 0-d int64 on that device, a key; neither the lowest nor the highest.
        ties: int64 [tensors] on that device, >= 0.
        key, nan: as in ``topk_mask``.

    Returns:
        One int32 words tensor for each tensor, as ``pack_mask``.
    """
    words = []
    for values, quota in zip(scores, ties, strict=True):
        keys = order_keys(values, key, nan)
        equal = keys == limit
        chosen = (keys > limit) | (equal & (equal.cumsum(0) <= quota))
        words.append(reference.pack_mask(chosen.view(values.shape)))
    return words


def _fake_histogram(scores: Sequence[Tensor], first: Tensor, shift: int, bins: int, key: str, nan: str) -> Tensor:
    return first.new_empty((len(scores), bins), dtype=torch.int64)


def _fake_mask(scores: Sequence[Tensor], limit: Tensor, ties: Tensor, key: str, nan: str) -> list[Tensor]:
    return [limit.new_empty(reference.words_shape(s.shape), dtype=torch.int32) for s in scores]


LIBRARY.impl("key_histogram", key_histogram, DEFAULT)
LIBRARY.impl("mask_at_threshold", mask_at_threshold, DEFAULT)
torch.library.register_fake("sparsekit::key_histogram", _fake_histogram, lib=LIBRARY)
torch.library.register_fake("sparsekit::mask_at_threshold", _fake_mask, lib=LIBRARY)
