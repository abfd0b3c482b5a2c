# SPDX-License-Identifier: Apache-2.0
"""RandomPruning: exact counts of each allocation, the same masks whatever else is random, every weight equally likely."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsekit as sk


def build(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(), nn.Linear(54, 5))
    sk.sparsify(model)
    return model


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, 0.1)


SHAPES = {"0": (6, 2, 3, 3), "2": (5, 54)}
UNITS = {"0": 108, "2": 270}


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.893, 0.986])
@pytest.mark.parametrize("allocation", [sk.ERK(), sk.Uniform(), sk.Global(), sk.PerLayer({"0": 0.25})])
def test_counts_are_those_of_the_allocation(allocation: Any, sparsity: float) -> None:
    pruner = sk.RandomPruning(build(), loss, sparsity, projection=sk.Projection(allocation=allocation))
    budget = allocation(SHAPES, UNITS, sparsity)
    counts = {name: mask.count() for name, mask in pruner.masks.items()}
    assert pruner.done and (sum(counts.values()) == budget if isinstance(budget, int) else counts == budget)


def test_erk_is_the_default() -> None:
    counts = {name: mask.count() for name, mask in sk.RandomPruning(build(), loss, 0.9).masks.items()}
    assert counts == sk.ERK()(SHAPES, UNITS, 0.9) and counts != sk.Uniform()(SHAPES, UNITS, 0.9)


def test_the_masks_are_those_of_the_readable_rule() -> None:
    generator = torch.Generator().manual_seed(5)
    pruner = sk.RandomPruning(build(), loss, 0.7, seed=5, projection=sk.Projection(allocation="uniform"))
    for name, shape in SHAPES.items():
        drawn = torch.rand(shape, dtype=torch.float64, generator=generator).flatten()
        kept = torch.zeros(len(drawn), dtype=torch.bool)
        kept[drawn.sort(descending=True).indices[: sk.kept_count(len(drawn), 0.7)]] = True
        assert torch.equal(pruner.masks[name].dense().flatten(), kept)


def test_masks_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = sk.RandomPruning(build(), loss, 0.8).masks
    state = torch.manual_seed(2).get_state()
    model = build(9)
    torch.set_rng_state(state)
    second = sk.RandomPruning(model, loss, 0.8).masks
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's numbers change
    assert first == second != sk.RandomPruning(build(), loss, 0.8, seed=1).masks


def test_every_weight_is_kept_equally_often() -> None:
    model, runs = build(), 400
    counts, full = torch.zeros(378), sk.masks(model)
    for seed in range(runs):
        sk.set_masks(model, full)
        masks = sk.RandomPruning(model, loss, 0.5, seed=seed, projection=sk.Projection()).masks
        counts += torch.cat([m.dense().flatten().float() for m in masks.values()])
    # Binomial, n 400, p 1/2: a standard deviation of 10; of 378 weights none is further off than five of them.
    assert counts.sum() == 189 * runs and (counts - runs / 2).abs().max() < 50
    assert 6 < counts.std() < 14


@pytest.mark.parametrize("pattern", ["filter", "channel", "2:4"])
def test_patterns(pattern: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 8))
    sk.sparsify(model)
    allocation = "global" if pattern == "2:4" else "uniform"
    masks = sk.RandomPruning(model, loss, 0.5, projection=sk.Projection(pattern, allocation)).masks
    assert masks.count() == masks.numel // 2
    dense = masks["0"].dense()
    by_input = dense.permute(0, 2, 3, 1).reshape(-1, 4)
    units = {"filter": dense.flatten(1), "channel": dense.transpose(0, 1).flatten(1), "2:4": by_input}[pattern]
    assert set(units.sum(1).tolist()) == ({2} if pattern == "2:4" else {0, units.shape[1]})


def test_it_trains_from_the_state_given_or_from_where_it_is() -> None:
    start = build(7).state_dict()
    for state, seed in ((start, 7), (None, 0)):
        model, twin = build(), build(seed)
        pruner = sk.RandomPruning(model, loss, 0.6, optimizer=sgd, steps=3, rewind_state=state, curve="constant")
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
        sk.set_masks(twin, pruner.masks)
        optimizer, source = sgd(twin.parameters()), [torch.randn(4, 2, 5, 5) for _ in range(3)]
        masks = pruner.masks
        for batch in source:
            assert pruner.step(iter([batch])).read()["flips"] == 0
            optimizer.zero_grad()
            loss(twin, batch).backward()
            optimizer.step()
        assert pruner.done and pruner.masks == masks
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.gpu
def test_masks_of_a_gpu_are_those_of_a_cpu() -> None:
    assert sk.RandomPruning(build().cuda(), loss, 0.8).masks.hash() == sk.RandomPruning(build(), loss, 0.8).masks.hash()
