# SPDX-License-Identifier: Apache-2.0
"""IMP: every rewind by tensor equality, exact nested masks, learning rates, resume."""

from __future__ import annotations

import copy
import functools
import itertools
import math

import pytest
import torch
from states import equal, snapshot, unmasked
from torch import nn
from torch.nn import functional as F

from sparsekit.allocation import Global, Uniform, kept_count
from sparsekit.mask import Mask
from sparsekit.nn import dense_state_dict, masked_layers, set_masks, sparsify
from sparsekit.patterns import NM, Channel, Filter
from sparsekit.projection import Projection
from sparsekit.pruners.imp import IMP, IMPOptions
from sparsekit.pruners.protocol import Pruner
from sparsekit.schedules import imp_ladder

SPARSITY = 0.45  # three rounds: 0.2, 0.36, 0.45


def make_model(seed=0):
    torch.manual_seed(seed)
    body = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)]
    model = nn.Sequential(*body, nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    sparsify(model)
    return model


def make_batches(start=0):
    for i in itertools.count(start):
        generator = torch.Generator().manual_seed(100 + i)
        yield torch.randn(8, 1, 6, 6, generator=generator), torch.randint(3, (8,), generator=generator)


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def square(model, batch):
    return model(batch).square().mean()


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=1e-3)


def adam(parameters):
    return torch.optim.AdamW(parameters, 0.01)


class Spy:
    """An optimizer factory that records the model as it is when a round hands over to training."""

    def __init__(self, model, make=sgd):
        self.model, self.make, self.seen, self.made = model, make, [], []

    def __call__(self, parameters):
        self.seen.append(snapshot(self.model))
        self.made.append(self.make(parameters))
        return self.made[-1]


def run(pruner, batches, steps=None):
    return [pruner.step(batches) for _ in range(pruner.steps - pruner._step if steps is None else steps)]


def test_is_a_pruner_and_fits():
    pruner = IMP(make_model(), loss, SPARSITY, optimizer=sgd, steps_per_round=2, rewind="lr")
    assert isinstance(pruner, Pruner)
    masks = pruner.fit(list(itertools.islice(make_batches(), 3)))
    assert pruner.done and masks == pruner.masks
    assert pruner.cost.passes == pruner.cost.steps == pruner.steps == 6 and pruner.cost.samples == 48
    with pytest.raises(ValueError, match="IMP: step: expected a run that is not done"):
        pruner.step(make_batches())


def test_ladder_and_exact_counts_after_every_step():
    model = make_model()
    pruner = IMP(model, loss, SPARSITY, optimizer=sgd, steps_per_round=2, dense_steps=3)
    assert pruner.ladder == imp_ladder(SPARSITY, 0.2) and pruner.ladder[-1] == SPARSITY and len(pruner.ladder) == 3
    assert pruner.ends == (3, 5, 7, 9)
    total = pruner.masks.numel
    batches = make_batches()
    for rung in [0.0] * 3 + [pruner.ladder[0]] * 2 + [pruner.ladder[1]] * 2 + [pruner.ladder[2]] * 2:
        metrics = pruner.step(batches).read()
        assert pruner.masks.count() == kept_count(total, rung)
        assert metrics["round"] == pruner.round == (pruner.ladder.index(rung) + 1 if rung else 0)
        assert metrics["regrown"] == 0 and set(metrics) == {"loss", "round", "flips", "regrown"}
    assert pruner.done


def test_flips_are_reported_by_the_step_that_prunes():
    pruner = IMP(make_model(), loss, SPARSITY, optimizer=sgd, steps_per_round=2, dense_steps=1)
    flips = [int(metrics["flips"]) for metrics in run(pruner, make_batches())]
    kept = [kept_count(pruner.masks.numel, s) for s in (0.0, *pruner.ladder)]
    drops = [a - b for a, b in itertools.pairwise(kept)]
    assert flips == [0, drops[0], 0, drops[1], 0, drops[2], 0]


def test_first_masks_hold_before_any_step():
    model = make_model()
    weights = torch.cat([layer.weight.detach().abs().flatten() for layer in masked_layers(model).values()])
    threshold = weights.sort(descending=True).values[kept_count(weights.numel(), 0.2) - 1]
    expected = {name: layer.weight.detach().abs() >= threshold for name, layer in masked_layers(model).items()}
    pruner = IMP(model, loss, SPARSITY, optimizer=sgd, steps_per_round=2, rewind="lr")
    assert all(torch.equal(mask.dense(), expected[name]) for name, mask in pruner.masks.items())


