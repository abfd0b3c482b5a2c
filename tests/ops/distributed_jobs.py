# SPDX-License-Identifier: Apache-2.0
"""Jobs of test_distributed.py: each runs on every rank of a group. Ranks draw alike, so that all know what all hold."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from oracles import pack_oracle, topk_oracle
from processes import all_raise, everyone, raised
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from torch.utils._python_dispatch import TorchDispatchMode

from sparsekit import ops
from sparsekit.ops import agreement, distributed, threshold

NAN, INF = math.nan, math.inf
HALVES, WIDE = (torch.bfloat16, torch.float16), (torch.float32, torch.float64)
KEYS, POLICIES = ("value", "magnitude"), ("error", "drop", "keep")
LIST_SHAPES = [(), (0,), (5,), (33,), (0, 4), (4, 0), (3, 5), (2, 33), (7, 64), (2, 3, 3), (1, 130)]
SHARD_SHAPES = [(1, 3), (2, 33), (3, 5), (4, 64), (5, 2, 3), (8, 1), (9, 40), (0, 4), (4, 0)]


class Traffic(TorchDispatchMode):
    """Counts the collectives of this process and the bytes that it hands to them, below every Python interface."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.payload = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional", "c10d_functional"):
            self.calls += 1
            given = args[1] if "gather" in str(func) else args[0]
            for tensor in given if isinstance(given, (list, tuple)) else [given]:
                self.payload += tensor.numel() * tensor.element_size()
        return func(*args, **(kwargs or {}))


def values(shape: Sequence[int], dtype: torch.dtype, kind: str, dice: random.Random) -> Tensor:
    """Scores of one kind; each call draws anew."""
    generator = torch.Generator().manual_seed(dice.randrange(2**31))
    normal = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    info = torch.finfo(dtype)
    pools = {
        "two": [1.5, -2.0],
        "equal": [3.0],
        "zeros": [0.0, -0.0],
        "special": [NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0],
        "extreme": [info.max, info.min, info.tiny, -info.tiny, info.tiny / 2, -info.tiny / 2, 0.0, -0.0, INF, -INF],
        "missing": [NAN],
    }
    if kind in pools:
        pool = torch.tensor(pools[kind], dtype=torch.float64)
        return pool[torch.randint(len(pool), tuple(shape), generator=generator)].to(dtype)
    if kind == "levels":
        normal = normal.mul(2).round().div(2)
    if kind == "holes":
        normal = torch.where(normal.abs() < 0.5, NAN, normal)
    return normal.to(dtype)


KINDS = ("normal", "levels", "two", "equal", "zeros", "special", "extreme", "missing", "holes")


def draw(dice: random.Random, shapes: Sequence[Any], lists: int, most: int) -> tuple[list[list[Tensor]], int, dict]:
    """Scores of ``lists`` lists with at most ``most`` tensors each, kept, and options."""
    dtype = dice.choice([*HALVES, WIDE[0], WIDE[0], WIDE[1]])
    kind = dice.choice(KINDS)
    scores = [
        [values(dice.choice(shapes), dtype, kind, dice) for _ in range(dice.randint(0, most))] for _ in range(lists)
    ]
    total = sum(s.numel() for part in scores for s in part)
    kept = dice.choice([0, total, dice.randint(0, total), dice.randint(0, total), max(total - 1, 0), min(total, 1)])
    return scores, kept, {"key": dice.choice(KEYS), "nan": dice.choice(POLICIES)}


def same(got: Tensor, mask: Tensor, out: str) -> bool:
    expected = torch.from_numpy(pack_oracle(mask.numpy())) if out == "words" else mask
    return got.dtype == expected.dtype and torch.equal(got, expected)


def flag(invalid: Tensor, expected: bool) -> bool:
    return invalid.dtype == torch.bool and invalid.ndim == 0 and bool(invalid) == expected


