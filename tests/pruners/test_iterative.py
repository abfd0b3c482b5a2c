# SPDX-License-Identifier: Apache-2.0
"""Iterative: a plain loop in float64, rounds of SpODE by hand, exact counts, costs, errors that leave all as it was."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from two_layers import N, batches, build, loss

import sparsekit as sk


def sgd(lr: float) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=0.01)


def magnitude(model: nn.Module, sparsity: float) -> sk.OneShotMagnitude:
    return sk.OneShotMagnitude(model, loss, sparsity)


def spode(model: nn.Module, sparsity: float) -> sk.SpODE:
    return sk.SpODE(model, loss, sparsity, steps=4, radius=1.4)


def make(model: Any, inner: Any = magnitude, sparsity: float = 0.8, **changes: Any) -> sk.Iterative:
    own: Any = {
        "optimizer": sgd(0.1),
        "steps_per_round": 3,
        "rounds": 4,
        "final_steps": 5,
        "final_optimizer": sgd(0.02),
    }
    return sk.Iterative(model, loss, sparsity, pruner=inner, **(own | changes))


def loop() -> Iterator[tuple[Any, list[Tensor]]]:
    """(weights, masks) after every step of magnitude in rounds, by where, sort and autograd alone."""
    model = build()
    sk.finalize(model)
    weights, biases = [model[0].weight, model[2].weight], [model[0].bias, model[2].bias]
    masks, source = [torch.ones_like(w, dtype=torch.bool) for w in weights], batches()
    trainings = [(j, 3, 0.1) for j in (1, 2, 3, 4)] + [(0, 5, 0.02)]
    for j, steps, rate in trainings:
        if j:
            left = torch.cat(
                [torch.where(m, w.detach().abs(), -1.0).flatten() for m, w in zip(masks, weights, strict=True)]
            )
            flat = torch.zeros(N, dtype=torch.bool)
            flat[left.sort(descending=True, stable=True).indices[: N - math.floor((1 - 0.2 ** (j / 4)) * N + 0.5)]] = (
                True
            )
            masks = [m.view_as(w) for m, w in zip(flat.split([63, 36]), weights, strict=True)]
        velocity = [torch.zeros_like(p) for p in (*weights, *biases)]
        for t in range(steps):
            x, y = next(source)
            z = [torch.where(m, w, 0.0).detach().requires_grad_() for w, m in zip(weights, masks, strict=True)]
            out = torch.tanh(x @ z[0].T + biases[0]) @ z[1].T + biases[1]
            h = list(torch.autograd.grad((out - y).square().sum(1).mean(), [*z, *biases]))
            h[:2] = [torch.where(m, g, 0.0) for g, m in zip(h, masks, strict=False)]
            lr = rate * 0.5 * (1 + math.cos(math.pi * t / steps))
            with torch.no_grad():
                for i, (p, g) in enumerate(zip((*weights, *biases), h, strict=True)):
                    velocity[i] = 0.9 * velocity[i] + g + 0.01 * p
                    p -= lr * velocity[i]
            yield weights, masks


def test_weights_and_masks_of_a_plain_loop() -> None:
    model, source = build(), batches()
    pruner, rounds = make(model), []
    assert pruner.masks.count() == sk.kept_count(N, pruner.targets[0])  # the first round begins here
    for weights, masks in loop():
        metrics = pruner.step(source).read()
        rounds.append((metrics["round"], metrics["flips"] > 0, metrics["regrown"]))
        for layer, w, m in zip((model[0], model[2]), weights, masks, strict=True):
            assert torch.equal(layer.mask.dense(), m)
            torch.testing.assert_close(layer.weight.detach(), w, rtol=1e-12, atol=1e-12)
    assert pruner.done and pruner.cost.passes == pruner.cost.steps == pruner.steps == 17
    first = [(float(j), j > 1, 0.0) for j in (1, 2, 3, 4)]
    assert rounds[0:12:3] == first and all(row[1:] == (False, 0.0) for i, row in enumerate(rounds) if i % 3 or i > 9)


def test_targets_and_counts() -> None:
    model, source = build(), batches()
    pruner = make(model, spode, rounds=3, sparsity=0.875)
    assert pruner.targets == (pytest.approx(0.5), pytest.approx(0.75), 0.875)
    ended: dict[int, int] = {}
    while not pruner.done:
        pruner.step(source)
        if pruner.inner.done:
            assert pruner.masks.count() == sk.kept_count(N, pruner.targets[pruner.round - 1])
            ended[pruner.round] = pruner.masks.count()
    assert (
        ended == {j: sk.kept_count(N, pruner.targets[j - 1]) for j in (1, 2, 3)}
        and pruner.masks.sparsity == 0.87878787878787878
    )
    assert (pruner.cost.steps, pruner.cost.passes, pruner.steps) == (3 * 7 + 5, 3 * 7 + 5, 3 * 7 + 5)


def test_rounds_of_spode_are_those_that_a_loop_of_ones_own_makes() -> None:
    """Which is how SpODE in rounds was to be had before."""
    model, twin, source, same = build(), build(), batches(), batches()
    pruner = make(model, spode, rounds=3)
    while not pruner.done:
        pruner.step(source)
    for j in (1, 2, 3):
        inner = sk.SpODE(twin, loss, 0.8 if j == 3 else 1 - 0.2 ** (j / 3), steps=4, radius=1.4)
        while not inner.done:
            inner.step(same)
        for rate, steps in ((0.1, 3), *([(0.02, 5)] if j == 3 else [])):
            optimizer = sgd(rate)(twin.parameters())
            for t in range(steps):
                optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * t / steps))
                optimizer.zero_grad()
                loss(twin, next(same)).backward()
                optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    assert sk.masks(model) == sk.masks(twin)


def test_spode_takes_weights_back_and_magnitude_does_not() -> None:
    for inner, some in ((spode, True), (magnitude, False)):
        pruner, source, regrown = make(build(), inner, sparsity=0.9), batches(), 0.0
        while not pruner.done:
            before = pruner.masks
            metrics = pruner.step(source).read()
            assert metrics["regrown"] == sum((m & ~before[n]).count() for n, m in pruner.masks.items())
            regrown += metrics["regrown"]
        assert (regrown > 0) == some


def test_a_step_that_fails_in_a_new_round_leaves_the_old_one() -> None:
    model, source = build(), batches()
    pruner = make(model, lambda m, s: sk.OneShotMagnitude(m, loss, s), rounds=2)
    for _ in range(3):
        pruner.step(source)
    before, counted = copy.deepcopy(model.state_dict()), pruner.state_dict()["cost"]
    pruner.loss = lambda m, b: loss(m, b) * math.nan
    with pytest.raises(ValueError, match=r"Iterative: loss: expected a finite value, got NaN or inf \(step 4\)"):
        pruner.step(source)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items()) and pruner.round == 1
    pruner.loss = loss
    pruner.step(source)
    assert pruner.round == 2 and pruner.cost.passes == counted["passes"] + 1


def test_a_layer_without_weights_is_told_once_at_the_end() -> None:
    model = build()
    with torch.no_grad():
        model[2].weight.mul_(1e-6)
    pruner = make(model, optimizer=sgd(1e-12), final_optimizer=sgd(1e-12), sparsity=0.6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pruner.fit([next(batches())])
    assert [str(w.message)[:29] for w in caught] == ["Iterative: layer `2` keeps 0 "]


def test_one_shot_magnitude_chooses_among_what_is_left() -> None:
    model = build()
    sk.OneShotMagnitude(model, loss, 0.5)
    before = sk.masks(model)
    with torch.no_grad():  # what is pruned does not compete, however large
        for layer in sk.masked_layers(model).values():
            layer.weight[~layer.mask.dense()] = 1e6
    sk.OneShotMagnitude(model, loss, 0.8)
    after = sk.masks(model)
    assert after.count() == sk.kept_count(N, 0.8) and all((after[n] & before[n]) == after[n] for n in after)
    with pytest.raises(ValueError, match=r"OneShotMagnitude: model: expected masks that keep at least 49 units of all"):
        sk.OneShotMagnitude(model, loss, 0.5)
    with pytest.raises(ValueError, match="expected full masks"):
        sk.OneShotMagnitude(model, loss, 0.9, optimizer=sgd(0.1), steps=1)


def test_states_resume_whatever_was_loaded_first() -> None:
    model, source = build(), batches()
    pruner = make(model, spode)
    for _ in range(16):  # in the third round, whose pruner has begun
        pruner.step(source)
    weights, state = copy.deepcopy((model.state_dict(), pruner.state_dict()))
    rest = [next(source) for _ in range(40)]
    masks = []
    for order in (0, 1):
        again = build(seed=7)
        fresh = make(again, spode)
        for what in (0, 1) if order else (1, 0):
            again.load_state_dict(weights) if what else fresh.load_state_dict(state)
        assert all(torch.equal(v, weights[n]) for n, v in again.state_dict().items())
        feed = iter(rest)
        while not fresh.done:
            fresh.step(feed)
        masks.append((fresh.masks.hash(), [p.detach().clone() for p in again.parameters()]))
    assert masks[0][0] == masks[1][0] and all(torch.equal(p, q) for p, q in zip(masks[0][1], masks[1][1], strict=True))


def test_captured_refuses_it_by_name() -> None:
    with pytest.raises(TypeError, match="captured: pruner: expected one that trains in one go, got Iterative"):
        sk.captured(make(build()))
