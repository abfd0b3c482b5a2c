# SPDX-License-Identifier: Apache-2.0
"""Masked weights formed for the whole model at once: the same numbers, gradients and refusals as layer by layer."""

from __future__ import annotations

import copy
import pickle
from contextlib import ExitStack, nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sparsekit as sk
from sparsekit.nn import prepared


class Net(nn.Module):
    """A convolution in groups, one with channels_last weights, one used twice, and a linear layer."""

    def __init__(self, checkpointed: bool | None = None) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.Conv2d(6, 6, 3, padding=1)
        self.one, self.fc = nn.Conv1d(6, 5, 2), nn.Linear(5, 3)
        self.b.to(memory_format=torch.channels_last)
        self.checkpointed = checkpointed

    def middle(self, x: Tensor) -> Tensor:
        return self.b(self.b(x).relu())

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        again = self.checkpointed is not None
        x = checkpoint(self.middle, x, use_reentrant=self.checkpointed) if again else self.middle(x)
        x = checkpoint(self.middle, x, use_reentrant=self.checkpointed) if again else self.middle(x)
        return self.fc(self.one(x.mean(2)).mean(2))


def build(checkpointed: bool | None = None) -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    model, x = Net(checkpointed), torch.randn(3, 4, 6, 6)
    sk.sparsify(model)
    sk.set_masks(model, {n: sk.Mask.from_dense(torch.rand(m.shape) < 0.5) for n, m in sk.masks(model).items()})
    with torch.no_grad():
        for layer in sk.masked_layers(model).values():
            layer.weight.masked_fill_(~layer.mask.dense(), torch.nan)
    return model, x


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in model.named_parameters()}


def passes(model: nn.Module, x: Tensor, at_once: bool) -> tuple[Tensor, dict[str, Tensor | None]]:
    model.zero_grad()
    if at_once:
        with sk.prepared_weights(model):
            y = model(x)
            y.square().sum().backward()
    else:
        y = model(x)
        y.square().sum().backward()
    return y.detach(), gradients(model)


def equal(a: dict[str, Tensor | None], b: dict[str, Tensor | None]) -> bool:
    return all((x is None) == (b[n] is None) and (x is None or torch.equal(x, b[n])) for n, x in a.items())


@pytest.mark.parametrize("checkpointed", [None, True, False], ids=["stored", "re-entrant", "not re-entrant"])
def test_bits_are_those_of_the_layers(checkpointed):
    model, x = build(checkpointed)
    x.requires_grad_()
    expected, theirs = passes(model, x, False)
    found, ours = passes(model, x, True)
    assert torch.equal(found, expected) and equal(ours, theirs)
    assert all(g is not None and g.isfinite().all() for g in ours.values())


def test_it_is_one_node_that_forms_and_masks(monkeypatch):
    model, x = build()
    calls = []
    own = prepared._masked

    def noting(tensors, words, dtypes):
        calls.append(len(tensors))
        return own(tensors, words, dtypes)

    monkeypatch.setattr(prepared, "_masked", noting)
    passes(model, x, True)
    assert calls == [3, 3]


def test_dense_gradients_come_unmasked():
    model, x = build()
    with torch.no_grad():
        for layer in sk.masked_layers(model).values():
            layer.weight.nan_to_num_(1.0)

    def once(at_once: bool) -> dict[str, Tensor | None]:
        with sk.dense_gradient(model):
            return passes(model, x, at_once)[1]

    ours, theirs = once(True), once(False)
    assert equal(ours, theirs)
    pruned = ~model.b.mask.dense()
    assert ours["b.weight"][pruned].abs().sum() > 0


def test_autocast_forms_the_weight_in_its_dtype_and_gives_gradients_in_the_weights():
    model, x = build()
    with torch.autocast("cpu", torch.bfloat16):
        expected, theirs = passes(model, x, False)
        found, ours = passes(model, x, True)
    assert torch.equal(found, expected)
    # As with PyTorch's own autocast, the uses of one weight are added up in bfloat16.
    shared, sum_of_casts = ours.pop("b.weight"), theirs.pop("b.weight")
    torch.testing.assert_close(shared, sum_of_casts, rtol=0.05, atol=0.02)
    assert torch.equal(ours["a.weight"] == 0, theirs["a.weight"] == 0)
    assert all(g.dtype == torch.float32 for g in [shared, *ours.values()])


def test_autocast_gives_the_bits_of_the_layers_where_weights_are_used_once():
    model, x = build()
    once = nn.Sequential(model.a, model.b)
    with torch.autocast("cpu", torch.bfloat16):
        expected, theirs = passes(once, x, False)
        found, ours = passes(once, x, True)
    assert torch.equal(found, expected) and equal(ours, theirs)


@pytest.mark.parametrize("where", ["around the passes", "inside the forward pass", "in one layer"])
def test_an_autocast_that_begins_inside_decides(where, monkeypatch):
    model, x = build()
    formed = []
    own = prepared._masked
    monkeypatch.setattr(prepared, "_masked", lambda t, w, dtypes: formed.append(set(dtypes)) or own(t, w, dtypes))

    def cast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)

    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            with cast() if where == "inside the forward pass" else nullcontext():
                first = self.model.a(x)
            with cast() if where != "around the passes" else nullcontext():
                return self.model.b(first)

    outer = cast() if where == "around the passes" else nullcontext()
    with outer:
        expected, theirs = passes(Cast(), x, False)
    with sk.prepared_weights(model), outer:
        found, ours = passes(Cast(), x, False)
    assert torch.equal(found, expected) and equal(ours, theirs)
    # With layers of two kinds the first one decides, and the ops serve the others.
    assert formed[0] == {torch.float32 if where == "in one layer" else torch.bfloat16}


