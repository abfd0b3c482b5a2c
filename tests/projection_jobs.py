# SPDX-License-Identifier: Apache-2.0
"""Jobs of test_projection_distributed.py: each runs on every rank of a group, against the projection of one process."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.distributed as dist
from processes import all_raise, everyone, raised
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from sparsekit import ops
from sparsekit.allocation import ERK, Global, PerLayer, Uniform
from sparsekit.mask import Mask
from sparsekit.patterns import NM, Block, Channel, Filter, Unstructured
from sparsekit.projection import Projection

SHAPES = [(0, 4), (4, 8), (5, 4, 3, 3), (1, 12), (3, 4), (7, 4)]
POLICIES = ("error", "drop", "keep")


def draw(dice: random.Random, ranks: int, empty: bool, dtype: torch.dtype = torch.float32) -> list[dict[str, Tensor]]:
    """Scores with ties, and now and then NaN, by layer for each rank; a rank may have none."""
    torch.manual_seed(dice.randrange(2**31))
    scores: list[dict[str, Tensor]] = [{} for _ in range(ranks)]
    for rank, part in enumerate(scores):
        for i in range(dice.randint(0, 3)):
            values = torch.randn(dice.choice(SHAPES if empty else SHAPES[1:])).mul(2).round().div(2)
            part[f"{rank}.{i}"] = torch.where(
                torch.rand(values.shape) < dice.choice([0, 0, 0.05]), torch.nan, values
            ).to(dtype)
    return scores


def layers(rank: int, world: int) -> None:
    """Whole layers on each rank and a group."""
    wrong = []
    for case in range(60):
        dice = random.Random(100 * world + case)
        pattern = dice.choice([Unstructured(), Unstructured(), Filter(), Channel(1.0), Block(2, 3), NM(2, 4)])
        scores = draw(dice, world, pattern != Channel(1.0), dice.choice([torch.float32, torch.bfloat16]))
        everything = {name: s for part in scores for name, s in part.items()}
        if not everything:
            continue
        allocation = dice.choice([Global(), Global(), Global(rounding="floor"), Uniform()])
        if isinstance(pattern, NM):
            allocation = dice.choice([Global(), Uniform()])
        sparsity = 0.5 if isinstance(pattern, NM) else dice.choice([0.0, 0.3, 0.501, 0.9])
        nan, key = dice.choice(POLICIES), dice.choice(["magnitude", "value"])
        projection = Projection(pattern, allocation, nan, dist.group.WORLD)
        got, invalid = projection(scores[rank], sparsity, key)  # pyright: ignore[reportArgumentType]
        expected, flag = Projection(pattern, allocation, nan)(everything, sparsity, key)  # pyright: ignore
        fits = list(got) == list(scores[rank]) and all(got[name] == expected[name] for name in got)
        if not fits or bool(invalid) != bool(flag):
            wrong.append((case, pattern, allocation, nan, key, fits, bool(invalid), bool(flag)))
    assert not wrong, wrong[:3]


def spread(whole: Tensor, mesh: DeviceMesh, placement: Any) -> DTensor:
    chunks = whole.chunk(mesh.size())
    place = mesh.get_coordinate()[0]  # pyright: ignore[reportOptionalSubscript]
    local = whole if placement == Replicate() else chunks[place] if place < len(chunks) else whole[:0]
    options = {"run_check": False, "shape": whole.shape, "stride": whole.stride()}
    return DTensor.from_local(local.clone(), mesh, [placement], **options)


def dtensors(rank: int, world: int) -> None:
    """Scores that are sharded or replicated, for every allocation; and what can be asked of such masks."""
    wrong, mesh = [], DeviceMesh("cpu", list(range(world)))
    for case in range(50):
        dice = random.Random(900 * world + case)
        pattern = dice.choice([Unstructured(), Unstructured(), Filter(), NM(2, 4), Channel(1.0), Block(2, 3)])
        (scores,) = draw(dice, 1, pattern != Channel(1.0))
        if not scores:
            continue
        allocation = dice.choice([Global(), Uniform(), Uniform(min_keep=1), ERK(), PerLayer({"0.0": 0.25})])
        if isinstance(pattern, NM):
            allocation = dice.choice([Global(), Uniform()])
        whole = isinstance(pattern, (Channel, Block))
        placements = [Replicate() if whole else dice.choice([Shard(0), Shard(0), Replicate()]) for _ in scores]
        nan, key = dice.choice(POLICIES), dice.choice(["magnitude", "value"])
        projection, sparsity = Projection(pattern, allocation, nan), 0.5
        expected, flag = projection(scores, sparsity, key)  # pyright: ignore[reportArgumentType]
        parts = {n: spread(s, mesh, p) for (n, s), p in zip(scores.items(), placements, strict=True)}
        got, invalid = projection(parts, sparsity, key)  # pyright: ignore[reportArgumentType]
        for (name, mask), placement in zip(got.items(), placements, strict=True):
            words: Any = mask.words
            here = spread(expected[name].words, mesh, placement)
            fits = words.placements == (placement,) and torch.equal(words.to_local(), here.to_local())
            fits &= mask.shape == expected[name].shape and mask.count() == expected[name].count()
            fits &= torch.equal(mask.dense().full_tensor(), expected[name].dense())  # pyright: ignore
            fits &= (~mask).count() == mask.numel - mask.count() and repr(mask) == repr(expected[name])
            fits &= mask == mask.clone() and (mask & ~mask).count() == 0
            if not fits:
                wrong.append((case, name, pattern, allocation, placement))
        figures = got.count(), got.sparsity, got.overlap(got), got.table()
        if figures != (expected.count(), expected.sparsity, 1.0, expected.table()):
            wrong.append((case, pattern, allocation, figures))
        if type(invalid) is not Tensor or bool(invalid) != bool(flag) or got.hash() != expected.hash():
            wrong.append((case, pattern, allocation, nan, key, bool(invalid), bool(flag)))
    assert not wrong, wrong[:3]


def tiles(rank: int, world: int) -> None:
    """Transposable 2:4 over whole layers and shards; shards that tear a tile are refused by all ranks alike."""
    mesh, pattern = DeviceMesh("cpu", list(range(world))), NM(2, 4, transposable=True)
    torch.manual_seed(world)
    scores = {"a": torch.randn(4 * world, 8, 3, 3), "b": torch.randn(8, 12)}
    scores["a"][0, 1, 2, 2] = torch.nan
    for nan in POLICIES:
        expected, flag = Projection(pattern, nan=nan)(scores, 0.5)
        spreads = {"a": spread(scores["a"], mesh, Shard(0)), "b": spread(scores["b"], mesh, Replicate())}
        got, invalid = Projection(pattern, nan=nan)(spreads, 0.5)
        assert got.hash() == expected.hash() and bool(invalid) == bool(flag)
        own = {f"{rank}.{name}": s for name, s in scores.items()} if rank == 0 else {}
        got, invalid = Projection(pattern, nan=nan, group=dist.group.WORLD)(own, 0.5)
        assert bool(invalid) == bool(flag) and all(got[f"{rank}.{n}"] == expected[n] for n in scores if rank == 0)
    if world > 1:
        torn = {"a": spread(torch.ones(4 * (world - 1), 4), mesh, Shard(0))}
        all_raise(lambda: Projection(pattern)(torn, 0.5), "ValueError", "NM: shape: expected dim 0 divisible by 4, got")


def faults(rank: int, world: int) -> None:
    """What is wrong or differs on one rank is raised by all; what cannot be served is refused by name."""
    group, last, fine = dist.group.WORLD, rank == world - 1, {"a": torch.ones(4, 4)}
    together = Projection(group=group)
    for scores, sparsity, key, kind, text in [
        (fine, 1.5, "magnitude", "ValueError", "Global: sparsity: expected a number in [0, 1), got 1.5"),
        (fine, 0.5, "rank", "ValueError", "Projection: key: expected one of value, magnitude, got 'rank'"),
        (
            [1],
            0.5,
            "magnitude",
            "TypeError",
            "Projection: scores: expected a mapping of layer names to tensors, got list",
        ),
        ({"b": torch.ones(2).int()}, 0.5, "value", "TypeError", "Projection: scores['b']: expected a floating point"),
    ]:
        given = (scores, sparsity, key) if last else (fine, 0.5, "magnitude")
        all_raise(lambda given=given: together(*given), kind, text, f"(on rank {world - 1})")
    if world > 1:
        text = f"Projection: sparsity: expected the same on all ranks, got 0.5 on rank 0, 0.25 on rank {world - 1}"
        all_raise(lambda: together(fine, 0.25 if last else 0.5), "ValueError", text)
        other = Projection(nan="drop", group=group) if last else together
        all_raise(lambda: other(fine, 0.5), "ValueError", "Projection: projection: expected the same on all ranks")
        halves = {"a": torch.ones(4, 4, dtype=torch.float16)}
        text = "dist_topk_mask: dtype: expected the same on all ranks, got float32 on rank 0, float16"
        all_raise(lambda: together(halves if last else fine, 0.5), "ValueError", text)
    uniform, text = (
        Projection(allocation="uniform", group=group),
        "Projection: warm: expected what warm_start makes for 1",
    )
    warm = ops.warm_start(1, "meta" if last else "cpu")
    all_raise(lambda: uniform(fine, 0.5, "value", warm), "ValueError", text, f"(on rank {world - 1})")
    empty = everyone(together({}, 0.5).masks.count())
    assert empty == [0] * world
    mesh = DeviceMesh("cpu", list(range(world)))
    shards = {"a": spread(torch.ones(4, 4), mesh, Shard(0))}
    vector = {**shards, "b": spread(torch.ones(5), mesh, Shard(0))}
    spoken = "Projection: scores['a']: expected a plain tensor with a group, got a DTensor, which brings its own"
    for projection, scores, text in [
        (together, shards, spoken),
        (
            Projection(),
            vector,
            "Projection: scores['b']: expected at least 2 dimensions under Shard(0), got shape (5,)",
        ),
        (Projection(), {**shards, **{"b": torch.ones(2)}}, "scores['b']: expected either DTensors or plain tensors"),
        (Projection("channel"), shards, "Projection: pattern: expected unstructured, filter or n:m for scores under"),
        (Projection(Block(2, 2)), shards, "Projection: pattern: expected unstructured, filter or n:m for scores under"),
        (
            Projection(allocation=Global(min_keep=1)),
            shards,
            "allocation: expected min_keep 0 for DTensors, got Global(",
        ),
        (
            Projection("2:4"),
            {"a": spread(torch.ones(4, 6), mesh, Shard(0))},
            "NM: shape: expected dim 1 divisible by 4",
        ),
    ]:
        all_raise(lambda projection=projection, scores=scores: projection(scores, 0.5), "ValueError", text)
    if world > 1:
        text = "Global: sparsity: expected a number in [0, 1), got 2"
        all_raise(lambda: Projection()(shards, 2 if last else 0.5), "ValueError", text)
    words: Any = Mask.from_dense(spread(torch.ones(4, 4) > 0, mesh, Shard(0))).words
    kind, text = raised(lambda: ops.unpack_mask(DTensor.from_local(words.to_local()[:, :1], mesh, [Shard(0)]), (9,)))
    assert kind == "ValueError" and "unpack_mask: words: expected" in text


def identity(rank: int, world: int) -> None:
    """The text of a projection holds no address, and its group is part of what it is equal to."""
    group, other = dist.group.WORLD, dist.new_group(list(range(world)))
    one = Projection("filter", "uniform", "drop", group)
    inner = "pattern=Filter(p=2.0), allocation=Uniform(min_keep=0), nan='drop'"
    assert repr(one) == f"Projection({inner}, group={world} ranks)"
    assert repr(Projection("filter", "uniform", "drop", other)) == repr(one)
    assert repr(Projection("filter", "uniform", "drop")) == f"Projection({inner})"
    assert one == Projection("filter", "uniform", "drop", group) and hash(one) == hash(
        Projection("filter", "uniform", "drop", group)
    )
    assert one != Projection("filter", "uniform", "drop") and one != Projection("filter", "uniform", "drop", other)
    for allocation in ("erk", {"a": 0.5}, Global(min_keep=1), Uniform(min_keep=1)):
        text = "Projection: allocation: expected global or uniform without min_keep for a group, got"
        all_raise(lambda allocation=allocation: Projection(allocation=allocation, group=group), "ValueError", text)
    all_raise(lambda: Projection(group="gloo"), "TypeError", "Projection: group: expected a process group with this")  # type: ignore
    text = "Projection: group: expected None where a budget is needed beforehand, got a group"
    all_raise(lambda: one.budget({"a": (2, 2)}, 0.5), "ValueError", text)
