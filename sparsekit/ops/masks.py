# SPDX-License-Identifier: Apache-2.0
"""Public ops on packed masks: packing, counting, the mask pre-pass and the exact top-k selection."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsekit.ops import reference, shards
from sparsekit.ops.numbers import is_int

KEYS = ("value", "magnitude")
SCOPES = ("global", "tensor", "row")
NAN_POLICIES = ("error", "drop", "keep")


class Selection(NamedTuple):
    """Result of ``topk_mask``.

    masks: one tensor per score tensor, int32 words [rows, ceil(cols/32)] or bool of the scores' shape.
    invalid: 0-d bool tensor on the scores' device; True when the policy ``error`` met a NaN. It is a tensor so that
        nobody has to wait for a device to learn that all is well.
    """

    masks: list[Tensor]
    invalid: Tensor


def _check_int32(function: str, words: Any) -> None:
    if not isinstance(words, Tensor) or words.dtype != torch.int32:
        got = words.dtype if isinstance(words, Tensor) else type(words).__name__
        raise TypeError(f"{function}: words: expected dtype torch.int32, got {got}")


def check_words(
    function: str, words: Tensor, shape: Sequence[int], owner: str = "weight", device: torch.device | None = None
) -> None:
    """Raise unless ``words`` is the int32 words tensor that belongs to ``shape``, on ``device`` if that is given."""
    expected = reference.words_shape(shape)
    _check_int32(function, words)
    if tuple(words.shape) != expected:
        raise ValueError(
            f"{function}: words: expected shape {expected} for {owner} {tuple(shape)}, got {tuple(words.shape)}"
        )
    if device is not None and words.device != device:
        raise ValueError(f"{function}: words: expected device {device} ({owner}'s), got {words.device}")


def choose(function: str, argument: str, value: str, choices: Sequence[str]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{function}: {argument}: expected one of {', '.join(choices)}, got {value!r}")


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a bool mask into 32-bit words.

    Args:
        mask: bool, any shape; rows are dim 0 and cols the rest (vectors and scalars are one row). The words of a DTensor
            (1-D mesh, Shard(0) or Replicate) are spread as it is.

    Returns:
        int32 [rows, ceil(cols/32)]; bit i of word j is column 32 j + i, padding bits are zero.

    Raises:
        TypeError: mask is not bool.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"pack_mask: mask: expected a bool tensor, got {getattr(mask, 'dtype', type(mask).__name__)}")
    if shards.is_spread(mask):
        shards.check_spread("pack_mask: mask", mask)
        return shards.on_parts(torch.ops.sparsekit.pack_mask, mask, shape=reference.words_shape(mask.shape))
    return torch.ops.sparsekit.pack_mask(mask)


def unpack_mask(words: Tensor, shape: Sequence[int]) -> Tensor:
    """Inverse of ``pack_mask``: bool tensor of ``shape``. Raises on a dtype or shape that does not fit."""
    check_words("unpack_mask", words, shape, "a mask of shape")
    if shards.is_spread(words):
        shards.check_spread("unpack_mask: words", words)
        return _unpack_spread(words, shape)
    return torch.ops.sparsekit.unpack_mask(words, list(shape))


def _unpack_spread(words: Tensor, shape: Sequence[int]) -> Tensor:
    part, here = shards.part(words), list(shape)
    if not shards.is_replicated(words):
        if len(shape) < 2:
            raise ValueError(
                f"unpack_mask: words: expected Replicate() for a mask of shape {tuple(shape)}, got Shard(0)"
            )
        here[0] = part.shape[0]
    return shards.spread(torch.ops.sparsekit.unpack_mask(part, here), words, shape)


def popcount(words: Tensor) -> Tensor:
    """Set bits in int32 ``words``: 0-d int64 tensor on the same device; of a DTensor those on all processes, which all call."""
    _check_int32("popcount", words)
    if shards.is_spread(words):
        shards.check_spread("popcount: words", words)
        return shards.total(torch.ops.sparsekit.popcount, words)
    return torch.ops.sparsekit.popcount(words)


def mask_weight(weight: Tensor, words: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The effective weight ``where(m, weight, 0)``: what is under a zero bit never shows, be it inf or NaN.

    Args:
        weight: floating, any shape and strides.
        words: int32 words of weight's shape, on its device; of a DTensor weight they may be whole on every process.
        dtype: of the result; weight's own by default.

    Returns:
        Tensor of weight's shape, strides as ``empty_like(weight)``. Not differentiable: see ``masked_linear``.
    """
    if not isinstance(weight, Tensor):
        raise TypeError(f"mask_weight: weight: expected a tensor, got {type(weight).__name__}")
    check_words("mask_weight", words, weight.shape, device=weight.device)
    kind = dtype or weight.dtype
    if not shards.is_spread(weight):
        return torch.ops.sparsekit.mask_weight(weight, words, kind)
    shards.check_spread("mask_weight: weight", weight)
    own = shards.spread_as(words, weight)
    return shards.on_parts(lambda w, m: torch.ops.sparsekit.mask_weight(w, m, kind), weight, own, shape=weight.shape)


def _check_scores(scores: Sequence[Tensor]) -> None:
    if isinstance(scores, Tensor) or not isinstance(scores, Sequence):
        got = "one tensor" if isinstance(scores, Tensor) else type(scores).__name__
        raise TypeError(f"topk_mask: scores: expected a sequence of tensors, got {got}")
    for i, s in enumerate(scores):
        shards.check_score(f"topk_mask: scores[{i}]", s)
        if shards.is_spread(s):
            raise TypeError(f"topk_mask: scores[{i}]: expected a plain tensor, got a DTensor; use dist_topk_mask")
        if s.device != scores[0].device:
            raise ValueError(f"topk_mask: scores[{i}]: expected device {scores[0].device}, got {s.device}")


