# SPDX-License-Identifier: Apache-2.0
"""STR and Powerprop against plain loops of autograd in float64, what the model holds meanwhile, and how a run ends."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import sparsekit as sk

Batch = tuple[Tensor, Tensor]
LAYERS = ("0", "3")
TOTAL = 6 * 5 + 3 * 6


def plain(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3, bias=False)).double()


def build(seed: int = 0) -> nn.Sequential:
    model = plain(seed)
    sk.sparsify(model)
    return model


def batches() -> Iterator[Batch]:
    for i in itertools.count():
        draw = torch.randn(7, 8, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        yield draw[:, :5], draw[:, 5:]


def loss(model: Any, batch: Batch) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.2, momentum=0.9, weight_decay=1e-2)


def still(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.0)


def soft(model: nn.Module, sparsity: float = 0.6, optimizer: Any = sgd, **changes: Any) -> sk.STR:
    own = {"steps": 5, "first": -2.0, "curve": "constant"} | changes
    return sk.STR(model, loss, sparsity, optimizer=optimizer, **own)


def power(model: nn.Module, sparsity: float = 0.6, optimizer: Any = sgd, **changes: Any) -> sk.Powerprop:
    own = {"steps": 5, "alpha": 2.5, "curve": "constant"} | changes
    return sk.Powerprop(model, loss, sparsity, optimizer=optimizer, **own)


COLLAPSES = pytest.mark.filterwarnings("ignore::sparsekit.CollapseWarning")
KINDS = pytest.mark.parametrize("make", [soft, power])
Formula = Callable[[str, dict[str, Tensor]], Tensor]


def loop(steps: int, leaves: dict[str, Tensor], formula: Formula, seed: int = 0) -> Iterator[dict[str, Tensor]]:
    """Autograd through the formula; after each step all that a network needs, effective weights included."""
    model = plain(seed)
    others = {n: p for n, p in model.named_parameters() if n.removesuffix(".weight") not in LAYERS}
    trained = [leaf.requires_grad_() for leaf in leaves.values()]
    optimizer, stream = sgd([*others.values(), *trained]), batches()
    for _ in range(steps):
        optimizer.zero_grad()
        used = {f"{name}.weight": formula(name, leaves) for name in LAYERS}
        loss(lambda x, used=used: functional_call(model, used, (x,)), next(stream)).backward()
        optimizer.step()
        with torch.no_grad():
            found = model.state_dict() | {f"{name}.weight": formula(name, leaves) for name in LAYERS}
        yield found


def assert_same(model: nn.Module, expected: dict[str, Tensor]) -> None:
    found = {n: v for n, v in model.state_dict().items() if not n.endswith("mask_words")}
    torch.testing.assert_close(found, {n: expected[n] for n in found}, rtol=1e-9, atol=1e-11)


def initial() -> dict[str, Tensor]:
    return {name: plain()[int(name)].weight.detach().clone() for name in LAYERS}


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_str_is_autograd_through_its_formula(scope: str) -> None:
    model = build()
    pruner, stream = soft(model, scope=scope), batches()
    thresholds = ["s", "s"] if scope == "global" else ["s0", "s3"]
    leaves = initial() | {name: torch.tensor(-2.0, dtype=torch.float64) for name in set(thresholds)}
    of = dict(zip(LAYERS, thresholds, strict=True))

    def formula(name: str, leaves: dict[str, Tensor]) -> Tensor:
        return leaves[name].sign() * (leaves[name].abs() - leaves[of[name]].sigmoid()).relu()

    with torch.no_grad():
        for name in LAYERS:
            assert torch.equal(model[int(name)].weight, formula(name, leaves))
    zeros = []
    for step, expected in enumerate(loop(5, leaves, formula)):
        metrics = pruner.step(stream).read()
        assert_same(model, expected)
        zeros.append(sum(int((expected[f"{name}.weight"] == 0).sum()) for name in LAYERS))
        assert metrics["reached"] == zeros[-1] / TOTAL
        assert pruner.masks.count() == (TOTAL if step < 4 else sk.kept_count(TOTAL, 0.6))
    assert 0 < zeros[0] < TOTAL
    levels = [float(leaves[name].detach().sigmoid()) for name in thresholds]
    assert [float(t) for t in pruner.thresholds.values()] == pytest.approx(levels, rel=1e-9)
    assert levels[0] != pytest.approx(float(torch.tensor(-2.0).sigmoid()), rel=1e-3)  # they did learn


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.5, 4.0])
def test_powerprop_is_autograd_through_its_formula(alpha: float) -> None:
    model = build()
    pruner, stream = power(model, alpha=alpha), batches()
    leaves = {name: u.sign() * u.abs() ** (1 / alpha) for name, u in initial().items()}
    for expected in loop(5, leaves, lambda name, leaves: leaves[name] * leaves[name].abs() ** (alpha - 1)):
        pruner.step(stream)
        assert_same(model, expected)
    assert pruner.done and pruner.masks.count() == sk.kept_count(TOTAL, 0.6)


def test_powerprop_of_one_is_ordinary_training() -> None:
    model, other = build(), build()
    power(model, alpha=1.0, ramp=0.6, every=2).fit(list(itertools.islice(batches(), 5)))
    sk.GMP(other, loss, 0.6, optimizer=sgd, steps=5, every=2, curve="constant").fit(
        list(itertools.islice(batches(), 5))
    )
    assert sk.masks(model) == sk.masks(other)
    torch.testing.assert_close(sk.dense_state_dict(model), sk.dense_state_dict(other), rtol=1e-9, atol=1e-11)


@KINDS
def test_zero_of_powerprop_and_str_stay_where_nothing_pulls(make: Callable[..., Any]) -> None:
    model = build()
    with torch.no_grad():
        model[0].weight[1] = 0.0
    pruner, stream = make(model), batches()
    for _ in range(3):
        pruner.step(stream)
        assert not model[0].weight[1].any() and model[0].weight.isfinite().all()


@KINDS
@pytest.mark.parametrize("ramp", [None, 0.7])
def test_between_steps_the_model_is_the_network_that_is_trained(make: Callable[..., Any], ramp: Any) -> None:
    model, x = build(), next(batches())[0]
    pruner, stream = make(model, ramp=ramp, finetune_steps=2), batches()
    while not pruner.done:
        pruner.step(stream)
        twin = plain(7)
        twin.load_state_dict(sk.dense_state_dict(model))
        seen = model.eval()(x)
        assert torch.equal(twin.eval()(x), seen)
        finalized = sk.finalize(copy.deepcopy(model))
        assert torch.equal(finalized(x), seen) and list(finalized.state_dict()) == list(twin.state_dict())
        if pruner.cost.steps <= 5:
            for name in LAYERS:
                assert torch.equal(model[int(name)].weight, pruner._effective(name))
        assert all(layer.weight.grad is None for layer in pruner.layers.values()) or pruner.cost.steps > 5
        model.train()


@KINDS
def test_the_optimizer_gets_leaves_in_the_places_of_the_weights(make: Callable[..., Any]) -> None:
    given: list[list[nn.Parameter]] = []

    def factory(parameters: list[nn.Parameter]) -> torch.optim.SGD:
        given.append(list(parameters))
        return sgd(parameters)

    model = build()
    pruner = make(model, optimizer=factory, finetune_steps=2)
    stream = batches()
    while not pruner.done:
        pruner.step(stream)
    own = list(model.parameters())
    first, second = given
    assert [id(p) for p in second] == [id(p) for p in own]
    assert [p.shape for p in first[: len(own)]] == [p.shape for p in own]
    weights = {id(model[int(name)].weight) for name in LAYERS}
    assert all((a is b) != (id(b) in weights) for a, b in zip(first, own, strict=False))
    assert [tuple(p.shape) for p in first[len(own) :]] == ([(2,)] if make is soft else [])
    shared: list[list[nn.Parameter]] = []
    soft(build(), scope="global", optimizer=lambda p: shared.append(list(p)) or sgd(p))
    assert shared[0][-1].shape == (1,)


@KINDS
def test_weight_decay_acts_on_the_leaves(make: Callable[..., Any]) -> None:
    model = build()
    pruner = make(model, optimizer=lambda p: torch.optim.SGD(p, lr=1.0, weight_decay=0.1), steps=1, sparsity=0.0)
    before = {name: leaf.detach().clone() for name, leaf in pruner._leaves.items()}
    pruner.loss = lambda m, batch: loss(m, batch) * 0
    pruner.step(batches())
    for name, leaf in pruner._leaves.items():
        torch.testing.assert_close(leaf.detach(), 0.9 * before[name])
    if make is soft:
        assert pruner._s.tolist() == pytest.approx([-1.8, -1.8])


def test_the_last_projection_of_str_keeps_what_the_thresholds_kept() -> None:
    model = build()
    pruner, stream = soft(model, sparsity=0.5, steps=1, first=-1.0, optimizer=still), batches()
    reached = pruner.step(stream).read()["reached"]
    assert reached > 0.5  # too few are left, so the next ones by their margin fill up
    u = torch.cat([w.reshape(-1) for w in initial().values()])
    largest = torch.zeros(TOTAL, dtype=torch.bool)
    largest[u.abs().argsort(descending=True)[: sk.kept_count(TOTAL, 0.5)]] = True  # all layers have one threshold here
    kept = torch.cat([mask.dense().reshape(-1) for mask in pruner.masks.values()])
    assert torch.equal(kept, largest)
    alive = torch.cat([model[int(name)].weight.detach().reshape(-1) for name in LAYERS]) != 0
    assert not bool((alive & ~kept).any()) and int(alive.sum()) == round((1 - reached) * TOTAL)

    model = build()
    pruner = soft(model, sparsity=0.9, steps=1, first=-3.0, optimizer=still)
    assert pruner.step(stream).read()["reached"] < 0.9
    left = torch.cat([sk.masked_layers(model)[name].masked_weight().reshape(-1) for name in LAYERS])
    assert int((left != 0).sum()) == sk.kept_count(TOTAL, 0.9)


@COLLAPSES
def test_thresholds_of_layers_differ_in_the_last_projection() -> None:
    model = build()
    pruner = soft(model, sparsity=0.7, steps=1, optimizer=still)
    with torch.no_grad():
        pruner._s.copy_(torch.tensor([0.5, -3.0]))
    pruner._write()
    pruner.step(batches())
    # By |w|, not by |u|: the thresholds have pushed the first layer down.
    levels = [torch.sigmoid(torch.tensor(s, dtype=torch.float64)) for s in (0.5, -3.0)]
    margins = torch.cat([(u.abs() - t).reshape(-1) for u, t in zip(initial().values(), levels, strict=True)])
    expected = torch.zeros(TOTAL, dtype=torch.bool)
    expected[margins.argsort(descending=True)[: sk.kept_count(TOTAL, 0.7)]] = True
    kept = torch.cat([mask.dense().reshape(-1) for mask in pruner.masks.values()])
    assert torch.equal(kept, expected)


@COLLAPSES
@pytest.mark.parametrize("every", [1, 2])
def test_a_ramp_of_str_has_the_thresholds_follow(every: int) -> None:
    model = build()
    with torch.no_grad():
        model[3].weight.mul_(3)  # some weights beyond 1, which no threshold reaches
    pruner, stream = soft(model, sparsity=0.8, steps=8, ramp=0.5, every=every, optimizer=still), batches()
    with torch.no_grad():
        pruner._s.copy_(torch.tensor([-1.0, -2.5]))
    for step in range(8):
        metrics = pruner.step(stream).read()
        target = pruner.ramp.latest(step)
        assert metrics["target"] == target
        assert abs(metrics["reached"] * TOTAL - (TOTAL - sk.kept_count(TOTAL, target))) <= 1
        a, b = (torch.logit(t) for t in pruner.thresholds.values())
        if target > 0:
            assert float(a - b) == pytest.approx(1.5, abs=1e-4)  # one shift for all
    assert pruner.masks.count() == sk.kept_count(TOTAL, 0.8)


@COLLAPSES
def test_a_ramp_of_str_holds_its_target_while_weights_move() -> None:
    pruner, stream = soft(build(), sparsity=0.8, steps=30, ramp=0.5, first=0.0), batches()
    found = [pruner.step(stream).read()["reached"] for _ in range(30)]
    assert all(abs(value - 0.8) < 0.1 for value in found[20:])


def test_without_a_ramp_thresholds_know_nothing_of_the_sparsity() -> None:
    runs = [soft(build(), sparsity=sparsity) for sparsity in (0.2, 0.9)]
    found = [[run.step(stream).read()["reached"] for _ in range(4)] for run in runs for stream in [batches()]]
    assert found[0] == found[1]


def test_the_source_begins_with_thresholds_of_zero() -> None:
    model = build()
    pruner = sk.STR(model, loss, 0.5, optimizer=sgd, steps=3)
    assert torch.equal(model[0].weight, plain()[0].weight) and not any(pruner.thresholds.values())
    pruner.step(batches())
    assert pruner._s.tolist() == pytest.approx([-3200 * (1 - 0.2 * 1e-2)] * 2)  # by weight decay alone


def test_powerprop_prunes_by_the_effective_weight() -> None:
    for ramp in (None, 0.5):
        model = build()
        pruner = power(model, sparsity=0.5, steps=4, ramp=ramp, optimizer=still)
        assert pruner.masks.count() == TOTAL
        pruner.fit(list(itertools.islice(batches(), 4)))
        u = torch.cat([w.reshape(-1) for w in initial().values()])
        kept = torch.cat([mask.dense().reshape(-1) for mask in pruner.masks.values()])
        assert set(kept.nonzero().flatten().tolist()) == set(u.abs().argsort(descending=True)[: kept.sum()].tolist())


def test_a_ramp_of_powerprop_takes_nothing_back() -> None:
    pruner, stream = power(build(), steps=8, ramp=0.5, every=2), batches()
    for step in range(8):
        metrics = pruner.step(stream).read()
        assert metrics["regrown"] == 0 and metrics["target"] == pruner.ramp.latest(step)
        assert pruner.masks.count() == sk.kept_count(TOTAL, pruner.ramp.latest(step))


@KINDS
def test_fine_tuning_goes_on_from_the_same_weights_along_the_curve(make: Callable[..., Any]) -> None:
    rates: list[float] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    model, stream = build(), batches()
    pruner = make(model, optimizer=lambda p: Watched(p, lr=1.0), steps=3, finetune_steps=2, curve="linear")
    for _ in range(3):
        pruner.step(stream)
    masks, before = pruner.masks, sk.dense_state_dict(model)["0.weight"]
    pruner.step(stream)
    assert rates == pytest.approx([1.0, 0.8, 0.6, 0.4]) and pruner.masks == masks
    after = sk.dense_state_dict(model)["0.weight"]
    assert not torch.equal(before, after) and bool((after[~masks["0"].dense()] == 0).all())


@KINDS
def test_training_from_a_state(make: Callable[..., Any]) -> None:
    model, other = build(3), build()
    state = plain().state_dict()
    make(model, rewind_state=state).fit(list(itertools.islice(batches(), 5)))
    make(other).fit(list(itertools.islice(batches(), 5)))
    torch.testing.assert_close(model.state_dict(), other.state_dict())


# What is noticed


@KINDS
def test_weights_that_somebody_else_changes_are_noticed(make: Callable[..., Any]) -> None:
    model = build()
    pruner, stream = make(model), batches()
    pruner.step(stream)
    with torch.no_grad():
        model[3].weight.mul_(1.0)  # the same numbers
    pruner.step(stream)
    model.load_state_dict(build(5).state_dict())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="model: expected weights as the last step left them in `0`, got others; load"):
        pruner.step(stream)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@KINDS
def test_a_state_without_its_weights_is_noticed(make: Callable[..., Any]) -> None:
    model = build()
    pruner, stream = make(model), batches()
    for _ in range(2):
        pruner.step(stream)
    state, weights = copy.deepcopy(pruner.state_dict()), copy.deepcopy(model.state_dict())
    other = make(build(5))
    other.load_state_dict(state)
    with pytest.raises(ValueError, match="model: expected weights as the last step left them"):
        other.step(stream)
    other.model.load_state_dict(weights)
    other.step(stream)


@KINDS
def test_frozen_weights_are_refused(make: Callable[..., Any]) -> None:
    model = build()
    model[3].weight.requires_grad_(False)
    with pytest.raises(ValueError, match="model: expected masked weights that require grad, got '3' frozen"):
        make(model)


@KINDS
@pytest.mark.parametrize("what", ["leaves", "shape"])
def test_states_with_other_leaves_are_refused(make: Callable[..., Any], what: str) -> None:
    pruner = make(build())
    state = pruner.state_dict()
    leaves = dict(state["leaves"])
    leaves["0"] = torch.ones(2) if what == "shape" else "text"
    with pytest.raises(ValueError, match=r"load_state_dict: leaves\['0'\]: expected floats of shape \(6, 5\)"):
        pruner.load_state_dict(state | {"leaves": leaves})
