# SPDX-License-Identifier: Apache-2.0
"""Is a mask the top-k mask? Against the stable sort where that is affordable, elsewhere by a proof in a few streaming passes.

The proof. Let K be what a mask keeps of keys x_i (here magnitudes, none of them NaN) and t the smallest key in K. If
(1) K has exactly k entries, (2) no entry with a key > t is missing from K, and (3) of the entries with the key t, no kept one
stands behind one that is not kept, then K is the one answer of the selection contract: by (2) and the choice of t, K is all
keys > t and some keys equal to t, so t is the k-th largest key; by (1) their number is the right one; by (3) they are the
first ones. Nothing is taken on trust, not even a threshold that another selection has found.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor

from sparsekit import ops
from sparsekit.ops import reference

SORTED_LIMIT = 20_000_000
"""Up to this many entries our masks are compared with those of the stable sort, bit by bit."""

CONTRACT, COUNT, THRESHOLD = "contract", "count", "threshold"
"""What a mask owes: the one right answer; the right number, any choice among ties; everything at or above the threshold."""


class TopkCheck:
    """Checks masks of one selection; raises ValueError for a wrong one.

    Args:
        scores: the tensors selected from, without NaN.
        kept: entries to keep, >= 1.
    """

    def __init__(self, scores: Sequence[Tensor], kept: int) -> None:
        self.shapes = [tuple(s.shape) for s in scores]
        self.kept = kept
        self.keys = torch.cat([s.reshape(-1) for s in scores]).abs_()
        self.truth: Tensor | None = None
        if self.keys.numel() <= SORTED_LIMIT:
            (words,), _, _ = reference.topk_mask([self.keys], [kept], "value", "global", "error")
            self.truth = reference.unpack_mask(words, self.keys.shape)
        self._threshold: Tensor | None = None

    def __call__(self, name: str, masks: Sequence[Tensor], rule: str) -> int:
        """The number of entries that the masks keep, if they are right by ``rule``.

        Args:
            masks: int32 words, bools, or floats of 0 and 1; one for each score tensor, or one for their concatenation.
        """
        found = self._flat(name, masks)
        if rule == CONTRACT:
            self._require_contract(name, found)
        else:
            self._require_threshold(name, found)
        count = int(found.sum())
        if rule != THRESHOLD and count != self.kept:
            raise ValueError(f"bench topk: {name}: expected {self.kept} entries kept, got {count}")
        return count

    def _flat(self, name: str, masks: Sequence[Tensor]) -> Tensor:
        """The masks as one bool tensor."""
        shapes = self.shapes if len(masks) == len(self.shapes) else [tuple(self.keys.shape)]
        parts = [_bools(name, mask, shape).reshape(-1) for mask, shape in zip(masks, shapes, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _require_contract(self, name: str, found: Tensor) -> None:
        right = torch.equal(found, self.truth) if self.truth is not None else is_topk(self.keys, found, self.kept)
        if not right:
            how = "the masks of the stable sort" if self.truth is not None else "a mask that is proven right"
            raise ValueError(f"bench topk: {name}: expected {how}, got others")
        if self._threshold is None:
            self._threshold = _smallest(self.keys, found)

    def _require_threshold(self, name: str, found: Tensor) -> None:
        assert self._threshold is not None, "one of our own masks is checked first: it fixes the threshold"
        wrong = (found & (self.keys < self._threshold)) | (~found & (self.keys > self._threshold))
        if wrong.any():
            raise ValueError(
                f"bench topk: {name}: expected other masks only among equals, got {int(wrong.sum())} wrong"
            )


def is_topk(keys: Tensor, mask: Tensor, kept: int) -> bool:
    """Whether ``mask`` is the mask of the ``kept`` largest keys with ties to the lowest index; see the proof above.

    Args:
        keys: floats [n] without NaN; -0.0 equals 0.0.
        mask: bool [n].
        kept: in [1, n].
    """
    if int(mask.sum()) != kept:
        return False
    threshold = _smallest(keys, mask)
    if bool(((keys > threshold) & ~mask).any()):
        return False
    ties = keys == threshold
    first_dropped = (ties & ~mask).to(torch.uint8).argmax()  # argmax takes the first of equals
    last_kept = len(keys) - 1 - (ties & mask).flip(0).to(torch.uint8).argmax()
    return not bool((ties & ~mask).any()) or bool(last_kept < first_dropped)


def _smallest(keys: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, keys, torch.full((), inf, dtype=keys.dtype, device=keys.device)).min()


def _bools(name: str, mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    if mask.dtype == torch.bool:
        return mask
    if mask.dtype == torch.int32:
        bits = ops.unpack_mask(mask, shape)
        if not torch.equal(ops.pack_mask(bits), mask):
            raise ValueError(f"bench topk: {name}: expected zero padding bits, got set ones")
        return bits
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"bench topk: {name}: expected a mask of zeros and ones, got other values")
    return mask != 0
