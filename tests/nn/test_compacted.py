# SPDX-License-Identifier: Apache-2.0
"""Convolutions that compute only the filters left: the masked layer's numbers and gradients, and less work."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import sparsekit as sk
from sparsekit.nn import compacted


@pytest.fixture(autouse=True)
def every_layer_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compacted.LEAST_PRODUCTS, "cpu", 1)


def build(bias: bool = True, dead: int = 5, **options) -> tuple[nn.Module, Tensor]:
    """8 filters, of which the mask removes ``dead`` as a whole and half of the others' weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, bias=bias, **options))
    sk.sparsify(model)
    mask = torch.rand(model[0].weight.shape) < 0.5
    mask[torch.randperm(8)[:dead]] = False
    model[0].mask = sk.Mask.from_dense(mask)
    with torch.no_grad():
        model[0].weight.masked_fill_(~mask, torch.nan)
    return model, torch.randn(2, 4, 6, 7, requires_grad=True)


def expected(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    layer = model[0]
    z = torch.where(layer.mask.dense(), layer.weight, 0).detach().requires_grad_()
    y = F.conv2d(x, z, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    sources = [x, z] if layer.bias is None else [x, z, layer.bias]
    dx, dz, *rest = torch.autograd.grad(y.square().sum(), sources)
    return y.detach(), dx, torch.where(layer.mask.dense(), dz, 0), *rest


def found(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    with sk.compacted_filters(model):
        y = model(x)
        sources = [x, model[0].weight] + ([] if model[0].bias is None else [model[0].bias])
        return y.detach(), *torch.autograd.grad(y.square().sum(), sources)


def flops(model: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "dilation": 2}, {"padding_mode": "circular"}])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_numbers_and_gradients_are_those_of_the_masked_layer(bias, options, last):
    model, x = build(bias, **options)
    x = x.detach().to(memory_format=torch.channels_last if last else torch.contiguous_format).requires_grad_()
    if "padding_mode" in options:
        plain = model(x)
        torch.testing.assert_close(found(model, x)[0], plain.detach())
        return
    ours, theirs = found(model, x), expected(model, x)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    assert ours[0].stride() == theirs[0].stride()


def test_it_does_less_work():
    model, x = build()
    whole = flops(model, x)
    with sk.compacted_filters(model):
        assert flops(model, x) * 8 == whole * 3


def test_unbatched_images_and_half_precision():
    model, x = build()
    plain = model(x[0]).detach()
    with sk.compacted_filters(model):
        torch.testing.assert_close(model(x[0]).detach(), plain)
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.detach().float(), model(x).detach(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dead", [0, 1, 8])
def test_layers_that_would_not_gain_stay_as_they_are(dead):
    model, x = build(dead=dead)
    whole = flops(model, x)
    with sk.compacted_filters(model):
        assert flops(model, x) == whole
        torch.testing.assert_close(model(x).detach(), expected(model, x)[0])


def test_groups_and_small_sums_stay_as_they_are(monkeypatch):
    model, x = build(groups=2)
    with sk.compacted_filters(model):
        assert model[0]._filters is None
    monkeypatch.setitem(compacted.LEAST_PRODUCTS, "cpu", 37)
    model, x = build()
    with sk.compacted_filters(model):
        model(x)
        assert model[0]._filters.rows is None


def test_a_changed_mask_is_seen():
    model, x = build()
    mask = model[0].mask.dense().roll(1, 0)
    with sk.compacted_filters(model):
        model(x)
        with torch.no_grad():
            model[0].weight.nan_to_num_(1.0)
        model[0].mask = sk.Mask.from_dense(mask)
        torch.testing.assert_close(model(x).detach(), expected(model, x)[0])


def test_new_words_at_the_address_of_earlier_ones_are_seen():
    model, x = build()
    layer = model[0]
    with torch.no_grad(), sk.compacted_filters(model):
        layer.weight.nan_to_num_(1.0)
        full = layer.mask.dense()
        for shift in range(1, 20):
            model(x)
            plan = layer._filters
            assert plan.words.data_ptr() == layer.mask_words.data_ptr()
            layer.mask_words = layer.mask_words.clone()
            layer.mask_words = sk.Mask.from_dense(full.roll(shift, 0)).words
            assert plan.words.data_ptr() != layer.mask_words.data_ptr()
            torch.testing.assert_close(model(x), F.conv2d(x, layer.masked_weight(), layer.bias, padding=1))


def test_dense_gradients_and_stand_ins_are_served_as_always():
    model, x = build()
    with torch.no_grad():
        model[0].weight.nan_to_num_(1.0)
    with sk.compacted_filters(model):
        with sk.dense_gradient(model):
            (g,) = torch.autograd.grad(model(x).sum(), [model[0].weight])
        assert g[model[0].mask_words.eq(0).all(1)].abs().sum() > 0
        z = torch.ones_like(model[0].weight)
        with sk.effective_weights(model, {"0": z}):
            torch.testing.assert_close(model(x), F.conv2d(x, z, model[0].bias, padding=1))


def test_compiled_models_compute_everything():
    model, x = build()
    with sk.compacted_filters(model):
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x).detach(), expected(model, x)[0])


def test_nothing_stays_and_copies_know_nothing_of_it():
    model, x = build()
    with sk.compacted_filters(model):
        model(x)
        copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for m in (model, copied, pickled):
        assert m[0]._filters is None
    assert set(vars(sk.finalize(model)[0])) == set(vars(nn.Conv2d(4, 8, 3)))


def test_models_without_a_use_for_it_are_refused():
    with pytest.raises(ValueError, match="compacted_filters: model: expected masked Conv2d layers, got none"):
        sk.compacted_filters(nn.Linear(2, 2)).__enter__()
    with pytest.raises(TypeError, match="compacted_filters: model: expected a torch.nn.Module, got int"):
        sk.compacted_filters(3).__enter__()