@pytest.mark.parametrize("source", ["plain", "sparsified"])
def test_rewind_to_a_given_initial_state(source):
    initial = make_model(seed=5)
    set_masks(initial, {"0": Mask.from_dense(torch.zeros(4, 1, 3, 3, dtype=torch.bool))})
    state = dense_state_dict(initial) if source == "plain" else initial.state_dict()
    expected = unmasked({name: value.clone() for name, value in state.items()})
    model = make_model()
    trained, spy = snapshot(model), Spy(model)
    pruner = IMP(model, loss, SPARSITY, optimizer=spy, steps_per_round=2, rewind="init", rewind_state=state)
    state["0.weight"].fill_(7.0)  # what the caller does with it later must not matter
    assert not equal(unmasked(trained), expected)
    run(pruner, make_batches())
    assert len(spy.seen) == 3
    for seen, rung in zip(spy.seen, pruner.ladder, strict=True):
        assert equal(unmasked(seen), expected)
        words = [value for name, value in seen.items() if name.endswith("mask_words")]
        kept = sum(Mask(w, m.shape).count() for w, m in zip(words, pruner.masks.values(), strict=True))
        assert kept == kept_count(pruner.masks.numel, rung)


def test_rewind_to_the_initial_state_of_its_own_dense_training():
    model = make_model()
    initial, spy = unmasked(snapshot(model)), Spy(model)
    pruner = IMP(model, loss, SPARSITY, optimizer=spy, steps_per_round=2, dense_steps=3)
    batches = make_batches()
    before = [unmasked(snapshot(model)) for _ in iter(lambda: pruner.done or pruner.step(batches), True)]
    assert len(spy.seen) == 4 and all(equal(unmasked(seen), initial) for seen in spy.seen)
    assert not any(equal(state, initial) for state in before), "training must have moved away from the initial state"


def test_rewind_to_an_early_state_of_its_own_dense_training():
    model = make_model()
    spy = Spy(model)
    own = {"dense_steps": 4, "rewind": "early", "options": IMPOptions(rewind_step=2)}
    pruner = IMP(model, loss, SPARSITY, optimizer=spy, steps_per_round=2, **own)
    batches = make_batches()
    run(pruner, batches, 2)
    early = unmasked(snapshot(model))
    assert int(early["1.num_batches_tracked"]) == 2
    run(pruner, batches)
    assert len(spy.seen) == 4 and all(equal(unmasked(seen), early) for seen in spy.seen[1:])


def test_rewind_to_a_given_early_state():
    early = make_model(seed=5)
    loss(early, next(make_batches())).backward()  # moves the BatchNorm statistics
    model = make_model()
    spy = Spy(model)
    given = {"rewind": "early", "rewind_state": early.state_dict(), "options": IMPOptions(rewind_step=3)}
    pruner = IMP(model, loss, SPARSITY, optimizer=spy, steps_per_round=2, **given)
    run(pruner, make_batches())
    assert len(spy.seen) == 3 and all(equal(unmasked(seen), unmasked(early.state_dict())) for seen in spy.seen)


@pytest.mark.parametrize("arguments", [{"rewind": "lr"}, {"rewind": "none"}, {"budget": 6}])
def test_weights_and_statistics_stay_without_rewind(arguments):
    model = make_model()
    start, spy = unmasked(snapshot(model)), Spy(model)
    steps = None if "budget" in arguments else 2
    pruner = IMP(model, loss, SPARSITY, optimizer=spy, steps_per_round=steps, **arguments)
    ends, batches = [start], make_batches()
    for _ in range(3):
        run(pruner, batches, 2)
        ends.append(unmasked(snapshot(model)))
    assert pruner.done and len(spy.seen) == 3
    assert all(equal(unmasked(seen), end) for seen, end in zip(spy.seen, ends[:-1], strict=True))
    assert not equal(ends[0], ends[1])


def rates(pruner, spy):
    """Learning rate of every step."""
    values, batches = [], make_batches()
    while not pruner.done:
        pruner.step(batches)
        values.append(spy.made[-1].param_groups[0]["lr"])
    return values


