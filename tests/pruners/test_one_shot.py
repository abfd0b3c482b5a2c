# SPDX-License-Identifier: Apache-2.0
"""OMP and OneShotMagnitude: masks of the trained network, exact from the start; rewind, fine-tuning, resume."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from states import equal, snapshot, unmasked
from torch import nn
from torch.nn import functional as F

from sparsekit.allocation import Uniform, kept_count
from sparsekit.io import load, save
from sparsekit.nn import masked_layers, masks, recalibrate_batchnorm, sparsify
from sparsekit.patterns import NM, Channel, Filter
from sparsekit.projection import Projection
from sparsekit.pruners.metrics import CollapseWarning
from sparsekit.pruners.one_shot import OMP, OneShotMagnitude
from sparsekit.pruners.protocol import Pruner

SPARSITY = 0.6


def make_model(seed=0):
    torch.manual_seed(seed)
    body = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8)]
    model = nn.Sequential(*body, nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, 3))
    sparsify(model)
    return model


def make_batches(start=0):
    for i in itertools.count(start):
        generator = torch.Generator().manual_seed(100 + i)
        yield torch.randn(8, 2, 6, 6, generator=generator), torch.randint(3, (8,), generator=generator)


def loss(model, batch):
    torch.manual_seed(int(batch[1].sum()))  # dropout then depends on the batch alone
    return F.cross_entropy(model(batch[0]), batch[1])


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=1e-3)


def magnitude_masks(model, sparsity=SPARSITY):
    """By a plain sort over all layers."""
    layers = masked_layers(model)
    flat = torch.cat([layer.weight.detach().abs().flatten() for layer in layers.values()])
    kept = torch.zeros(flat.numel(), dtype=torch.bool)
    kept[flat.sort(descending=True, stable=True).indices[: kept_count(flat.numel(), sparsity)]] = True
    parts = kept.split([layer.weight.numel() for layer in layers.values()])
    return {name: p.view_as(layer.weight) for (name, layer), p in zip(layers.items(), parts, strict=True)}


def same_masks(masks, dense):
    return list(masks) == list(dense) and all(torch.equal(mask.dense(), dense[name]) for name, mask in masks.items())


def run(pruner, batches):
    while not pruner.done:
        pruner.step(batches)


def test_omp_takes_the_mask_of_the_trained_and_the_weights_of_the_initial_model():
    initial, model = make_model(seed=5).state_dict(), make_model()
    expected = magnitude_masks(model)
    pruner = OMP(model, loss, SPARSITY, optimizer=sgd, steps=3, rewind_state=initial)
    assert isinstance(pruner, Pruner)
    assert same_masks(pruner.masks, expected) and equal(unmasked(snapshot(model)), unmasked(initial))
    metrics = pruner.step(make_batches()).read()
    assert set(metrics) == {"loss", "round", "flips", "regrown"}
    assert metrics["round"] == 1 and metrics["flips"] == metrics["regrown"] == 0
    run(pruner, make_batches(1))
    assert same_masks(pruner.masks, expected) and pruner.cost.passes == pruner.steps == 3


def test_omp_trains_densely_first_when_asked():
    model, seen = make_model(), []

    def spy(parameters):
        seen.append(snapshot(model))
        return sgd(parameters)

    initial = snapshot(model)
    pruner = OMP(model, loss, SPARSITY, optimizer=spy, steps=2, dense_steps=3)
    batches = make_batches()
    for _ in range(3):
        assert int(pruner.step(batches)["round"]) == 0 and pruner.masks.sparsity == 0
    expected = magnitude_masks(model)
    metrics = pruner.step(batches).read()
    assert metrics["flips"] == pruner.masks.numel - pruner.masks.count() and metrics["round"] == 1
    assert same_masks(pruner.masks, expected)
    assert equal(seen[0], initial) and equal(unmasked(seen[1]), unmasked(initial)) and not equal(seen[1], initial)
    run(pruner, batches)
    assert pruner.cost.passes == 5 and len(seen) == 2


def test_one_shot_prunes_when_it_is_made_and_keeps_everything_else():
    model = make_model()
    before, expected = snapshot(model), magnitude_masks(model)
    pruner = OneShotMagnitude(model, loss, SPARSITY)
    assert isinstance(pruner, Pruner) and pruner.done and pruner.steps == 0 and pruner.round == 1
    assert same_masks(pruner.masks, expected) and equal(unmasked(snapshot(model)), unmasked(before))
    assert pruner.fit([]) == pruner.masks and pruner.cost.passes == 0
    with pytest.raises(ValueError, match="OneShotMagnitude: step: expected a run that is not done"):
        pruner.step(make_batches())


def test_one_shot_fine_tunes_the_trained_weights():
    model = make_model()
    expected = magnitude_masks(model)
    pruner = OneShotMagnitude(model, loss, SPARSITY, optimizer=sgd, steps=4, curve="linear")
    run(pruner, make_batches())
    plain, batches = make_model(), make_batches()
    OneShotMagnitude(plain, loss, SPARSITY)
    optimizer = sgd(plain.parameters())
    for i in range(4):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - i / 4)
        optimizer.zero_grad()
        loss(plain, next(batches)).backward()
        optimizer.step()
    assert equal(snapshot(model), snapshot(plain)) and same_masks(pruner.masks, expected)


@pytest.mark.parametrize("steps", [0, 2])
def test_one_shot_recalibrates_in_a_step_of_its_own(steps):
    model = make_model()
    pruner = OneShotMagnitude(model, loss, SPARSITY, optimizer=sgd, steps=steps, recalibrate=3)
    assert pruner.steps == 1 + steps and not pruner.done
    batches = make_batches()
    metrics = pruner.step(batches).read()
    assert metrics == {"round": 1, "flips": 0, "regrown": 0} and pruner.cost.passes == 0
    plain = make_model()
    OneShotMagnitude(plain, loss, SPARSITY)
    assert recalibrate_batchnorm(plain, itertools.islice(make_batches(), 3)) == 3
    assert equal(snapshot(model), snapshot(plain)) and int(model[1].num_batches_tracked) == 3
    assert torch.equal(next(batches)[0], next(make_batches(3))[0]), "exactly three batches are drawn"
    run(pruner, batches)
    assert pruner.cost.passes == steps


def test_one_shot_recalibration_short_of_batches_changes_nothing():
    model = make_model()
    pruner = OneShotMagnitude(model, loss, SPARSITY, recalibrate=3)
    before = snapshot(model)
    with pytest.raises(ValueError, match="OneShotMagnitude: batches: expected another batch"):
        pruner.step(itertools.islice(make_batches(), 2))
    assert equal(snapshot(model), before) and not pruner.done


@pytest.mark.parametrize(("pattern", "dim"), [(Filter(), 0), (Channel(), 1)])
@pytest.mark.parametrize("kind", [OMP, OneShotMagnitude])
def test_structured_masks_keep_the_largest_norms_of_each_layer(kind, pattern, dim):
    model = make_model()
    more = {"optimizer": sgd, "steps": 1, "rewind_state": make_model(5).state_dict()} if kind is OMP else {}
    norms = {
        name: layer.weight.detach().transpose(0, dim).flatten(1).double().norm(dim=1)
        for name, layer in masked_layers(model).items()
    }
    pruner = kind(model, loss, SPARSITY, projection=Projection(pattern, Uniform()), **more)
    for name, mask in pruner.masks.items():
        dense, units = mask.dense(), len(norms[name])
        kept = torch.zeros(units, dtype=torch.bool)
        kept[norms[name].topk(kept_count(units, SPARSITY)).indices] = True
        assert torch.equal(dense, kept.view([-1 if d == dim else 1 for d in range(dense.ndim)]).expand_as(dense))


def test_n_of_m_patterns_work():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4))
    sparsify(model)
    pruner = OneShotMagnitude(model, loss, 0.5, projection=Projection(NM(2, 4)))
    assert all((mask.dense().view(-1, 4).sum(1) == 2).all() for mask in pruner.masks.values())


def test_a_transposable_pattern_survives_its_checkpoint(tmp_path):
    def make(pattern):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8))
        sparsify(model)
        return model, OneShotMagnitude(model, loss, 0.5, projection=Projection(pattern))

    model, pruner = make("2:4-transposable")
    for mask in pruner.masks.values():
        for weight in (mask.dense(), mask.dense().t()):
            assert (weight.unflatten(1, (-1, 4)).sum(2) == 2).all()
    save(model, tmp_path / "model")
    plain, other = make(NM(2, 4))
    assert other.masks != pruner.masks
    assert masks(load(plain, tmp_path / "model")) == pruner.masks
    _, again = make(NM(2, 4, transposable=True))
    again.load_state_dict(pruner.state_dict())
    assert again.masks == pruner.masks
    with pytest.raises(ValueError, match="OneShotMagnitude: load_state_dict: expected projection"):
        other.load_state_dict(pruner.state_dict())


RUNS = {
    "omp": lambda model: OMP(model, loss, SPARSITY, optimizer=sgd, steps=3, rewind_state=make_model(5).state_dict()),
    "omp, dense": lambda model: OMP(model, loss, SPARSITY, optimizer=sgd, steps=3, dense_steps=2),
    "magnitude": lambda model: OneShotMagnitude(model, loss, SPARSITY, optimizer=sgd, steps=3),
    "magnitude, recalibrated": lambda model: OneShotMagnitude(
        model, loss, SPARSITY, optimizer=sgd, steps=3, recalibrate=1
    ),
}


@pytest.mark.parametrize("make", RUNS.values(), ids=RUNS)
def test_resume_is_bit_equal_from_every_step(make):
    model = make_model()
    pruner = make(model)
    batches, cuts = make_batches(), []
    while not pruner.done:
        cuts.append((pruner.cost.steps, snapshot(model), copy.deepcopy(pruner.state_dict())))
        pruner.step(batches)
    cuts.append((pruner.cost.steps, snapshot(model), copy.deepcopy(pruner.state_dict())))
    final = snapshot(model)
    for step, weights, state in cuts:
        again = make_model(seed=9)
        resumed = make(again)
        again.load_state_dict(weights)
        resumed.load_state_dict(state)
        run(resumed, make_batches(step))
        assert resumed.done and equal(snapshot(again), final)
        assert resumed.cost.passes == pruner.cost.passes


def test_state_of_another_method_is_refused():
    state = OneShotMagnitude(make_model(), loss, SPARSITY).state_dict()
    other = OMP(make_model(), loss, SPARSITY, optimizer=sgd, steps=3, dense_steps=2)
    with pytest.raises(ValueError, match="OMP: load_state_dict: expected pruner 'OMP', got 'OneShotMagnitude'"):
        other.load_state_dict(state)


def test_collapse_is_reported_even_without_a_step():
    model = make_model()
    model[8].weight.data.fill_(1e-9)
    with pytest.warns(CollapseWarning, match="layer `8` keeps 0 of 96 weights"):
        OneShotMagnitude(model, loss, SPARSITY)


def test_nan_weights_are_an_error_and_leave_full_masks():
    model = make_model()
    model[8].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="OneShotMagnitude: scores: expected numbers, got NaN"):
        OneShotMagnitude(model, loss, SPARSITY)
    assert all(layer.mask.sparsity == 0 for layer in masked_layers(model).values())


STATE = make_model().state_dict()
ERRORS = [
    (OMP, {"steps": 0}, ValueError, "OMP: steps"),
    (OMP, {"rewind_state": None}, ValueError, "OMP: rewind_state: expected a state dict without dense_steps"),
    (OMP, {"dense_steps": 2}, ValueError, "OMP: rewind_state: expected None with dense_steps"),
    (OMP, {"dense_steps": 1.5}, TypeError, "OMP: dense_steps"),
    (OMP, {"rewind_state": {"0.weight": 1}}, ValueError, "OMP: rewind_state: .* got missing"),
    (OMP, {"optimizer": None}, TypeError, "OMP: optimizer"),
    (OMP, {"sparsity": -0.1}, ValueError, "OMP: sparsity"),
    (OMP, {"curve": "up"}, ValueError, "OMP: curve"),
    (OneShotMagnitude, {"steps": 2}, TypeError, "OneShotMagnitude: optimizer: expected a callable"),
    (OneShotMagnitude, {"steps": -1}, ValueError, "OneShotMagnitude: steps"),
    (OneShotMagnitude, {"recalibrate": -1}, ValueError, "OneShotMagnitude: recalibrate"),
    (OneShotMagnitude, {"sparsity": 1}, ValueError, "OneShotMagnitude: sparsity"),
]


@pytest.mark.parametrize(("kind", "change", "error", "message"), ERRORS)
def test_bad_arguments_are_named(kind, change, error, message):
    own = {"optimizer": sgd, "steps": 2, "rewind_state": STATE} if kind is OMP else {}
    with pytest.raises(error, match=message):
        kind(make_model(), loss, **({"sparsity": SPARSITY} | own | change))