def lists(rank: int, world: int) -> None:
    """Plain lists of any length on each rank, against the stable sort of their concatenation."""
    wrong = []
    for case in range(300 if world < 3 else 400 // world):
        dice = random.Random(1000 * world + case)
        scores, kept, options = draw(dice, LIST_SHAPES, world, 4)
        out = dice.choice(("words", "bool"))
        with Traffic() as traffic:
            masks, invalid = ops.dist_topk_mask(scores[rank], kept, out=out, **options)
        flat = [s for part in scores for s in part]
        expected, bad = topk_oracle(flat, kept, **options) if flat else ([], False)
        start = sum(len(part) for part in scores[:rank])
        mine = expected[start : start + len(scores[rank])]
        fits = len(masks) == len(mine) and all(same(m, e, out) for m, e in zip(masks, mine, strict=True))
        cheap = traffic.calls <= 5 and traffic.payload <= 65536
        if not fits or not flag(invalid, bad) or not (cheap or (flat and flat[0].dtype == torch.float64)):
            wrong.append((case, fits, bool(invalid), bad, traffic.calls, traffic.payload))
    assert not wrong, wrong[:5]


def one_nan(rank: int, world: int) -> None:
    """A single NaN on one rank is known to all. By hand: ties go through the ranks in order."""
    for holder in range(world):
        scores = torch.ones(2, 3)
        if rank == holder:
            scores[1, 2] = NAN
        for nan in POLICIES:
            masks, invalid = ops.dist_topk_mask([scores], world * 6, nan=nan, out="bool")
            assert bool(invalid) == (nan == "error")
            assert torch.equal(masks[0], ~scores.isnan() if nan != "keep" else torch.ones(2, 3, dtype=torch.bool))
    scores = [torch.tensor([-2.0, 1.0]), torch.tensor([2.0])]
    masks, invalid = ops.dist_topk_mask(scores, 3 if world > 1 else 1, out="bool")
    expected = {0: [[True, False], [world > 1]], 1: [[True, False], [False]]}
    assert [m.tolist() for m in masks] == expected.get(rank, [[False, False], [False]])
    assert not bool(invalid)


def mesh_of(world: int, dice: random.Random) -> DeviceMesh:
    """The ranks in order, or in another one."""
    ranks = list(range(world))
    if dice.random() < 0.5:
        dice.shuffle(ranks)
    return DeviceMesh("cpu", ranks)


def shard(whole: Tensor, mesh: DeviceMesh, placement: Any) -> DTensor:
    """The DTensor of a tensor that every rank has."""
    local = whole
    if type(placement) is Shard:
        place = mesh.get_coordinate()[0]  # pyright: ignore[reportOptionalSubscript]
        chunks = whole.chunk(mesh.size(), placement.dim)
        local = chunks[place] if place < len(chunks) else whole.narrow(placement.dim, 0, 0)
    options = {"run_check": False, "shape": whole.shape, "stride": whole.stride()}
    return DTensor.from_local(local.clone(), mesh, [placement], **options)


def dtensors(rank: int, world: int) -> None:
    """Even, uneven and empty shards and replicas on meshes of any order, against the sort of the whole tensors."""
    wrong = []
    for case in range(200 // world):
        dice = random.Random(7000 * world + case)
        (whole,), kept, options = draw(dice, SHARD_SHAPES, 1, 4)
        out, mesh = dice.choice(("words", "bool")), mesh_of(world, dice)
        placements = [dice.choice([Shard(0), Shard(0), Replicate()]) for _ in whole]
        if out == "bool" and whole:
            whole.append(values((11,), whole[0].dtype, "levels", dice))
            placements.append(Shard(0))
        scores = [shard(w, mesh, p) for w, p in zip(whole, placements, strict=True)]
        with Traffic() as traffic:
            masks, invalid = ops.dist_topk_mask(scores, kept, out=out, **options)
        expected, bad = topk_oracle(whole, kept, **options) if whole else ([], False)
        fits = len(masks) == len(whole)
        for mask, wanted, placement in zip(masks, expected, placements, strict=True):
            packed = torch.from_numpy(pack_oracle(wanted.numpy())) if out == "words" else wanted
            here = shard(packed, mesh, placement)
            fits &= mask.placements == (placement,) and mask.device_mesh == mesh and mask.shape == packed.shape
            fits &= mask.dtype == packed.dtype and torch.equal(mask.to_local(), here.to_local())
        narrow = not whole or whole[0].dtype != torch.float64
        if not fits or not flag(invalid, bad) or (narrow and (traffic.calls > 5 or traffic.payload > 65536)):
            wrong.append((case, fits, bool(invalid), bad, traffic.calls, traffic.payload))
    assert not wrong, wrong[:5]


def readable(rank: int, world: int) -> None:
    """The readable implementations, which serve other devices, give the same masks."""
    library, wrong = torch.ops.sparsekit, []
    names = ("key_histogram", "mask_at_threshold")
    native = {name: getattr(library, name) for name in names}
    for case in range(60 // world**2):
        dice = random.Random(33 * world + case)
        scores, kept, options = draw(dice, LIST_SHAPES, world, 3)
        for name in names:
            setattr(library, name, getattr(threshold, name))
        masks, invalid = ops.dist_topk_mask(scores[rank], kept, **options)
        for name in names:
            setattr(library, name, native[name])
        again, flagged = ops.dist_topk_mask(scores[rank], kept, **options)
        if not all(torch.equal(a, b) for a, b in zip(masks, again, strict=True)) or bool(invalid) != bool(flagged):
            wrong.append(case)
    assert not wrong, wrong


def large(rank: int, world: int) -> None:
    """Several blocks for each tensor, several threads, ties over blocks, tensors and ranks."""
    torch.set_num_threads(3)
    for levels in (0, 3):
        generator = torch.Generator().manual_seed(levels)
        scores = [[torch.randn(s, generator=generator) for s in ((300, 700), (70_001,))] for _ in range(world)]
        if levels:
            scores = [[s.mul(levels).round() for s in part] for part in scores]
        flat = [s for part in scores for s in part]
        total = sum(s.numel() for s in flat)
        for kept in (total // 5, total // 2 + 1):
            masks, _ = ops.dist_topk_mask(scores[rank], kept)
            expected = topk_oracle(flat, kept)[0][2 * rank : 2 * rank + 2]
            assert all(same(m, e, "words") for m, e in zip(masks, expected, strict=True))
    torch.set_num_threads(1)


def strides(rank: int, world: int) -> None:
    """Views, gradients and pending signs: the logical order counts, and the scores stay as they are."""
    base = torch.arange(-30.0, 30.0).view(6, 10)
    complex_part = torch.complex(base, -base).conj().imag  # has a pending sign
    scores = [base.t(), base[::2, ::3], complex_part, torch.nn.Parameter(base.clone())]
    before = [s.detach().clone() for s in scores]
    masks, _ = ops.dist_topk_mask(scores, 40 * world, key="value")
    expected, _ = topk_oracle([s.detach().resolve_neg() for s in scores] * world, 40 * world, key="value")
    mine = expected[4 * rank : 4 * rank + 4]
    assert all(same(m, e, "words") and not m.requires_grad for m, e in zip(masks, mine, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, scores, strict=True))


def disagreement(rank: int, world: int) -> None:
    """What differs between ranks is an error on all of them, with both values."""
    scores, last = [torch.ones(3, 3)], rank == world - 1

    def call(value: Tensor = scores[0], kept: int = 2, **options: Any) -> Callable[[], object]:
        return lambda: ops.dist_topk_mask([value], kept, **options)

    where = f"on rank 0, {{}} on rank {world - 1}"
    begin = "dist_topk_mask: {}: expected the same on all ranks, got {} "
    for name, first, other, made in [
        ("kept", 2, 3, lambda v: call(kept=v)),
        ("key", "magnitude", "value", lambda v: call(key=v)),
        ("nan", "error", "drop", lambda v: call(nan=v)),
        ("out", "words", "bool", lambda v: call(out=v)),
        ("dtype", "float32", "float16", lambda v: call(scores[0].to(getattr(torch, v)))),
    ]:
        text = begin.format(name, first) + where.format(other)
        if world > 1:
            all_raise(made(other if last else first), "ValueError", text)
    if world > 1:
        mesh = DeviceMesh("cpu", list(range(world)))
        spread = [shard(torch.ones(4, 4), mesh, Shard(0))]
        all_raise(
            lambda: ops.dist_topk_mask(spread if last else scores, 2), "ValueError", "scores: expected the same on"
        )
        all_raise(lambda: ops.dist_topk_mask(spread * (2 if last else 1), 2), "ValueError", "got 1 DTensors [")
        all_raise(lambda: ops.dist_topk_mask([] if last else spread, 2), "ValueError", "plain tensors on rank")
        other = [shard(torch.ones(4, 5), mesh, Shard(0))]
        all_raise(
            lambda: ops.dist_topk_mask(other if last else spread, 2), "ValueError", "scores: expected the same on"
        )
        replica = [shard(torch.ones(4, 4), mesh, Replicate())]
        all_raise(lambda: ops.dist_topk_mask(replica if last else spread, 2), "ValueError", "scores: expected the same")
    total = 9 * world
    text = f"dist_topk_mask: kept: expected an int in [0, {total}], got {total + 1}"
    all_raise(call(kept=total + 1), "ValueError", text)
    whole, _ = ops.dist_topk_mask([scores[0]], np.int64(2))  # as topk_mask, which takes numpy's integers
    assert torch.equal(whole[0], ops.dist_topk_mask([scores[0]], 2).masks[0])
    assert int(ops.popcount(ops.dist_topk_mask(scores, total).masks[0])) == 9


class Broken(list):
    """A list that fails when it is read."""

    def __iter__(self):
        raise RuntimeError("cannot be read")


def one_fault(rank: int, world: int) -> None:
    """An error that one rank alone has is raised by all of them; the first rank with one is named."""
    good: list[Any] = [torch.ones(2, 3)]
    bad = rank == world - 1
    integers, halves, meta = torch.ones(2, dtype=torch.int32), torch.ones(3).half(), torch.ones(3, device="meta")
    floats = "expected a float64/32/16 or bfloat16 tensor, got"
    for scores, kept, options, kind, text in [
        ([integers], 2, {}, "TypeError", f"scores[0]: {floats} torch.int32"),
        ([*good, [1.0]], 2, {}, "TypeError", f"scores[1]: {floats} list"),
        (
            [torch.ones(2, 3).to_sparse()],
            2,
            {},
            "TypeError",
            "scores[0]: expected a strided tensor, got layout torch.sp",
        ),
        (good[0], 2, {}, "TypeError", "scores: expected a sequence of tensors, got Tensor"),
        ([*good, halves], 2, {}, "ValueError", "scores[1]: expected dtype torch.float32 as for the first, got torch.f"),
        ([*good, meta], 2, {}, "ValueError", "scores[1]: expected device cpu, got meta"),
        (good, -1, {}, "ValueError", "kept: expected an int >= 0, got -1"),
        (good, True, {}, "ValueError", "kept: expected an int >= 0, got True"),
        (good, [2], {}, "ValueError", "kept: expected an int >= 0, got [2]"),
        (good, 2, {"key": "norm"}, "ValueError", "key: expected one of value, magnitude, got 'norm'"),
        (good, 2, {"nan": "skip"}, "ValueError", "nan: expected one of error, drop, keep, got 'skip'"),
        (good, 2, {"out": "bits"}, "ValueError", "out: expected one of words, bool, got 'bits'"),
        (Broken(good), 2, {}, "RuntimeError", "cannot be read"),
        (good, 2, {"key": "long " * 1000}, "ValueError", "key: expected one of value, magnitude, got 'long long"),
        (good, 2, {"key": "two\nlines \u20ac"}, "ValueError", "key: expected one of value, magnitude, got 'two"),
    ]:
        given = (scores, kept, options) if bad else (good, 2, {})
        # A text of thousands of letters loses its end, where the rank stands.
        where = [] if "long" in text else [f"(on rank {world - 1})"]
        all_raise(lambda given=given: ops.dist_topk_mask(given[0], given[1], **given[2]), kind, text, *where)
    all_raise(lambda: ops.dist_topk_mask(good, -1 - rank), "ValueError", "got -1 (on rank 0)")


def refused(rank: int, world: int) -> None:
    """DTensors that cannot be served exactly, by name."""
    mesh, other = DeviceMesh("cpu", list(range(world))), DeviceMesh("cpu", list(reversed(range(world))))
    square = DeviceMesh("cpu", [list(range(world))])
    whole = torch.ones(4, 4)
    good = shard(whole, mesh, Shard(0))
    wide = DTensor.from_local(whole.clone(), mesh, [Shard(1)], run_check=False)
    strided = DTensor.from_local(whole.clone(), mesh, [Shard(0)], run_check=False)
    strided._spec.placements = (_StridedShard(0, split_factor=2),)
    partial = DTensor.from_local(whole.clone(), mesh, [Partial()], run_check=False)
    grid = DTensor.from_local(whole.clone(), square, [Replicate(), Shard(0)], run_check=False)
    vector = shard(torch.ones(9), mesh, Shard(0))
    uneven = {"run_check": False, "shape": torch.Size((2 * world, 4)), "stride": (4, 1)}
    torn = DTensor.from_local(torch.ones(2 + (rank == 0), 4), mesh, [Shard(0)], **uneven)
    placement = "expected placement Shard(0) or Replicate(), got "
    for scores, text in [
        ([wide], "dist_topk_mask: scores[0]: " + placement + "S(1)"),
        ([good, strided], "dist_topk_mask: scores[1]: " + placement),
        ([good, partial], "dist_topk_mask: scores[1]: " + placement + "P(sum)"),
        ([grid], "dist_topk_mask: scores[0]: expected a 1-D device mesh"),
        ([vector], "dist_topk_mask: scores[0]: expected at least 2 dimensions under Shard(0), got shape (9,)"),
        ([good, whole], "dist_topk_mask: scores[1]: expected either DTensors or plain tensors, got both"),
        ([whole, good], "dist_topk_mask: scores[1]: expected either DTensors or plain tensors, got both"),
        ([torn], "scores[0]: expected a shard of shape (2, 4) as torch.chunk cuts, got (3, 4)"),
    ]:
        all_raise(lambda scores=scores: ops.dist_topk_mask(scores, 2), "ValueError", text)
    if world > 1:
        text = "dist_topk_mask: scores[1]: expected DeviceMesh("
        all_raise(lambda: ops.dist_topk_mask([good, shard(whole, other, Shard(0))], 2), "ValueError", text)
    text = "dist_topk_mask: scores[0]: expected a plain tensor with a group, got a DTensor, which brings its own"
    all_raise(lambda: ops.dist_topk_mask([good], 2, group=dist.group.WORLD), "ValueError", text)
    limit, distributed.MAX_SPREAD = distributed.MAX_SPREAD, 2
    all_raise(lambda: ops.dist_topk_mask([good] * 3, 2), "ValueError", "scores: expected at most 2 DTensors, got 3")
    distributed.MAX_SPREAD = limit
    text = "topk_mask: scores[0]: expected a plain tensor, got a DTensor; use dist_topk_mask"
    all_raise(lambda: ops.topk_mask([good], 2), "TypeError", text)
    scalar = shard(torch.tensor(3.0), mesh, Replicate())
    assert bool(ops.dist_topk_mask([scalar, shard(torch.ones(3), mesh, Replicate())], 1).masks[0].to_local() == 1)


def counts(rank: int, world: int) -> None:
    """Comparisons of masks that are spread are those of the whole masks."""
    mesh = DeviceMesh("cpu", list(range(world)))
    shapes, placements = (
        [(5, 40), (1, 33), (0, 3), (7,), (9, 2)],
        [Shard(0), Shard(0), Shard(0), Replicate(), Replicate()],
    )
    before, after, old, new = [], [], [], []
    for shape, placement in zip(shapes, placements, strict=True):
        for whole, spread in ((before, old), (after, new)):
            mask = values(shape, torch.float32, "normal", random.Random(len(old) + 10 * len(new))) > 0
            whole.append(ops.pack_mask(mask))
            spread.append(ops.pack_mask(shard(mask, mesh, placement)))
    found = ops.mask_counts(old, new)
    assert type(found) is Tensor and torch.equal(found, ops.mask_counts(before, after))
    assert ops.mask_iou(old, new) == ops.mask_iou(before, after)
    assert ops.regrow_count(old[0], new[0]) == ops.regrow_count(before[0], after[0])
    assert ops.flip_rate(old, new, numel=258) == ops.flip_rate(before, after, numel=258)
    text = "mask_counts: after[0]: expected DTensors throughout, got a plain tensor"
    all_raise(lambda: ops.mask_counts(old, after), "ValueError", text)
    text = "mask_counts: after[0]: expected DeviceMesh("
    all_raise(lambda: ops.mask_counts(old[0], shard(before[0], mesh, Replicate())), "ValueError", text)
    wide = [shard(torch.ones(8, 8), mesh, Shard(0))]
    for call in (
        lambda: ops.group_scores(wide[0], "filter"),
        lambda: ops.nm_mask(wide, 2, 4),
        lambda: ops.transposable_nm_mask(wide),
    ):
        all_raise(call, "TypeError", "expected a plain tensor, got a DTensor; use Projection")


COLLECTIVES = {torch.float32: 5, torch.bfloat16: 4, torch.float16: 4, torch.float64: 8}


def traffic(rank: int, world: int) -> None:
    """Number of collectives and payload, with as many DTensors as are taken."""
    mesh = DeviceMesh("cpu", list(range(world)))
    for dtype, calls in COLLECTIVES.items():
        scores = [torch.randn(20, 20).to(dtype)]
        if dtype == torch.float32:
            scores = [shard(torch.ones(1, 1), mesh, Shard(0)) for _ in range(distributed.MAX_SPREAD)]
        with Traffic() as seen:
            masks, _ = ops.dist_topk_mask(scores, 77, key="value")
        limit = 65536 if dtype != torch.float64 else 131072 - 8 * distributed.MAX_SPREAD
        assert seen.calls == calls and 16384 < seen.payload <= limit, (dtype, seen.calls, seen.payload)
        if dtype == torch.float32:
            held = [int(m.to_local().sum()) for m in masks]  # pyright: ignore[reportAttributeAccessIssue]
            assert sum(map(sum, everyone(held))) == 77 and not any(held[77:])


def groups(rank: int, world: int) -> None:
    """A part of the ranks on their own; who is not in it, and what is no group, raises alone."""
    members = [rank for rank in range(world) if rank != 1]
    group = dist.new_group(members)
    scores = [torch.tensor([[1.0, 5.0, 5.0]]) + i for i in range(world)]
    if rank in members:
        masks, _ = ops.dist_topk_mask([scores[rank]], 2, group=group, out="bool")
        expected, _ = topk_oracle([scores[i] for i in members], 2)
        assert torch.equal(masks[0], expected[members.index(rank)])
    else:
        text = "dist_topk_mask: group: expected a process group with this process in it, got "
        kind, got = raised(lambda: ops.dist_topk_mask([scores[rank]], 2, group=group))
        assert kind == "TypeError" and got.startswith(text)
    kind, got = raised(lambda: ops.dist_topk_mask([scores[rank]], 2, group="gloo"))
    assert kind == "TypeError" and got.endswith("got 'gloo'")


def mixed_calls(rank: int, world: int) -> None:
    """Ranks that are in different functions find out."""
    if world > 1:
        group, score = dist.group.WORLD, torch.ones(2, 2)

        def call() -> object:
            if rank == 0:
                return ops.dist_topk_mask([score], 1)
            return agreement.agree("another", group, None, {"kept": 1})

        errors = everyone(raised(call))
        assert {kind for kind, _ in errors} == {"ValueError"}
        assert all(
            "call: expected the same on all ranks, got dist_topk_mask on rank 0, another on rank 1" in t
            for _, t in errors
        )