def test_learning_rates_restart_in_every_round():
    cosine = [0.05 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    model = make_model()
    spy = Spy(model)
    pruner = IMP(model, loss, SPARSITY, optimizer=spy, steps_per_round=4, dense_steps=2)
    assert rates(pruner, spy) == pytest.approx([0.1, 0.05] + 3 * cosine)
    model = make_model()
    spy = Spy(model)
    pruner = IMP(model, loss, SPARSITY, optimizer=spy, steps_per_round=4, rewind="lr", curve="step")
    assert rates(pruner, spy) == pytest.approx(3 * [0.1, 0.1, 0.01, 0.001])


def test_learning_rates_of_early_resume_where_the_state_was():
    model = make_model()
    spy = Spy(model)
    own = {"dense_steps": 4, "rewind": "early", "curve": "linear", "options": IMPOptions(rewind_step=1)}
    pruner = IMP(model, loss, SPARSITY, optimizer=spy, steps_per_round=3, **own)
    assert rates(pruner, spy) == pytest.approx([0.1, 0.075, 0.05, 0.025] + 3 * [0.075, 0.05, 0.025])


def test_learning_rate_of_fine_tuning_is_small_and_constant():
    model = make_model()
    spy = Spy(model)
    pruner = IMP(model, loss, SPARSITY, optimizer=spy, steps_per_round=2, dense_steps=2, rewind="none")
    assert rates(pruner, spy) == pytest.approx([0.1, 0.05] + 6 * [0.001])
    options = IMPOptions(finetune_factor=0.5)
    model = make_model()
    spy = Spy(model)
    pruner = IMP(model, loss, SPARSITY, optimizer=spy, steps_per_round=1, rewind="none", options=options)
    assert rates(pruner, spy) == pytest.approx(3 * [0.05])


def test_budget_is_split_exactly_and_decays_linearly():
    model = make_model()
    spy = Spy(model)
    pruner = IMP(model, loss, SPARSITY, optimizer=spy, budget=8, dense_steps=2)
    assert pruner.rewind == "lr" and pruner.ends == (2, 4, 7, 10) and pruner.steps == 2 + 8
    third = [0.1, 0.2 / 3, 0.1 / 3]
    assert rates(pruner, spy) == pytest.approx([0.1, 0.05] + [0.1, 0.05] + third + third)
    for budget in range(3, 12):
        steps = [phase.steps for phase in IMP(make_model(), loss, SPARSITY, optimizer=sgd, budget=budget).phases]
        assert sum(steps) == budget and max(steps) - min(steps) <= 1 and steps == sorted(steps)


def test_equals_a_plain_loop_without_momentum_from_the_round_before():
    model = make_model()
    pruner = IMP(model, loss, SPARSITY, optimizer=sgd, steps_per_round=3, rewind="lr", curve="linear")
    run(pruner, make_batches())
    plain, batches = make_model(), make_batches()
    for rung in (0.2, 1 - 0.8**2, SPARSITY):
        scores = {name: layer.masked_weight().abs() for name, layer in masked_layers(plain).items()}
        set_masks(plain, Projection()(scores, rung).masks)
        optimizer = sgd(plain.parameters())
        for i in range(3):
            optimizer.param_groups[0]["lr"] = 0.1 * (1 - i / 3)
            optimizer.zero_grad()
            loss(plain, next(batches)).backward()
            optimizer.step()
    assert equal(snapshot(model), snapshot(plain))


def test_a_used_optimizer_is_refused():
    model = make_model()
    kept = sgd(model.parameters())
    pruner = IMP(model, loss, SPARSITY, optimizer=lambda _: kept, steps_per_round=1, rewind="lr")
    batches = make_batches()
    pruner.step(batches)
    with pytest.raises(ValueError, match="IMP: optimizer: expected a fresh optimizer for each round"):
        pruner.step(batches)


def test_frozen_parameters_are_not_given_to_the_optimizer():
    model = make_model()
    model[0].bias.requires_grad_(False)
    spy = Spy(model)
    IMP(model, loss, SPARSITY, optimizer=spy, steps_per_round=1, rewind="lr")
    given = spy.made[0].param_groups[0]["params"]
    assert len(given) == len(list(model.parameters())) - 1 and all(p is not model[0].bias for p in given)


@pytest.mark.parametrize("make", [sgd, adam])
def test_masks_are_nested_and_pruned_weights_are_never_used(make):
    model = make_model()
    pruner = IMP(model, loss, 0.9, optimizer=make, steps_per_round=1, rewind="lr")
    batches, before = make_batches(), pruner.masks
    for _ in range(pruner.steps):
        pruner.step(batches)
        after = pruner.masks
        assert all((before[name] & after[name]) == after[name] for name in after)
        for name, layer in masked_layers(model).items():
            pruned = ~after[name].dense()
            assert not layer.masked_weight()[pruned].any()
            layer.weight.data[pruned] = math.nan if pruner.cost.steps % 2 else 1e30
        before = after


PROJECTIONS = {
    "single": Projection(),
    "single, uniform": Projection(allocation=Uniform()),
    "filter": Projection(Filter(), Uniform()),
    "filter, p=1": Projection(Filter(p=1), Uniform()),
    "channel": Projection(Channel(), Uniform()),
    "filter, global": Projection(Filter()),
    "filter, with a floor": Projection(Filter(), Global(min_keep=2)),
}


@pytest.mark.filterwarnings("ignore::sparsekit.pruners.metrics.CollapseWarning")
@pytest.mark.parametrize("projection", PROJECTIONS.values(), ids=PROJECTIONS)
@pytest.mark.parametrize("tiny", [0.0, 1e-44, 1e-30])
def test_masks_are_nested_when_all_weights_tie(projection, tiny):
    model = nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 6))
    sparsify(model)
    # Later weights are larger, so ties decided by index would bring back earlier ones.
    for layer in masked_layers(model).values():
        layer.weight.data = torch.linspace(1, 2, 60).reshape(layer.weight.shape)
    frozen = functools.partial(torch.optim.SGD, lr=0.0)
    still = IMP(model, square, 0.7, optimizer=frozen, steps_per_round=1, rewind="lr", projection=projection)
    batches, before = itertools.repeat(torch.zeros(2, 6)), still.masks
    assert 0 < before.sparsity < 0.7
    for layer in masked_layers(model).values():
        layer.weight.data.fill_(tiny)
    while not still.done:
        assert int(still.step(batches)["regrown"]) == 0
        after = still.masks
        assert all((before[name] & after[name]) == after[name] for name in after)
        before = after


