# SPDX-License-Identifier: Apache-2.0
"""Gradual: exact sparsity along the schedule, nothing comes back, the training stays somebody else's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sparsekit as sk


def build(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 4))
    sk.sparsify(model)
    return model


N = 10 * 12 + 12 * 4


def train_(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(8, 10)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(
    "schedule, rule",
    [("cubic", sk.Cubic), ("linear", sk.Linear), (sk.Cubic(0.2, 0.9, 1, 6), None), (lambda t: min(0.1 * t, 0.9), None)],
    ids=["cubic", "linear", "object", "function"],
)
def test_counts_follow_the_schedule_and_masks_are_nested(every: int, schedule, rule) -> None:
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    pruner = sk.Gradual(model, 0.9, steps=8, every=every, schedule=schedule)
    curve = rule(0.0, 0.9, 0, 7) if rule else schedule
    before, target = pruner.masks, 0.0
    for step in range(8):
        weights = {n: w.abs() for n, w in pruner.weights.items()}
        metrics = pruner.step()
        last = step == 7
        if step % every == 0 or last:
            target = 0.9 if last else curve(step)
            assert metrics.read()["target"] == target and metrics.read()["regrown"] == 0
            # The smallest of what was left have gone.
            left = torch.cat([weights[n][m.dense()] for n, m in before.items()]).sort(descending=True).values
            kept = torch.cat([weights[n][m.dense()] for n, m in pruner.masks.items()])
            assert torch.equal(kept.sort(descending=True).values, left[: len(kept)])
        else:
            assert metrics == {}
        assert pruner.masks.count() == sk.kept_count(N, target)
        assert all((pruner.masks[n] & before[n]) == pruner.masks[n] for n in before)
        before = pruner.masks
        train_(model, optimizer)
    assert pruner.done and isinstance(pruner, sk.Pruner)
    with pytest.raises(ValueError, match="Gradual: step: expected a run that is not done, got step 9 after the last"):
        pruner.step()


@pytest.mark.parametrize("pattern", ["unstructured", "filter"])
def test_what_lies_under_a_mask_never_comes_back(pattern: str) -> None:
    model = build()
    pruner = sk.Gradual(model, 0.6, steps=4, schedule="linear", projection=sk.Projection(pattern, "uniform"))
    with torch.no_grad():
        model[0].weight[:, 0] = 0.0  # kept zeros, which pruned weights would tie with
        for _ in range(4):
            before = pruner.masks
            assert pruner.step().read()["regrown"] == 0
            assert all((pruner.masks[n] & before[n]) == pruner.masks[n] for n in before)
            for layer in sk.masked_layers(model).values():
                layer.weight[~layer.mask.dense()] = 1e30
            kept_rows = model[0].mask.dense().any(1).nonzero()
            model[0].weight[kept_rows[-1]] = 0.0  # a kept unit of norm 0, behind pruned ones


def test_resume() -> None:
    whole = build()
    pruner = sk.Gradual(whole, 0.8, steps=6, every=2)
    for _ in range(6):
        pruner.step()
    part = build()
    first = sk.Gradual(part, 0.8, steps=6, every=2)
    for _ in range(3):
        first.step()
    other = build(1)
    second = sk.Gradual(other, 0.8, steps=6, every=2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    other.load_state_dict(part.state_dict())
    for _ in range(3):
        second.step()
    assert second.done and second.masks == pruner.masks
    with pytest.raises(ValueError, match="Gradual: load_state_dict: expected every 1, got 2"):
        sk.Gradual(build(), 0.8, steps=6).load_state_dict(first.state_dict())
    curved = sk.Gradual(build(), 0.8, steps=6, every=2, schedule="linear")
    with pytest.raises(ValueError, match="Gradual: load_state_dict: expected schedule 'Linear"):
        curved.load_state_dict(first.state_dict())


def test_a_schedule_that_ends_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match=r"as_schedule: final: expected 0.5, .* got 0.9"):
        sk.Gradual(build(), 0.9, steps=5, schedule=sk.Cubic(0.0, 0.5, 0, 4))


def test_nothing_is_trained_or_drawn() -> None:
    model = build()
    before = copy.deepcopy(dict(model.named_parameters()))

    def batches():
        raise AssertionError("drawn")
        yield

    sk.Gradual(model, 0.5, steps=1).step(batches())
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_kept_weights_that_are_zero_come_before_pruned_ones() -> None:
    model = build()
    pruner = sk.Gradual(model, 0.4, steps=3, schedule="linear")
    pruner.step(), pruner.step()
    before = pruner.masks
    with torch.no_grad():
        for layer in sk.masked_layers(model).values():
            layer.weight.zero_()  # now all scores tie, and pruned weights with low indices would win
    assert pruner.step().read()["regrown"] == 0 and before.count() == sk.kept_count(N, 0.2)
    assert all((pruner.masks[n] & before[n]) == pruner.masks[n] for n in before)
