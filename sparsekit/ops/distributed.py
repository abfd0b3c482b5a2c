# SPDX-License-Identifier: Apache-2.0
"""Exact top-k masks of scores that are spread over the processes of a group, without gathering them.

The processes narrow a range of integer keys together: each counts its own keys by their next eleven bits, the counts are
summed, and the bin that holds the rank wanted becomes the range. When the range is one key, that is the threshold; what
each process holds of it decides how many of these ties it keeps. Nothing depends on the cut: the masks are those of one
process with all scores, bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, NamedTuple
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor

from sparsekit.ops import agreement, shards
from sparsekit.ops.masks import KEYS, NAN_POLICIES, Selection, choose, unpack_mask
from sparsekit.ops.numbers import is_count
from sparsekit.ops.reference import words_shape
from sparsekit.ops.threshold import number_range

_DIGIT = 11
# So many DTensors keep a call within 64 KB: two histograms of 16 KB, one of 8, the statements, 8 bytes for each of them.
MAX_SPREAD = 2900
_NAME = "dist_topk_mask"


class _Order(NamedTuple):
    """In which order equal keys are kept.

    places: ranks of the group in that order. place: where this process stands in it.
    by_tensor: does the order go through all processes for each tensor, or through all tensors for each process?
    """

    places: list[int]
    place: int
    by_tensor: bool


class _Threshold(NamedTuple):
    """key: 0-d, the threshold. ties: 0-d, how many equal keys all processes may keep. own: [tensors], equal keys here.
    missing: 0-d, NaN in all processes, or 0 if they are kept. All int64 on the scores' device."""

    key: Tensor
    ties: Tensor
    own: Tensor
    missing: Tensor


def dist_topk_mask(
    scores: Sequence[Tensor],
    kept: int,
    *,
    group: Any = None,
    key: str = "magnitude",
    nan: str = "error",
    out: str = "words",
) -> Selection:
    """Exact mask of the ``kept`` largest scores of all processes of a group. Every process of the group has to call.

    Args:
        scores: this process's float tensors, all of one dtype and device type on all processes; either plain ones, any
            number (also none) of any shapes, or DTensors, the same list on all processes, on one 1-D mesh, replicated or
            under Shard(0), at most 2900 of them.
        kept: how many entries to keep over all processes; the same on all.
        group: process group of plain scores, the default one if None. DTensors bring their own.
        key, nan, out: as in ``topk_mask``; the same on all processes. Mask words need 2 dimensions under Shard(0), because
            they keep a vector in one row; "bool" does not.

    Returns:
        Selection: masks of this process's tensors (DTensors, spread as the scores), and ``invalid``, the same on all
        processes. Equal to ``topk_mask`` of one process with all scores. Among equal scores those of the lowest
        (rank, tensor, flat index) are kept; of DTensors those of the lowest (tensor, flat index of the whole tensor).

    Raises:
        ValueError, TypeError: an argument of any process is out of range, of a wrong kind, or differs between them. All
            processes raise the same, with the rank that is at fault. Without an initialised torch.distributed, and for
            an object that is no process group, the process raises alone.

    Cost: 5 collectives, at most 64 KB of payload for each process (4 and less for 16 bits; 8 and at most 128 KB for
    float64, which has more bits to narrow), and as many passes over the local scores as there are sums. The statements
    that open a call are read on the host; where the group has no backend for the CPU this waits for the device. Nothing
    after that waits. Scores on a device that the group does not serve go through one that it does.
    """
    problem, facts = None, {}
    ranks = agreement.check_group(_NAME, shards.group_of(scores) if group is None else group)
    try:
        facts = _facts(scores, kept, group, key, nan, out)
    except Exception as error:  # whatever it is, the others have to learn of it
        problem = error
    stated = agreement.agree(_NAME, ranks, problem, facts)
    kind, dtype = _agreed(stated)
    kept = index(kept)
    total = sum(int(facts["numel"]) for facts in stated)
    if kept > total:
        raise ValueError(f"{_NAME}: kept: expected an int in [0, {total}], got {kept}")
    device = scores[0].device if scores else agreement.here(kind or "cpu")
    if not dtype:
        return Selection([], torch.zeros((), dtype=torch.bool, device=device))
    with torch.no_grad():
        limit = _find(scores, kept, total, getattr(torch, dtype), device, ranks, (key, nan))
        quotas = _quotas(limit, scores, ranks)
        parts = [shards.part(s) for s in scores]
        words = torch.ops.sparsekit.mask_at_threshold(parts, limit.key, quotas, key, nan)
        masks = [_placed(w, part, s, out) for w, part, s in zip(words, parts, scores, strict=True)]
    return Selection(masks, (limit.missing > 0) & (nan == "error"))