@pytest.mark.parametrize(("pattern", "dim"), [(Filter(), 0), (Channel(), 1)])
def test_structured_rounds_keep_the_largest_norms_of_each_layer(pattern, dim):
    model = make_model()
    projection = Projection(pattern, Uniform())
    pruner = IMP(model, loss, SPARSITY, optimizer=sgd, steps_per_round=2, rewind="lr", projection=projection)
    batches = make_batches()
    for rung in pruner.ladder:
        before = {name: layer.masked_weight() for name, layer in masked_layers(model).items()}
        metrics = pruner.step(batches)
        for name, mask in pruner.masks.items():
            weight, dense = before[name], mask.dense()
            kept = dense.transpose(0, dim).flatten(1).any(1)
            assert torch.equal(dense, kept.view([-1 if d == dim else 1 for d in range(weight.ndim)]).expand_as(dense))
            assert int(kept.sum()) == kept_count(weight.shape[dim], rung)
            if rung != pruner.ladder[0]:
                norms = weight.transpose(0, dim).flatten(1).double().norm(dim=1)
                assert set(norms.topk(int(kept.sum())).indices.tolist()) == set(kept.nonzero().flatten().tolist())
        assert int(metrics["regrown"]) == 0
        pruner.step(batches)
    assert pruner.done


def test_same_seed_same_bits():
    results = []
    for _ in range(2):
        model = make_model()
        pruner = IMP(model, loss, SPARSITY, optimizer=sgd, steps_per_round=2, dense_steps=2)
        run(pruner, make_batches())
        results.append(snapshot(model))
    assert equal(*results)


WAYS = {
    "init": {"steps_per_round": 2, "dense_steps": 3},
    "early": {"steps_per_round": 2, "dense_steps": 3, "rewind": "early", "options": IMPOptions(rewind_step=2)},
    "lr": {"steps_per_round": 2, "rewind": "lr"},
    "none": {"steps_per_round": 2, "rewind": "none", "dense_steps": 1},
    "budget": {"budget": 7, "dense_steps": 2},
}


