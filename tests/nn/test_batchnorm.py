# SPDX-License-Identifier: Apache-2.0
"""BatchNorm recalibration against a direct computation, and passes that leave the statistics alone."""

from __future__ import annotations

import pytest
import torch
from states import equal, snapshot
from torch import nn

from sparsekit.nn import frozen_batchnorm, recalibrate_batchnorm, sparsify


def make_model():
    torch.manual_seed(0)
    body = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()]
    model = nn.Sequential(*body, nn.Linear(16, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    sparsify(model)
    model(torch.randn(8, 2, 4, 4) * 3 + 1)  # statistics that differ from the initial ones
    return model


def make_batches(count, size=16):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 2, 4, 4, generator=generator) + 0.5 * i for i in range(count)]


def statistics(model, name):
    norm = model.get_submodule(name)
    return norm.running_mean, norm.running_var


@torch.no_grad()
def inputs_of_norm(model, x):
    """What the first BatchNorm layer sees."""
    return model[0](x).transpose(0, 1).flatten(1)


def test_one_batch_gives_its_mean_and_unbiased_variance():
    model, (batch,) = make_model(), make_batches(1)
    assert recalibrate_batchnorm(model, [batch]) == 1
    seen = inputs_of_norm(model, batch)
    mean, variance = statistics(model, "1")
    torch.testing.assert_close(mean, seen.mean(1))
    torch.testing.assert_close(variance, seen.var(1, unbiased=True))


def test_several_batches_give_the_mean_of_their_concatenation_and_the_mean_of_their_variances():
    model, batches = make_model(), make_batches(5)
    assert recalibrate_batchnorm(model, batches) == 5
    seen = inputs_of_norm(model, torch.cat(batches))
    parts = [inputs_of_norm(model, batch) for batch in batches]
    mean, variance = statistics(model, "1")
    torch.testing.assert_close(mean, seen.mean(1))
    torch.testing.assert_close(variance, torch.stack([part.var(1, unbiased=True) for part in parts]).mean(0))
    assert int(model[1].num_batches_tracked) == 5


def test_batches_with_equal_means_give_the_variance_of_their_concatenation():
    model, (batch,) = make_model(), make_batches(1)
    flipped = batch.flip(0)  # another batch of the same mean and variance
    recalibrate_batchnorm(model, [batch, flipped])
    mean, variance = statistics(model, "1")
    seen = inputs_of_norm(model, torch.cat([batch, flipped]))
    torch.testing.assert_close(mean, seen.mean(1))
    torch.testing.assert_close(variance, seen.var(1, unbiased=True), rtol=0.01, atol=0)


def test_deeper_layers_are_normalised_by_the_batch_meanwhile():
    model, (batch,) = make_model(), make_batches(1)
    recalibrate_batchnorm(model, [batch])
    with torch.no_grad():
        hidden = model[0](batch)
        mean, variance = hidden.mean((0, 2, 3), keepdim=True), hidden.var((0, 2, 3), unbiased=False, keepdim=True)
        normalised = ((hidden - mean) / (variance + model[1].eps).sqrt()).relu().flatten(1)
        seen = model[5](normalised)  # no dropout: it stays in eval mode
    torch.testing.assert_close(model[6].running_mean, seen.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model[6].running_var, seen.var(0, unbiased=True), rtol=1e-4, atol=1e-5)


def test_weights_modes_momenta_and_gradients_are_as_before():
    model = make_model().train()
    model[6].eval()
    model[3].eval()
    modes = [module.training for module in model.modules()]
    weights = [parameter.clone() for parameter in model.parameters()]
    recalibrate_batchnorm(model, make_batches(2))
    assert [module.training for module in model.modules()] == modes
    assert (model[1].momentum, model[6].momentum) == (0.3, 0.1)
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(model.parameters(), weights, strict=True))


def test_dropout_draws_no_random_numbers():
    model = make_model().train()
    before = torch.get_rng_state()
    recalibrate_batchnorm(model, make_batches(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_of_pairs_and_a_forward_of_ones_own():
    direct, pairs, own = make_model(), make_model(), make_model()
    recalibrate_batchnorm(direct, make_batches(2))
    recalibrate_batchnorm(pairs, [(x, None) for x in make_batches(2)])
    recalibrate_batchnorm(own, [{"x": x} for x in make_batches(2)], forward=lambda model, batch: model(batch["x"]))
    assert equal(snapshot(direct), snapshot(pairs)) and equal(snapshot(direct), snapshot(own))


def test_a_failing_forward_leaves_modes_and_momenta_as_they_were():
    model = make_model().train()
    model[3].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(ValueError, match="masked_conv2d: x"):
        recalibrate_batchnorm(model, [*make_batches(1), torch.zeros(1, 7)])
    assert [module.training for module in model.modules()] == modes
    assert (model[1].momentum, model[6].momentum) == (0.3, 0.1)


def test_without_batchnorm_nothing_is_drawn():
    model = nn.Linear(3, 3)
    batches = iter([torch.zeros(1, 3)])
    assert recalibrate_batchnorm(model, batches) == 0 and len(list(batches)) == 1
    assert recalibrate_batchnorm(nn.BatchNorm1d(3, track_running_stats=False), batches) == 0


def test_without_batches_the_statistics_stay():
    model = make_model().train()
    before = snapshot(model)
    with pytest.raises(ValueError, match="recalibrate_batchnorm: batches: expected at least one batch, got none"):
        recalibrate_batchnorm(model, [])
    assert equal(snapshot(model), before) and model.training and model[1].momentum == 0.3


def test_frozen_passes_equal_train_mode_and_move_nothing():
    model = make_model().train()
    model[3].p = 0.0
    (batch,) = make_batches(1)
    before = snapshot(model)
    with frozen_batchnorm(model):
        frozen = model(batch)
        frozen_gradients = torch.autograd.grad(frozen.square().sum(), list(model.parameters()))
    assert equal(snapshot(model), before)
    assert model[1].track_running_stats and model[6].track_running_stats
    trained = model(batch)
    gradients = torch.autograd.grad(trained.square().sum(), list(model.parameters()))
    assert torch.equal(frozen, trained)
    assert all(torch.equal(a, b) for a, b in zip(frozen_gradients, gradients, strict=True))
    after = snapshot(model)
    assert not torch.equal(after["1.running_mean"], before["1.running_mean"])
    assert int(after["1.num_batches_tracked"]) == int(before["1.num_batches_tracked"]) + 1


def test_frozen_leaves_layers_in_eval_mode_on_their_running_statistics():
    model = make_model().eval()
    (batch,) = make_batches(1)
    before, expected = snapshot(model), model(batch)
    with frozen_batchnorm(model):
        assert torch.equal(model(batch), expected)
    assert equal(snapshot(model), before)


def test_frozen_is_undone_after_an_exception():
    model = make_model().train()
    with pytest.raises(ValueError, match="masked_conv2d: x"), frozen_batchnorm(model):
        model(torch.zeros(1, 7))
    assert model[1].track_running_stats and model[6].track_running_stats