def any_rank(flag: Tensor, group: Any) -> Tensor:
    """Is the 0-d bool ``flag`` True on any process of the group? On the flag's device. One collective; may wait for it.

    Raises:
        TypeError: something else on any process; on all of them with flags on a CPU. With flags on another device, which
            are not read, it is raised by that process, and the others get True.
    """
    group = agreement.check_group("any_rank", group)
    fits = isinstance(flag, Tensor) and flag.dtype == torch.bool and flag.numel() == 1 and not flag.is_meta
    # The flags of processes that hold nothing may lie on another device than the rest.
    carrier = agreement.carrier(group, torch.device("cpu"))
    count = flag.to(carrier, torch.int32).reshape(()) if fits else torch.tensor(2 + dist.get_rank(group)).to(carrier)
    count = count.to(torch.int32)
    dist.all_reduce(count, dist.ReduceOp.MAX, group=group)
    if not fits or (flag.device.type == "cpu" and int(count) > 1):
        at = int(count) - 2
        raise TypeError(f"any_rank: flag: expected a 0-d bool tensor on all ranks, got something else on rank {at}")
    return count.to(flag.device, torch.bool)


def _facts(scores: Any, kept: int, group: Any, key: str, nan: str, out: str) -> dict[str, object]:
    """What this process has to say about its arguments. Raises ValueError or TypeError when they are wrong."""
    choose(_NAME, "key", key, KEYS)
    choose(_NAME, "nan", nan, NAN_POLICIES)
    choose(_NAME, "out", out, ("words", "bool"))
    if not is_count(kept):
        raise ValueError(f"{_NAME}: kept: expected an int >= 0, got {kept!r}")
    if not isinstance(scores, Sequence):
        raise TypeError(f"{_NAME}: scores: expected a sequence of tensors, got {type(scores).__name__}")
    names = [f"{_NAME}: scores[{i}]" for i in range(len(scores))]
    shards.check_scores(names, scores, group, out == "words")
    for name, s in zip(names, scores, strict=True):
        if s.dtype != scores[0].dtype:
            raise ValueError(f"{name}: expected dtype {scores[0].dtype} as for the first, got {s.dtype}")
    what = _layout(scores) if scores and shards.is_spread(scores[0]) else "plain tensors"
    facts = {
        "kept": index(kept),
        "key": key,
        "nan": nan,
        "out": out,
        "scores": what,
        "numel": sum(map(shards.numel_here, scores)),
    }
    dtype, kind = (str(scores[0].dtype).removeprefix("torch."), scores[0].device.type) if scores else ("", "")
    return facts | {"dtype": dtype, "device": kind}


def _layout(scores: Sequence[Any]) -> str:
    """Text that tells lists of DTensors apart, as far as shapes and placements go."""
    if len(scores) > MAX_SPREAD:
        raise ValueError(f"{_NAME}: scores: expected at most {MAX_SPREAD} DTensors, got {len(scores)}")
    layout = repr([(tuple(s.shape), s.placements) for s in scores]).encode()
    return f"{len(scores)} DTensors [{crc32(layout):08x}]"