@pytest.mark.parametrize("make", [sgd, adam])
@pytest.mark.parametrize("way", WAYS)
def test_resume_is_bit_equal_from_every_step(way, make):
    model = make_model()
    pruner = IMP(model, loss, SPARSITY, optimizer=make, **WAYS[way])
    batches, cuts = make_batches(), []
    for _ in range(pruner.steps):
        cuts.append((pruner.cost.steps, snapshot(model), copy.deepcopy(pruner.state_dict())))
        pruner.step(batches)
    final = snapshot(model)
    for step, weights, state in cuts:
        again = make_model(seed=9)
        resumed = IMP(again, loss, SPARSITY, optimizer=make, **WAYS[way])
        again.load_state_dict(weights)
        resumed.load_state_dict(state)
        run(resumed, make_batches(step))
        assert resumed.done and equal(snapshot(again), final)
        assert resumed.round == pruner.round and resumed.cost.passes == pruner.cost.passes


def test_a_state_serves_more_than_once():
    model = make_model()
    pruner = IMP(model, loss, SPARSITY, optimizer=sgd, steps_per_round=3, rewind="lr")
    run(pruner, make_batches(), 1)
    weights, state = snapshot(model), pruner.state_dict()
    finals = []
    for _ in range(2):
        again = make_model()
        resumed = IMP(again, loss, SPARSITY, optimizer=sgd, steps_per_round=3, rewind="lr")
        again.load_state_dict(weights)
        resumed.load_state_dict(state)
        run(resumed, make_batches(1))
        finals.append(snapshot(again))
    assert equal(*finals)


def test_a_given_rewind_state_travels_with_the_state():
    first, second = make_model(seed=5).state_dict(), make_model(seed=6).state_dict()
    model = make_model()
    pruner = IMP(model, loss, SPARSITY, optimizer=sgd, steps_per_round=1, rewind_state=first)
    weights, state = snapshot(model), copy.deepcopy(pruner.state_dict())
    run(pruner, make_batches())
    again = make_model()
    resumed = IMP(again, loss, SPARSITY, optimizer=sgd, steps_per_round=1, rewind_state=second)
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    run(resumed, make_batches())
    assert equal(snapshot(again), snapshot(model))


def test_state_of_another_run_is_refused():
    state = IMP(make_model(), loss, SPARSITY, optimizer=sgd, steps_per_round=2, rewind="lr").state_dict()
    other = IMP(make_model(), loss, SPARSITY, optimizer=sgd, steps_per_round=3, rewind="lr")
    with pytest.raises(ValueError, match="IMP: load_state_dict: expected rounds"):
        other.load_state_dict(state)
    other = IMP(make_model(), loss, 0.5, optimizer=sgd, steps_per_round=2, rewind="lr")
    with pytest.raises(ValueError, match="IMP: load_state_dict"):
        other.load_state_dict(state)


def test_a_step_without_batch_changes_nothing():
    model = make_model()
    pruner = IMP(model, loss, SPARSITY, optimizer=sgd, steps_per_round=2, rewind_state=make_model(5).state_dict())
    run(pruner, make_batches(), 2)
    before, state = snapshot(model), copy.deepcopy(pruner.state_dict())
    with pytest.raises(ValueError, match="IMP: batches: expected another batch at step 3, got none"):
        pruner.step(iter(()))
    assert equal(snapshot(model), before) and pruner.state_dict()["opened"] == state["opened"] == 0


def test_the_model_may_be_one_layer():
    torch.manual_seed(0)
    layer = nn.Linear(8, 5)
    sparsify(layer)
    state = snapshot(layer)
    spy = Spy(layer)
    pruner = IMP(layer, square, 0.5, optimizer=spy, steps_per_round=1, rewind_state=state)
    pruner.fit([torch.randn(4, 8)])
    assert all(equal(unmasked(seen), unmasked(state)) for seen in spy.seen) and pruner.masks.count() == 20


def test_tied_weights_prune_once_and_rewind():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    sparsify(model)
    state = snapshot(model)
    spy = Spy(model)
    pruner = IMP(model, square, 0.5, optimizer=spy, steps_per_round=1, rewind_state=state)
    pruner.fit([torch.randn(4, 6)])
    assert pruner.masks.numel == 36 and pruner.masks.count() == 18
    assert torch.equal(model[0].mask_words, model[2].mask_words)
    assert all(equal(unmasked(seen), unmasked(state)) for seen in spy.seen)


def test_nan_weights_are_an_error_that_leaves_masks_alone():
    model = make_model()
    pruner = IMP(model, loss, SPARSITY, optimizer=sgd, steps_per_round=1, rewind="lr")
    batches = make_batches()
    pruner.step(batches)
    before = pruner.masks
    model[7].weight.data[pruner.masks["7"].dense()] = math.nan
    with pytest.raises(ValueError, match="IMP: scores: expected numbers, got NaN"):
        pruner.step(batches)
    assert pruner.masks == before