def test_tied_weights_and_frozen_ones():
    model, x = build()
    model.a.weight.requires_grad_(False)
    twin = copy.deepcopy(model.b)
    twin.weight = model.b.weight
    twin.mask_words.copy_(model.b.mask_words)
    both = nn.Sequential(model.a, model.b, twin)
    expected, theirs = passes(both, x, False)
    found, ours = passes(both, x, True)
    assert torch.equal(found, expected) and equal(ours, theirs) and ours["0.weight"] is None
    with sk.prepared_weights(both):
        model.a.bias.requires_grad_(False)
        assert not both[0](x).requires_grad and both[1](both[0](x)).requires_grad


def test_unused_layers_have_no_gradient():
    model, x = build()
    model.zero_grad()
    with sk.prepared_weights(model):
        model.a(x).sum().backward()
    assert model.b.weight.grad is None and model.a.weight.grad is not None


def test_masks_that_change_before_the_backward_pass_are_noticed():
    model, x = build()
    with sk.prepared_weights(model):
        loss = model.a(x).sum()
    sk.set_masks(model, {n: sk.Mask.full(m.shape) for n, m in sk.masks(model).items()})
    with pytest.raises(RuntimeError, match="prepared_weights: expected the masks of the forward pass"):
        loss.backward()


def test_a_second_derivative_is_refused():
    model, x = build()
    with sk.prepared_weights(model):
        (g,) = torch.autograd.grad(model(x).square().sum(), [model.b.weight], create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            g.nan_to_num().sum().backward()


def test_nothing_stays_and_copies_know_nothing_of_it():
    model, x = build()
    with sk.prepared_weights(model):
        model(x)
        copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        assert model.b._prepared is not None
    for m in (model, copied, pickled):
        assert all(layer._prepared is None for layer in sk.masked_layers(m).values())
        assert torch.equal(m(x), model(x))
    with pytest.raises(ZeroDivisionError), sk.prepared_weights(model):
        1 / 0  # noqa: B018
    assert model.b._prepared is None


def test_models_without_a_use_for_it_are_left_alone():
    with sk.prepared_weights(nn.Linear(2, 2)):
        pass
    model, x = build()
    with torch.no_grad(), sk.prepared_weights(model):
        assert torch.equal(model(x), model(x)) and not model(x).requires_grad
    with pytest.raises(TypeError, match="prepared_weights: model: expected a torch.nn.Module, got int"):
        sk.prepared_weights(3).__enter__()


def test_compiled_models_form_their_own_weights():
    model, x = build()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    expected = model(x)
    with sk.prepared_weights(model):
        assert torch.equal(compiled(x), expected)


def test_bad_inputs_are_refused_as_always():
    model, _ = build()
    with sk.prepared_weights(model), pytest.raises(ValueError, match="masked_conv2d: x: expected 6 input channels"):
        model.b(torch.randn(1, 5, 6, 6))


def step(model: Net) -> None:
    with torch.no_grad():
        model.b.weight.mul_(2)


def replacement(model: Net) -> None:
    model.b.weight = nn.Parameter(model.b.weight.detach() * 2)


def new_mask(model: Net) -> None:
    model.b.weight.data.nan_to_num_(1.0)
    model.b.mask = sk.Mask.full(model.b.weight.shape)


def new_words(model: Net) -> None:
    model.b.weight.data.nan_to_num_(1.0)
    model.b.mask_words = sk.Mask.full(model.b.weight.shape).words


def dense(model: Net) -> None:
    model.b.dense_grad = True


def frozen(model: Net) -> None:
    model.b.weight.requires_grad_(False)


@pytest.mark.parametrize("change", [step, replacement, new_mask, new_words, dense, frozen])
@pytest.mark.parametrize("graph", [True, False])
def test_changes_inside_are_seen(change, graph):
    (model, x), (other, _) = build(), build()
    change(other)
    with torch.set_grad_enabled(graph), sk.prepared_weights(model):
        model(x)
        change(model)
        with torch.enable_grad():
            found, ours = passes(model, x, False)
    expected, theirs = passes(other, x, False)
    assert torch.equal(found, expected) and equal(ours, theirs) and ours["a.weight"] is not None


def test_functional_calls_and_transforms_inside():
    model, x = build()
    expected, own = model(x), {name: p.detach() for name, p in model.named_parameters()}
    doubled = {name: p * 2 for name, p in own.items()}
    twice = torch.func.functional_call(model, doubled, (x,))

    def loss(p: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, p, (x,)).square().sum()

    theirs = torch.func.grad(loss)(own)
    with sk.prepared_weights(model):
        assert equal(torch.func.grad(loss)(own), theirs)
        assert torch.equal(torch.func.functional_call(model, doubled, (x,)), twice)
        assert torch.equal(model(x), expected)


def test_contexts_that_end_in_another_order_leave_nothing_behind():
    model, x = build()
    first, second = ExitStack(), ExitStack()
    first.enter_context(sk.prepared_weights(model))
    model(x)
    second.enter_context(sk.prepared_weights(model))
    model(x)
    first.close()
    second.close()
    model.b.weight.data.mul_(2)
    found = model(x)
    copied = copy.deepcopy(model)
    assert copied.b._prepared is None and torch.equal(found, copied(x))