def _agreed(stated: agreement.Stated) -> tuple[str, str]:
    """Device type and dtype of the scores ("" without any), once all arguments are known to agree."""
    for name in ("kept", "key", "nan", "out", "scores"):
        agreement.same(_NAME, stated, name)
    return agreement.same(_NAME, stated, "device", [""]), agreement.same(_NAME, stated, "dtype", [""])


def _find(
    scores: Sequence[Tensor],
    kept: int,
    total: int,
    dtype: torch.dtype,
    device: torch.device,
    group: Any,
    options: tuple[str, str],
) -> _Threshold:
    """The ``kept``-th largest key of all processes. Every number stays on the device, so that nobody waits for it."""
    # A replicated tensor is counted once, by the process that it belongs to.
    parts = [shards.part_here(s) for s in scores]
    carrier = agreement.carrier(group, device)
    start, bits = number_range(dtype, options[0])
    first = torch.full((), start, dtype=torch.int64, device=device)
    need = torch.full_like(first, kept)
    left, missing, own, at = bits, first, first, first
    while left:
        width = min(_DIGIT, left)
        own = torch.ops.sparsekit.key_histogram(parts, first, left - width, 1 << width, *options)
        counts = own.sum(0).to(carrier)
        dist.all_reduce(counts, group=group)
        counts = counts.to(device)
        if left == bits:
            # The first range holds all numbers, and NaN if they are kept.
            missing = total - counts.sum()
        above = counts.flip(0).cumsum(0).flip(0)
        # The highest bin with enough keys at or above it: for 0 wanted that of the largest key, for too many the lowest.
        at = ((above >= need.clamp(min=1)).sum() - 1).clamp(min=0).view(1)
        need = need - (above - counts).index_select(0, at)[0]
        left -= width
        first = first + (at[0] << left)
    return _Threshold(first, need, own.index_select(1, at)[:, 0], missing)


def _order(scores: Sequence[Any], group: Any) -> _Order:
    if not (scores and shards.is_spread(scores[0])):
        return _Order(list(range(dist.get_world_size(group))), dist.get_rank(group), False)
    ranks, mesh = dist.get_process_group_ranks(group), scores[0].device_mesh
    # A mesh may list the ranks in another order than the group, and the rows lie in that of the mesh.
    return _Order([ranks.index(rank) for rank in mesh.mesh.flatten().tolist()], mesh.get_coordinate()[0], True)


def _quotas(limit: _Threshold, scores: Sequence[Tensor], group: Any) -> Tensor:
    """How many of the keys equal to the threshold each tensor here may keep, the first ones: int64 [tensors]."""
    order, device = _order(scores, group), limit.own.device
    own = limit.own if order.by_tensor else limit.own.sum(0, keepdim=True)
    rows = agreement.gather(own.to(agreement.carrier(group, device)), group).to(device).unbind(0)
    # Stacked row by row: a list of indices would have to be copied to the device, for which the host would wait.
    table = torch.stack([rows[place] for place in order.places], dim=1)
    left = _left(limit.ties, table.reshape(-1)).view(table.shape)
    if not order.by_tensor:
        return _left(left[0, order.place], limit.own)
    # Every process keeps of a replicated tensor what the one does that has counted it.
    owners = [0 if shards.is_replicated(s) else order.place for s in scores]
    return torch.stack([shares[owner] for shares, owner in zip(left.unbind(0), owners, strict=True)])


def _left(ties: Tensor, counts: Tensor) -> Tensor:
    """What is left of ``ties`` for each place when those before it have taken as many as their ``counts``."""
    return (ties - (counts.cumsum(0) - counts)).clamp(min=0)


def _placed(words: Tensor, part: Tensor, score: Tensor, out: str) -> Tensor:
    """The mask of a local part, spread as the score is."""
    if out == "bool":
        return shards.spread(unpack_mask(words, part.shape), score, score.shape)
    return shards.spread(words, score, words_shape(score.shape))
