# SPDX-License-Identifier: Apache-2.0
"""Two moments of the same masks compared: how much they share, how many decisions changed, what came back.

All three figures follow from three counts (kept before, kept after, kept at both moments), which one op takes in one pass
over both lists. Nothing here waits for a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor

from sparsekit.ops import shards
from sparsekit.ops.numbers import is_count


def _words(function: str, argument: str, words: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """The words as a list; raises unless each is an int32 tensor."""
    found = [words] if isinstance(words, Tensor) else list(words)
    for i, w in enumerate(found):
        if not isinstance(w, Tensor) or w.dtype != torch.int32:
            got = getattr(w, "dtype", type(w).__name__)
            raise TypeError(f"{function}: {argument}[{i}]: expected an int32 tensor of words, got {got}")
    return found


def _counts(function: str, before: Tensor | Sequence[Tensor], after: Tensor | Sequence[Tensor]) -> Tensor:
    """The op behind checked arguments: int64 [masks, 3]."""
    old, new = _words(function, "before", before), _words(function, "after", after)
    if len(old) != len(new):
        raise ValueError(f"{function}: after: expected {len(old)} tensors (before's), got {len(new)}")
    for i, (b, a) in enumerate(zip(old, new, strict=True)):
        if b.shape != a.shape:
            raise ValueError(
                f"{function}: after[{i}]: expected shape {tuple(b.shape)} (before's), got {tuple(a.shape)}"
            )
        for argument, w in (("before", b), ("after", a)):
            if w.device != old[0].device:
                raise ValueError(f"{function}: {argument}[{i}]: expected device {old[0].device}, got {w.device}")
    if not old:
        return torch.zeros(0, 3, dtype=torch.int64)
    if any(map(shards.is_spread, (*old, *new))):
        return _spread_counts(function, old, new)
    return torch.ops.sparsekit.mask_counts(old, new)


def _spread_counts(function: str, old: Sequence[Any], new: Sequence[Any]) -> Tensor:
    """The counts of DTensors: of the parts of this process, added up over all of them in one collective."""
    for i, (b, a) in enumerate(zip(old, new, strict=True)):
        for argument, w in (("before", b), ("after", a)):
            if not shards.is_spread(w):
                raise ValueError(f"{function}: {argument}[{i}]: expected DTensors throughout, got a plain tensor")
            shards.check_spread(f"{function}: {argument}[{i}]", w)
            if (w.device_mesh, w.placements) != (old[0].device_mesh, b.placements):
                expected = f"{old[0].device_mesh} and {b.placements}"
                raise ValueError(
                    f"{function}: {argument}[{i}]: expected {expected}, got {w.device_mesh}, {w.placements}"
                )
    # A replicated mask is counted once, by the process that it belongs to.
    parts = [[shards.part_here(w) for w in words] for words in (old, new)]
    return shards.added(torch.ops.sparsekit.mask_counts(*parts), old[0])


def mask_counts(before: Tensor | Sequence[Tensor], after: Tensor | Sequence[Tensor]) -> Tensor:
    """Entries kept before, after and at both moments, for each mask.

    Args:
        before, after: packed words as of ``pack_mask`` (int32, padding bits zero), one tensor or as many in each list,
            in pairs of one shape; all on one device. Never modified. Of DTensors (of one mesh, in pairs of one placement)
            the counts are those of the whole masks, and all processes have to call.

    Returns:
        int64 [masks, 3] on that device, plain. ``mask_counts(words, words)[:, 0]`` counts one list.

    Raises:
        TypeError: something other than int32 tensors. ValueError: lists, shapes or devices that do not agree.
    """
    return _counts("mask_counts", before, after)


def mask_iou(before: Tensor | Sequence[Tensor], after: Tensor | Sequence[Tensor]) -> Tensor:
    """Intersection over union of what is kept, over all masks together; arguments and errors as ``mask_counts``.

    Returns:
        0-d float64 tensor in [0, 1]; 1 when neither keeps anything.
    """
    old, new, both = _counts("mask_iou", before, after).sum(0).double().unbind()
    either = old + new - both
    return torch.where(either == 0, torch.ones_like(either), both / either)


def flip_rate(before: Tensor | Sequence[Tensor], after: Tensor | Sequence[Tensor], *, numel: int) -> Tensor:
    """Fraction of entries whose decision changed, over all masks together; arguments and errors as ``mask_counts``.

    Args:
        numel: entries of all masks together, kept or not. Words cannot tell: the last one of a row may be padded.

    Returns:
        0-d float64 tensor in [0, 1]; 0 for masks without entries.

    Raises:
        ValueError: also when the words have no room for ``numel`` entries.
    """
    before = _words("flip_rate", "before", before)
    room = 32 * sum(w.numel() for w in before)
    if not is_count(numel) or index(numel) > room:
        raise ValueError(f"flip_rate: numel: expected an int in [0, {room}], got {numel!r}")
    old, new, both = _counts("flip_rate", before, after).sum(0).double().unbind()
    return (old + new - 2 * both) / max(index(numel), 1)


def regrow_count(before: Tensor | Sequence[Tensor], after: Tensor | Sequence[Tensor]) -> Tensor:
    """Entries that came back (pruned before, kept after), over all masks; arguments and errors as ``mask_counts``.

    Returns:
        0-d int64 tensor.
    """
    _, new, both = _counts("regrow_count", before, after).sum(0).unbind()
    return new - both
