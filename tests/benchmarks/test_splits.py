# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from sparsekit.benchmarks.splits import VALIDATION_CAP, draw_stratified, make_generator, plan_splits


def test_draw_stratified_keeps_class_shares_exactly():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[torch.randperm(100, generator=make_generator("shuffle"))]
    sample, rest = draw_stratified(labels, 10, make_generator("x"))
    assert torch.bincount(labels[sample]).tolist() == [5, 3, 2]
    assert torch.equal(torch.cat([sample, rest]).sort().values, torch.arange(100))
    assert torch.equal(sample, sample.sort().values) and torch.equal(rest, rest.sort().values)


@pytest.mark.parametrize("count", [0, 1, 2, 6, 7])
def test_draw_stratified_returns_count_for_every_rounding(count: int):
    labels = torch.tensor([0, 0, 0, 2, 2, 2, 2])
    sample, rest = draw_stratified(labels, count, make_generator("x"))
    assert sample.numel() == count and rest.numel() == 7 - count


def test_draw_stratified_ties_go_to_the_lowest_class():
    sample, _ = draw_stratified(torch.tensor([1, 0]), 1, make_generator("x"))
    assert sample.tolist() == [1]


def test_draw_stratified_accepts_nothing():
    sample, rest = draw_stratified(torch.empty(0, dtype=torch.int64), 0, make_generator("x"))
    assert sample.numel() == rest.numel() == 0
    with pytest.raises(ValueError, match=r"count: expected an integer in \[0, 0\], got 1"):
        draw_stratified(torch.empty(0, dtype=torch.int64), 1, make_generator("x"))


def test_plan_carves_disjoint_sets_that_ignore_the_seed():
    labels = torch.arange(1000) % 4
    plan = plan_splits({"train": labels}, limit=None, seed=0)
    other = plan_splits({"train": labels}, limit=None, seed=1)
    positions = [plan[split][1] for split in ("train", "val", "test")]
    assert [len(part) for part in positions] == [720, 80, 200]
    assert torch.equal(torch.cat(positions).sort().values, torch.arange(1000))
    assert all(torch.equal(plan[split][1], other[split][1]) for split in plan)


def test_plan_never_carves_validation_out_of_a_given_test_set():
    plan = plan_splits({"train": torch.zeros(100).long(), "test": torch.zeros(10).long()}, limit=None, seed=0)
    assert plan["val"][0] == "train" and plan["test"][0] == "test"
    assert [plan[split][1].numel() for split in ("train", "val", "test")] == [90, 10, 10]


def test_plan_caps_validation():
    plan = plan_splits({"train": torch.zeros(200_000).long(), "test": torch.zeros(1).long()}, limit=None, seed=0)
    assert plan["val"][1].numel() == VALIDATION_CAP


def test_limit_draws_by_seed_from_within_each_split():
    labels = torch.arange(1000) % 4
    whole = plan_splits({"train": labels}, limit=None, seed=0)
    first, again, other = (plan_splits({"train": labels}, limit=40, seed=seed) for seed in (0, 0, 1))
    for split in ("train", "val", "test"):
        chosen = first[split][1]
        assert set(chosen.tolist()) <= set(whole[split][1].tolist())
        assert torch.bincount(labels[chosen]).tolist() == [10] * 4
        assert torch.equal(chosen, again[split][1]) and not torch.equal(chosen, other[split][1])
    with pytest.raises(ValueError, match="limit: expected an integer >= 1 or None, got 0"):
        plan_splits({"train": labels}, limit=0, seed=0)


def test_generators_of_neighbouring_seeds_differ():
    draws = {
        torch.rand((), generator=make_generator("epoch", seed, epoch)).item() for seed in (0, 1) for epoch in (0, 1)
    }
    assert len(draws) == 4
