# SPDX-License-Identifier: Apache-2.0
"""What trainers do to whole modules: moving, emptying, averaging, recomputing, scaling, and weights that are tied."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from random_masks import remask_
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import sparsekit as sk


def build() -> nn.Module:
    model = nn.Sequential(nn.Linear(40, 33), nn.BatchNorm1d(33), nn.ReLU(), nn.Dropout(0.5), nn.Linear(33, 3))
    sk.sparsify(model)
    remask_(model, 0)
    return model


X = torch.randn(6, 40, generator=torch.Generator().manual_seed(2))


class TestConversion:
    def test_to_empty_keeps_the_masks(self) -> None:
        model = build()
        masks, state = sk.masks(model), copy.deepcopy(model.state_dict())
        for layer in sk.masked_layers(model).values():  # what the allocator may hand out
            assert layer.mask_words.abs().sum() > 0
        model._apply(lambda t: torch.full_like(t, -1 if t.dtype == torch.int32 else 0))
        assert sk.masks(model) == masks
        model.to_empty(device="cpu")
        assert sk.masks(model) == masks
        model.load_state_dict(state)
        assert sk.masks(model) == masks and torch.equal(model[0].weight, state["0.weight"])

    def test_from_meta_they_are_full(self) -> None:
        with torch.device("meta"):
            model = nn.Sequential(nn.Linear(40, 33), nn.Linear(33, 3))
        sk.sparsify(model)
        assert model[0].mask_words.is_meta
        model.to_empty(device="cpu")
        assert all(mask == sk.Mask.full(mask.shape) for mask in sk.masks(model).values())
        state = {k: v for k, v in build().state_dict().items() if k.startswith("0.")}
        model[0].load_state_dict({k[2:]: v for k, v in state.items()})
        assert torch.equal(model[0].mask_words, state["0.mask_words"])

    @pytest.mark.parametrize("convert", [nn.Module.type, nn.Module.to])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
    def test_types(self, convert, dtype: torch.dtype) -> None:
        model = build()
        masks = sk.masks(model)
        convert(model, dtype)
        assert model[0].mask_words.dtype == torch.int32 and sk.masks(model) == masks
        assert model.eval()(X.to(dtype)).dtype == dtype

    def test_shared_memory_is_that_of_the_words(self) -> None:
        model = build()
        words = model[0].mask_words
        assert model.share_memory()[0].mask_words is words and words.is_shared()


class TestAverages:
    @pytest.mark.parametrize("use_buffers", [True, False])
    @pytest.mark.parametrize(
        "average",
        [{"multi_avg_fn": get_ema_multi_avg_fn(0.9)}, {"avg_fn": get_ema_avg_fn(0.9)}, {}],
        ids=["multi", "single", "swa"],
    )
    def test_masks_are_the_latest_and_weights_the_average(self, use_buffers: bool, average: dict) -> None:
        model = build()
        ema = AveragedModel(model, use_buffers=use_buffers, **average)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        weights: list[Tensor] = []
        for seed in range(3):
            model(X).square().sum().backward()
            optimizer.step()
            remask_(model, seed)
            ema.update_parameters(model)
            assert list(sk.masks(ema).values()) == list(sk.masks(model).values())
            weights.append(model[0].weight.detach().clone())
        expected = sum(weights) / 3
        if average:
            expected = 0.9 * (0.9 * weights[0] + 0.1 * weights[1]) + 0.1 * weights[2]
        torch.testing.assert_close(ema.module[0].weight.detach(), expected)
        assert isinstance(ema, AveragedModel) and ema.use_buffers == use_buffers
        y = ema.eval()(X)
        twin = pickle.loads(pickle.dumps(copy.deepcopy(AveragedModel(model, use_buffers=use_buffers))))
        twin.update_parameters(model)
        assert list(sk.masks(twin).values()) == list(sk.masks(model).values())
        torch.testing.assert_close(sk.finalize(ema)(X), y)

    def test_a_model_that_was_finalized_meanwhile_is_refused(self) -> None:
        model = build()
        ema = AveragedModel(model, use_buffers=True)
        before = copy.deepcopy(ema.state_dict())
        with pytest.raises(ValueError, match="update_parameters: model: expected the 2 masked layers .*, got 0"):
            ema.update_parameters(sk.finalize(model))
        assert all(torch.equal(v, before[k]) for k, v in ema.state_dict().items())

    def test_plain_models_are_left_to_torch(self) -> None:
        assert type(AveragedModel(nn.Linear(2, 2))) is AveragedModel


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh())


MASK = sk.Mask.from_dense(torch.tensor([[True, False, True], [False, True, True], [True, False, False]]))


class TestTies:
    @pytest.mark.parametrize("which", ["a", "b"])
    @pytest.mark.parametrize("copied", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_one_mask_for_both(self, which: str, copied) -> None:
        model = Tied()
        sk.sparsify(model)
        model = copied(model).double()
        model.get_submodule(which).mask = MASK
        assert model.a.mask == model.b.mask == MASK
        x = torch.randn(2, 3, dtype=torch.float64)
        y = model(x)
        torch.testing.assert_close(sk.finalize(model)(x), y)
        assert "_twins" not in vars(model.a) and model.a.weight is model.b.weight

    def test_a_layer_that_joins_later_takes_the_mask(self) -> None:
        a, b = nn.Linear(3, 3), nn.Linear(3, 3)
        b.weight = a.weight
        sk.sparsify(a)
        a.mask = MASK
        model = nn.Sequential(b, a)
        sk.sparsify(model)
        assert model[0].mask == model[1].mask == MASK

    def test_an_untied_layer_keeps_its_own(self) -> None:
        model = Tied()
        sk.sparsify(model)
        model.b.weight = nn.Parameter(torch.randn(3, 3))
        model.a.mask = MASK
        assert model.b.mask == sk.Mask.full((3, 3))

    @pytest.mark.parametrize("function", [sk.finalize, sk.dense_state_dict])
    def test_two_masks_for_one_weight_are_refused(self, function) -> None:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        sk.sparsify(model)
        model[1].weight = model[0].weight  # tied after the fact: nobody tells the layers
        model[0].mask = MASK
        expected = f"{function.__name__}: model: expected one mask for the tied '0' and '1', got two; see set_masks"
        with pytest.raises(ValueError, match=expected):
            function(model)
        sk.set_masks(model, {"0": MASK})
        function(model)


class TestTraining:
    @pytest.mark.parametrize("reentrant", [True, False])
    def test_checkpointing_gives_the_same_gradients(self, reentrant: bool) -> None:
        model, x = build(), X.clone().requires_grad_()
        twin = copy.deepcopy(model)
        for net, forward in ((model, partial(checkpoint, model, use_reentrant=reentrant)), (twin, twin)):
            torch.manual_seed(4)
            x.grad = None
            forward(x).square().sum().backward()
            net.seen = x.grad.clone()
        assert torch.equal(model.seen, twin.seen)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)

    def test_accumulated_gradients_are_those_of_the_whole_batch(self) -> None:
        model = nn.Sequential(nn.Linear(40, 33), nn.Tanh(), nn.Linear(33, 3))
        sk.sparsify(model)
        remask_(model, 1)
        model(X).square().sum().backward()
        whole = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        for part in X.split(2):
            model(part).square().sum().backward()
        for p, gradient in zip(model.parameters(), whole, strict=True):
            torch.testing.assert_close(p.grad, gradient)

    @pytest.mark.parametrize("overflow", [False, True])
    def test_grad_scaler(self, overflow: bool) -> None:
        model = build()
        plain = copy.deepcopy(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40 if overflow else 2.0**8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        pruned = {n: ~m.dense() for n, m in sk.masks(model).items()}
        with torch.no_grad():
            for n, zero in pruned.items():
                model.get_submodule(n).weight[zero] = torch.inf  # must not look like an overflow
        before = copy.deepcopy(model.state_dict())
        with torch.autocast("cpu", torch.float16):
            loss = model(X).float().square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        assert not any(model.get_submodule(n).weight.grad[zero].any() for n, zero in pruned.items())
        scaler.step(optimizer)
        scaler.update()
        assert (scaler.get_scale() < 2.0**40) if overflow else (scaler.get_scale() == 2.0**8)
        moved = not torch.equal(model[0].weight, before["0.weight"])
        assert moved is not overflow
        assert sk.masks(model) == sk.masks(plain)


RECURRENT = [
    lambda: nn.LSTM(4, 4, 2, bidirectional=True),
    lambda: nn.GRU(4, 4),
    lambda: nn.RNN(4, 4),
    lambda: nn.LSTMCell(4, 4),
    lambda: nn.ConvTranspose1d(4, 4, 3),
    lambda: nn.ConvTranspose2d(4, 4, 3),
    lambda: nn.ConvTranspose3d(4, 4, 3),
    lambda: nn.Embedding(5, 4),
    lambda: nn.EmbeddingBag(5, 4),
    lambda: nn.Bilinear(4, 4, 4),
    lambda: nn.MultiheadAttention(4, 2),
    lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
    lambda: nn.TransformerDecoderLayer(4, 2, 8),
]


@pytest.mark.parametrize("make", RECURRENT, ids=lambda make: type(make()).__name__)
def test_what_has_no_masked_form_is_named_by_report_and_summary(make) -> None:
    model = nn.ModuleDict({"fc": nn.Linear(4, 4), "other": make()})
    report = sk.sparsify(model)
    weighted = [name for name, m in model.named_modules() if any(p.ndim >= 2 for p in m.parameters(recurse=False))]
    assert sorted([*report.masked, *report.skipped]) == sorted(weighted)
    text = sk.summary(model)
    for name in weighted:
        assert isinstance(model.get_submodule(name), sk.MaskedLayer) == (name in report.masked)
        assert (f"not masked {name}: " in text) == (name in report.skipped)
    assert any(name.startswith("other") for name in report.skipped)


def test_summary_names_what_was_left_out() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    assert "  not masked 0: left out, it could be masked" in sk.summary(model).splitlines()
    sk.sparsify(model, skip=["1"])
    assert sk.summary(model).splitlines()[-1] == "  not masked 1: left out, it could be masked"
