# SPDX-License-Identifier: Apache-2.0
"""RigL and SET: a plain loop in float64, one rewiring by hand, and what holds whatever the numbers are."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from two_layers import batches, build, loss, sgd

import sparsekit as sk
from sparsekit.pruners.rewiring import drop_fraction

KINDS = pytest.mark.parametrize("kind", [sk.RigL, sk.SET])


def best(scores: Tensor, count: int) -> Tensor:
    """Mask of the largest scores, ties to the first."""
    kept = torch.zeros(scores.numel(), dtype=torch.bool)
    kept[scores.flatten().sort(descending=True, stable=True).indices[:count]] = True
    return kept.view_as(scores)


def mixed(seed: int, step: int) -> int:
    return int(hashlib.sha256(f"{seed} {step}".encode()).hexdigest()[:8], 16)


def loop(kind: Any, steps: int, every: int, end: int, sparsity: float, seed: int) -> Iterator[tuple[Any, Any, Any]]:
    """(weights, masks, momenta) after every step, by where, sort and autograd alone."""
    model = build()
    sk.finalize(model)
    weights, biases = [model[0].weight, model[2].weight], [model[0].bias, model[2].bias]
    counts = list(sk.ERK()({"0": (9, 7), "2": (4, 9)}, {"0": 63, "2": 36}, sparsity).values())

    def numbers(key: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(key)
        return [torch.rand(w.shape, dtype=torch.float64, generator=generator) for w in weights]

    masks = [best(s, n) for s, n in zip(numbers(seed), counts, strict=True)]
    velocity = [torch.zeros_like(p) for p in (*weights, *biases)]
    for t, (x, y) in zip(range(steps), batches(), strict=False):
        due = 0 < t < end and t % every == 0

        def gradients(x: Tensor = x, y: Tensor = y) -> list[Tensor]:
            z = [torch.where(m, w, 0.0).detach().requires_grad_() for w, m in zip(weights, masks, strict=True)]
            out = torch.tanh(x @ z[0].T + biases[0]) @ z[1].T + biases[1]
            return list(torch.autograd.grad((out - y).square().sum(1).mean(), [*z, *biases]))

        if due:
            grow = [g.abs() for g in gradients()[:2]] if kind is sk.RigL else numbers(mixed(seed, t))
            for i, (w, m, g) in enumerate(zip(weights, masks, grow, strict=True)):
                k = math.floor(0.3 / 2 * (1 + math.cos(math.pi * t / end)) * counts[i])
                stay = best(torch.where(m, w.detach().abs(), -1.0), counts[i] - k)
                masks[i] = stay | best(torch.where(stay, -1.0, g), k)
                w.data[masks[i] & ~m] = 0.0
                velocity[i][masks[i] & ~m] = 0.0
        if not (due and kind is sk.RigL):
            h = gradients()
            h[:2] = [torch.where(m, g, 0.0) for g, m in zip(h, masks, strict=False)]
            lr = 0.1 * 0.5 * (1 + math.cos(math.pi * t / steps))
            with torch.no_grad():
                for i, (p, g) in enumerate(zip((*weights, *biases), h, strict=True)):
                    velocity[i] = 0.9 * velocity[i] + g + 0.01 * p
                    p -= lr * velocity[i]
        yield weights, [m.clone() for m in masks], velocity


@pytest.mark.parametrize(("steps", "every", "until", "end"), [(20, 3, 0.75, 15), (12, 2, 1.0, 12), (9, 5, 0.55, 5)])
@KINDS
def test_weights_and_masks_of_a_plain_loop(kind: Any, steps: int, every: int, until: float, end: int) -> None:
    model, source, moved = build(), batches(), 0.0
    pruner = kind(model, loss, 0.6, optimizer=sgd, steps=steps, every=every, until=until, seed=4)
    for weights, masks, velocity in loop(kind, steps, every, end, 0.6, seed=4):
        moved += pruner.step(source).read()["regrown"]
        for i, layer in enumerate((model[0], model[2])):
            assert torch.equal(layer.mask.dense(), masks[i])
            torch.testing.assert_close(layer.weight.detach(), weights[i], rtol=1e-12, atol=1e-12)
            state = pruner.state_dict()["optimizer"]["state"][2 * i]["momentum_buffer"]
            torch.testing.assert_close(state, velocity[i], rtol=1e-12, atol=1e-12)
    assert pruner.done and (moved > 0) == (end > every)


class Row(nn.Module):
    """z of one Linear, so that the loss can be |z - a|^2 / 2 and h = z - a."""

    def __init__(self, theta: list[float]) -> None:
        super().__init__()
        self.fc = nn.Linear(len(theta), 1, bias=False, dtype=torch.float64)
        self.fc.weight.data.copy_(torch.tensor([theta]))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).T


def test_one_rewiring_of_rigl_by_hand() -> None:
    model = Row([4.0, 1.0, -2.0, 7.0, 0.5, 9.0])
    sk.sparsify(model)
    aim, eye = torch.tensor([[4.0, 1.0, -2.0, 5.0, 6.0, 0.25]]).double(), torch.eye(6, dtype=torch.float64)
    options: Any = {"steps": 9, "every": 2, "until": 1.0, "alpha": 0.9, "decay": "constant", "curve": "constant"}
    options["optimizer"] = lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.5)
    objective = lambda m, _: 0.5 * (m(eye) - aim).square().sum()  # noqa: E731
    pruner = sk.RigL(model, objective, 0.5, projection=sk.Projection(allocation=sk.Uniform()), **options)
    sk.set_masks(model, {"fc": sk.Mask.from_dense(torch.tensor([[True, True, True, False, False, False]]))})
    for _ in range(2):  # at its aim already, so nothing moves: h = 0 where kept
        pruner.step(iter([0]))
    state = pruner._optimizer.state[model.fc.weight]["momentum_buffer"]  # pyright: ignore[reportOptionalMemberAccess]
    state.fill_(3.0)
    # k = floor(0.9 * 3) = 2: 4 stays; |h| of the others is 0, 0, 5, 6, 0.25, so the fifth and the fourth come in.
    metrics = pruner.step(iter([0])).read()
    assert model.fc.mask.dense().tolist() == [[True, False, False, True, True, False]]
    assert model.fc.weight.tolist() == [[4.0, 1.0, -2.0, 0.0, 0.0, 9.0]]  # no optimizer step in between
    assert state.tolist() == [[3.0, 3.0, 3.0, 0.0, 0.0, 3.0]]
    assert (metrics["fraction"], metrics["flips"], metrics["regrown"]) == (0.9, 4, 2)


def test_what_is_dropped_and_taken_back_at_once_was_never_away() -> None:
    model = Row([4.0, 1.0, -2.0, 7.0, 0.5, 9.0])
    sk.sparsify(model)
    aim, eye = torch.tensor([[4.0, 9.0, -2.0, 0.0, 6.0, 0.25]]).double(), torch.eye(6, dtype=torch.float64)
    options: Any = {"steps": 3, "every": 2, "until": 1.0, "alpha": 0.9, "decay": "constant", "curve": "constant"}
    objective = lambda m, _: 0.5 * (m(eye) - aim).square().sum()  # noqa: E731
    still: Any = lambda p: torch.optim.SGD(p, lr=1e-300)  # noqa: E731
    pruner = sk.RigL(
        model, objective, 0.5, optimizer=still, projection=sk.Projection(allocation=sk.Uniform()), **options
    )
    sk.set_masks(model, {"fc": sk.Mask.from_dense(torch.tensor([[True, True, True, False, False, False]]))})
    for _ in range(3):
        metrics = pruner.step(iter([0])).read()
    # |h| without the one that stays: 8, 0, 0, 6, 0.25.
    assert model.fc.mask.dense().tolist() == [[True, True, False, False, True, False]]
    assert model.fc.weight.tolist() == [[4.0, 1.0, -2.0, 7.0, 0.0, 9.0]] and metrics["flips"] == 2


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_holds_in_every_step(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([sk.RigL, sk.SET]))
    steps, every = data.draw(st.integers(1, 14)), data.draw(st.integers(2, 5))
    until, alpha = data.draw(st.sampled_from([0.3, 0.75, 1.0])), data.draw(st.sampled_from([0.05, 0.3, 1.0]))
    adam = data.draw(st.booleans())
    sparsity, seed = data.draw(st.sampled_from([0.0, 0.3, 0.9, 0.98])), data.draw(st.integers(0, 2**31 - 1))
    decay = data.draw(st.sampled_from(["cosine", "constant"]))
    optimizer: Any = torch.optim.Adam if adam else sgd
    model, end = build(), math.floor(until * steps + 0.5)
    options: Any = {"every": every, "until": until, "alpha": alpha, "seed": seed, "decay": decay}
    pruner = kind(model, loss, sparsity, optimizer=optimizer, steps=steps, **options)
    counts = {name: mask.count() for name, mask in pruner.masks.items()}
    assert counts == sk.ERK()({"0": (9, 7), "2": (4, 9)}, {"0": 63, "2": 36}, sparsity)
    assert pruner.masks == sk.RandomPruning(build(), loss, sparsity, seed=seed).masks
    source = batches()
    for t in range(steps):
        before, was = pruner.masks, copy.deepcopy(pruner.weights)
        metrics = pruner.step(source).read()
        after = pruner.masks
        assert {name: mask.count() for name, mask in after.items()} == counts
        due = 0 < t < end and t % every == 0
        assert metrics["fraction"] == (drop_fraction(t, end, alpha, decay) if due else 0)
        most = {name: math.floor(metrics["fraction"] * n) for name, n in counts.items()}
        for name, layer in sk.masked_layers(model).items():
            new, gone = (after[name] & ~before[name]).dense(), (before[name] & ~after[name]).dense()
            assert new.sum() == gone.sum() <= most[name]
            if not due:
                assert not new.any()
            elif kind is sk.RigL:
                assert not layer.weight[new].any() and torch.equal(layer.weight[~new], was[name][~new])
                state = pruner._optimizer.state[layer.weight]  # pyright: ignore
                for value in (v for v in state.values() if v.shape == layer.weight.shape):
                    assert not value[new].any() and value[~new].any()
            # What left had the smallest weights of what was kept.
            stays = (before[name] & after[name]).dense()
            if gone.any() and kind is sk.RigL:
                size = was[name].abs()
                order = torch.where(before[name].dense(), size, torch.inf).flatten().sort().values[: most[name]]
                assert bool((size[gone] <= order[-1]).all()) and stays.sum() == counts[name] - gone.sum()
    assert pruner.done and pruner.cost.passes == steps


def test_the_share_falls_from_alpha_to_nothing() -> None:
    found = [drop_fraction(t, 8, 0.3) for t in range(9)]
    assert found[0] == 0.3 and found[4] == pytest.approx(0.15) and found[8] == 0.0
    assert found == sorted(found, reverse=True) and found[2] == pytest.approx(0.15 * (1 + math.sqrt(0.5)))
    assert drop_fraction(7, 8, 0.3, "constant") == 0.3


@KINDS
def test_nothing_moves_after_the_end(kind: Any) -> None:
    pruner, source, moved = kind(build(), loss, 0.6, optimizer=sgd, steps=40, every=2), batches(), []
    while not pruner.done:
        moved.append(pruner.step(source).read()["flips"])
    # The share falls below one weight before the end of the ramp at step 30.
    assert not any(moved[30:]) and moved[2] > 0 and not any(moved[1:30:2])


def build_set(seed: int) -> sk.SET:
    return sk.SET(build(), loss, 0.6, optimizer=sgd, steps=9, every=2, seed=seed, decay="constant")


def test_drawing_is_a_matter_of_seed_and_step_and_of_nobody_else() -> None:
    def run(seed: int, noise: int) -> list[str]:
        pruner, source, found = build_set(seed), batches(), []
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        while not pruner.done:
            pruner.step(source)
            found.append(pruner.masks.hash())
        assert torch.equal(torch.get_rng_state(), state)
        return found

    assert run(1, 5) == run(1, 6) != run(2, 5)
    assert len(set(run(1, 5))) == 4  # before steps 2, 4 and 6 the masks change


def test_seeds_draw_other_weights_where_all_else_is_equal() -> None:
    found = []
    for seed in (0, 1, 2, 2**31 - 1):
        pruner, source = build_set(seed), batches()
        sk.set_masks(pruner.model, sk.RandomPruning(build(), loss, 0.6).masks)
        for _ in range(3):
            pruner.step(source)
        found.append(pruner.masks.hash())
    assert len(set(found)) == 4


@KINDS
def test_gradients_that_are_no_numbers_leave_everything_alone(kind: Any) -> None:
    model, source = build(), batches()
    pruner = kind(model, loss, 0.6, optimizer=sgd, steps=9, every=2)
    for _ in range(2):
        pruner.step(source)
    if kind is sk.RigL:
        # The loss is finite, its gradient at the first layer is not.
        pruner.loss = lambda m, b: loss(m, b) + (m[0].weight.sum() * 0 + (m(b[0]) * 0).sum()).abs().sqrt()
        before = copy.deepcopy(model.state_dict())
    else:
        model[0].weight.data[model[0].mask.dense()] = torch.nan
        before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r": scores: expected numbers, got NaN \(step 3\)"):
        pruner.step(source)
    after = model.state_dict()
    assert all(torch.equal(after[n], v) or (v.isnan() == after[n].isnan()).all() for n, v in before.items())


def test_an_infinite_gradient_is_no_score() -> None:
    class Steep(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *dx: Tensor) -> Tensor:
            return dx[0].index_fill(1, torch.tensor([0]), torch.inf)

    model, source = build(), batches()
    pruner = sk.RigL(model, loss, 0.6, optimizer=sgd, steps=9, every=2)
    for _ in range(2):
        pruner.step(source)
    pruner.loss = lambda m, b: (Steep.apply(m(b[0])) - b[1]).square().sum(1).mean()  # pyright: ignore
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"RigL: scores: expected numbers, got NaN \(step 3\)"):
        pruner.step(source)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@KINDS
def test_frozen_weights_are_refused(kind: Any) -> None:
    # One that is taken in begins at zero, where it would stay.
    model = build()
    model[0].weight.requires_grad_(False)
    text = f"{kind.__name__}: model: expected masked weights that require grad, got '0' frozen"
    with pytest.raises(ValueError, match=text):
        kind(model, loss, 0.5, optimizer=sgd, steps=4)
    assert all(mask.count() == mask.numel for mask in sk.masks(model).values())


@KINDS
def test_what_it_refuses(kind: Any) -> None:
    n = kind.__name__
    for options, text in (
        ({"every": 0}, "every: expected an int >= "),
        ({"until": 0.0}, "until: expected a number in (0, 1], got 0.0"),
        ({"alpha": 1.5}, "alpha: expected a number in (0, 1], got 1.5"),
        ({"decay": "x"}, "decay: expected one of cosine, constant, got 'x'"),
        ({"seed": 2**31}, "seed: expected an int <= 2147483647, got 2147483648"),
        ({"projection": sk.Projection()}, "projection: expected an allocation per layer, such as erk, got Global("),
        ({"projection": sk.Projection(sk.Filter(), sk.Uniform())}, "projection: expected single weights, got Filter("),
    ):
        with pytest.raises(ValueError) as found:
            kind(build(), loss, 0.5, optimizer=sgd, **({"steps": 3} | options))
        assert str(found.value).startswith(f"{n}: {text}")
    if kind is sk.RigL:
        with pytest.raises(ValueError, match="RigL: every: expected an int >= 2, got 1"):
            kind(build(), loss, 0.5, optimizer=sgd, steps=3, every=1)