def _budgets(scores: Sequence[Tensor], kept: int | Sequence[int], scope: str) -> list[int]:
    if scope == "global":
        limits = [sum(s.numel() for s in scores)]
    else:
        limits = [s.numel() if scope == "tensor" else reference.rows_cols(s.shape)[1] for s in scores]
    budgets = list(kept) if isinstance(kept, Sequence) else [kept]
    if isinstance(kept, Sequence) == (scope == "global") or len(budgets) != len(limits):
        expected = "one int" if scope == "global" else f"a sequence of {len(limits)} ints"
        raise ValueError(f"topk_mask: kept: expected {expected} for scope {scope!r}, got {kept!r}")
    return [_count(n, limit) for n, limit in zip(budgets, limits, strict=True)]


def _count(kept: Any, limit: int) -> int:
    """kept as an int, if it is one in [0, limit]."""
    if not is_int(kept):
        raise TypeError(f"topk_mask: kept: expected an int in [0, {limit}], got {kept!r}")
    if not 0 <= index(kept) <= limit:
        raise ValueError(f"topk_mask: kept: expected an int in [0, {limit}], got {kept!r}")
    return index(kept)


def _check_warm(warm: Tensor | None, scope: str, budgets: list[int], device: torch.device) -> None:
    if warm is None:
        return
    if scope == "row":
        raise ValueError("topk_mask: warm: expected None for scope 'row', got a tensor")
    expected = f"a contiguous int64 tensor of shape ({len(budgets)}, 3) on {device}, as warm_start makes it"
    if not isinstance(warm, Tensor) or warm.dtype != torch.int64:
        raise TypeError(f"topk_mask: warm: expected {expected}, got {getattr(warm, 'dtype', type(warm).__name__)}")
    if warm.shape != (len(budgets), 3) or warm.device != device or not warm.is_contiguous():
        raise ValueError(f"topk_mask: warm: expected {expected}, got {tuple(warm.shape)} on {warm.device}")


def warm_start(selections: int, device: torch.device | str | None = None) -> Tensor:
    """State for ``topk_mask(..., warm=)`` that knows nothing yet.

    Args:
        selections: 1 for scope "global", the number of tensors for scope "tensor".

    Returns:
        int64 [selections, 3] zeros: keys between which a threshold is expected, and whether they count.
    """
    if isinstance(selections, bool) or not isinstance(selections, int) or selections < 0:
        raise ValueError(f"warm_start: selections: expected an int >= 0, got {selections!r}")
    return torch.zeros(selections, 3, dtype=torch.int64, device=device)


def topk_mask(
    scores: Sequence[Tensor],
    kept: int | Sequence[int],
    *,
    key: str = "magnitude",
    scope: str = "global",
    nan: str = "error",
    out: str = "words",
    warm: Tensor | None = None,
) -> Selection:
    """Exact mask of the ``kept`` largest scores of a list of tensors, without concatenating them.

    Args:
        scores: float tensors, any shapes and strides, one device. Never modified.
        kept: how many entries to keep: one int over all tensors (scope "global"), or one int per tensor, counted over
            the tensor (scope "tensor") or in each of its rows (scope "row", rows as in ``pack_mask``).
        key: rank by "magnitude" |s| or by signed "value".
        nan: "error" sets ``invalid``; "drop" never keeps a NaN, so fewer than ``kept`` may be left; "keep" ranks NaN
            above inf.
        out: "words" (int32, as ``pack_mask``) or "bool".
        warm: what ``warm_start`` made, or an earlier call over similar scores wrote: where to look for the thresholds
            first. It is overwritten, saves time, and never changes a mask. Not for scope "row".

    Returns:
        Selection. Among equal scores the lowest (tensor, flat index) is kept, -0.0 equals 0.0, so the result is a pure
        function of the values, and each count is exact.

    Raises:
        ValueError, TypeError: an argument is out of range or of a wrong kind.
    """
    choose("topk_mask", "key", key, KEYS)
    choose("topk_mask", "scope", scope, SCOPES)
    choose("topk_mask", "nan", nan, NAN_POLICIES)
    choose("topk_mask", "out", out, ("words", "bool"))
    _check_scores(scores)
    budgets = _budgets(scores, kept, scope)
    if not scores:
        return Selection([], torch.zeros((), dtype=torch.bool))
    _check_warm(warm, scope, budgets, scores[0].device)
    words, invalid, known = torch.ops.sparsekit.topk_mask(list(scores), budgets, key, scope, nan, warm)
    if warm is not None:
        warm.copy_(known)
    if out == "bool":
        return Selection([unpack_mask(w, s.shape) for w, s in zip(words, scores, strict=True)], invalid)
    return Selection(words, invalid)


def topk_mask_radix(scores: Sequence[Tensor], kept: int, *, key: str = "magnitude") -> Selection:
    """``topk_mask`` by histograms of all scores alone, which reads them three times: the baseline of the benchmarks.

    Arguments, result and errors as ``topk_mask`` with scope "global"; where no compiled code serves, a sort does.
    """
    choose("topk_mask_radix", "key", key, KEYS)
    _check_scores(scores)
    budgets = _budgets(scores, kept, "global")
    if not scores:
        return Selection([], torch.zeros((), dtype=torch.bool))
    words, invalid, _ = torch.ops.sparsekit.topk_mask(list(scores), budgets, key, "global", "error", None, "radix")
    return Selection(words, invalid)