def test_rate_sets_the_ladder():
    half = IMPOptions(rate=0.5)
    pruner = IMP(make_model(), loss, SPARSITY, optimizer=sgd, steps_per_round=1, rewind="lr", options=half)
    assert pruner.ladder == (SPARSITY,) and pruner.masks.count() == kept_count(pruner.masks.numel, SPARSITY)


def test_sparsity_zero_is_one_round_that_prunes_nothing():
    pruner = IMP(make_model(), loss, 0.0, optimizer=sgd, budget=3)
    pruner.fit(list(itertools.islice(make_batches(), 3)))
    assert pruner.ladder == (0.0,) and pruner.steps == 3 and pruner.masks.sparsity == 0


STATE = make_model().state_dict()
ERRORS = [
    ({"sparsity": 1.0}, ValueError, "IMP: sparsity"),
    ({"sparsity": "half"}, TypeError, "IMP: sparsity"),
    ({"optimizer": 3}, TypeError, "IMP: optimizer: expected a callable"),
    ({"optimizer": lambda p: 3}, TypeError, "IMP: optimizer: expected a callable that makes a torch optimizer"),
    ({"steps_per_round": None}, ValueError, "IMP: steps_per_round: expected either it or budget, got neither"),
    ({"budget": 9}, ValueError, "IMP: steps_per_round: expected either it or budget, got both"),
    ({"steps_per_round": 0}, ValueError, "IMP: steps_per_round"),
    ({"steps_per_round": 1.5}, TypeError, "IMP: steps_per_round"),
    ({"steps_per_round": None, "budget": 2}, ValueError, "IMP: budget: expected an int >= 3"),
    ({"steps_per_round": None, "budget": 9, "rewind": "init"}, ValueError, "IMP: rewind: expected lr with a budget"),
    ({"rewind": "late"}, ValueError, "IMP: rewind: expected one of init, early, lr, none"),
    ({"rewind": "init"}, ValueError, "IMP: rewind_state: expected a state dict"),
    ({"rewind": "early"}, ValueError, "IMP: rewind_state: expected a state dict"),
    ({"rewind_state": STATE}, ValueError, "IMP: rewind_state: expected None with rewind='lr'"),
    ({"rewind": "init", "rewind_state": STATE, "dense_steps": 3}, ValueError, "expected None with dense_steps"),
    ({"rewind": "init", "rewind_state": 3}, TypeError, "IMP: rewind_state: expected a state dict"),
    ({"rewind": "init", "rewind_state": {}}, ValueError, "IMP: rewind_state: .* got missing 0.bias"),
    ({"rewind": "init", "rewind_state": {**STATE, "x": 1}}, ValueError, "IMP: rewind_state: .* got unknown x"),
    ({"rewind": "init", "rewind_state": {**STATE, "0.bias": torch.ones(5)}}, ValueError, "'0.bias'.: expected shape"),
    ({"rewind": "early", "dense_steps": 3}, ValueError, r"IMP: rewind_step: expected an int in \[1, 3\]"),
    ({"options": IMPOptions(rewind_step=1)}, ValueError, "IMP: rewind_step: expected 0 with rewind='lr'"),
    ({"options": IMPOptions(finetune_factor=0)}, ValueError, "IMP: finetune_factor"),
    ({"options": IMPOptions(rate=1.0)}, ValueError, "rate"),
    ({"dense_steps": -1}, ValueError, "IMP: dense_steps"),
    ({"curve": "round"}, ValueError, "IMP: curve"),
    ({"projection": Projection(NM(2, 4)), "sparsity": 0.5}, ValueError, "IMP: projection: expected a pattern of any"),
]


@pytest.mark.parametrize(("change", "error", "message"), ERRORS)
def test_bad_arguments_are_named(change, error, message):
    arguments = {"sparsity": SPARSITY, "optimizer": sgd, "steps_per_round": 2, "rewind": "lr"} | change
    with pytest.raises(error, match=message):
        IMP(make_model(), loss, **arguments)


def test_masks_must_be_full():
    model = make_model()
    set_masks(model, {"0": Mask.from_dense(torch.zeros(4, 1, 3, 3, dtype=torch.bool))})
    with pytest.raises(ValueError, match="IMP: model: expected full masks"):
        IMP(model, loss, SPARSITY, optimizer=sgd, steps_per_round=1, rewind="lr")
