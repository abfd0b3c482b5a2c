# SPDX-License-Identifier: Apache-2.0
"""Derived weights are never stale: whatever changes theta or the mask, the next forward pass shows it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import _global_optimizer_post_hooks

import sparsekit as sk
from sparsekit import ops

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(2))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))


def expected(model: nn.Module) -> Tensor:
    """The forward pass written out on what theta and the words hold now."""
    conv, fc = (torch.where(m.mask.dense(), m.weight, 0).detach() for m in (model.conv, model.fc))
    return F.linear(F.conv2d(X, conv, model.conv.bias).relu().mean((2, 3)), fc, model.fc.bias)


def random_masks(model: nn.Module) -> dict[str, sk.Mask]:
    return {n: sk.Mask.from_dense(torch.rand(m.shape) < 0.5) for n, m in sk.masks(model).items()}


def stepping(**options) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, **options)
        model(X).square().sum().backward()
        optimizer.step()

    return change


def in_place(model: nn.Module) -> None:
    with torch.no_grad():
        model.conv.weight.mul_(-2)
        model.fc.weight[0] = 7


def through_data(model: nn.Module) -> None:
    model.conv.weight.data.mul_(-2)
    model.fc.weight.data = torch.randn(5, 4)


def through_numpy(model: nn.Module) -> None:
    model.conv.weight.detach().numpy()[:] *= -2


def surgery(model: nn.Module) -> None:
    model.fc.weight = nn.Parameter(torch.randn(5, 4))


def load(model: nn.Module) -> None:
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state["fc.weight"] += 1
    state["conv.mask_words"] = random_masks(model)["conv"].words
    model.load_state_dict(state)


def assign(model: nn.Module) -> None:
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state["fc.weight"] += 1
    state["conv.mask_words"] = random_masks(model)["conv"].words
    model.load_state_dict(state, assign=True)


def set_masks(model: nn.Module) -> None:
    sk.set_masks(model, random_masks(model))


def set_mask(model: nn.Module) -> None:
    model.conv.mask, model.fc.mask = random_masks(model).values()


def write_words(model: nn.Module) -> None:
    model.conv.mask_words.copy_(random_masks(model)["conv"].words)
    model.fc.mask_words.data.zero_()


def layout(model: nn.Module) -> None:
    model.to(memory_format=torch.channels_last)
    model.conv.weight.data.mul_(-2)


def vector_to_parameters(model: nn.Module) -> None:
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(-2 * vector, model.parameters())


def reset(model: nn.Module) -> None:
    model.conv.reset_parameters()
    model.fc.reset_parameters()


CHANGES = {
    "in place": in_place,
    ".data": through_data,
    "numpy": through_numpy,
    "a new Parameter": surgery,
    "load_state_dict": load,
    "load_state_dict(assign)": assign,
    "set_masks": set_masks,
    "layer.mask": set_mask,
    "the words themselves": write_words,
    "memory format": layout,
    "vector_to_parameters": vector_to_parameters,
    "reset_parameters": reset,
    "plain step": stepping(foreach=False),
    "foreach step": stepping(foreach=True),
    "fused step": stepping(fused=True),
}


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", CHANGES)
def test_the_next_forward_sees_the_change(name: str, training: bool, grad: bool) -> None:
    model = Net().train(training)
    sk.sparsify(model)
    sk.set_masks(model, random_masks(model))
    with torch.set_grad_enabled(grad):
        before = model(X).detach().clone()
        torch.testing.assert_close(before, expected(model))
    CHANGES[name](model)
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            torch.testing.assert_close(model(X), expected(model))
        assert not torch.allclose(model(X), before)


def test_backward_uses_the_weights_of_its_own_forward() -> None:
    model = Net()
    sk.sparsify(model)
    y = model(X).sum()
    with torch.no_grad():
        model.conv.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_moving_between_modes_keeps_the_output() -> None:
    model = Net()
    sk.sparsify(model)
    sk.set_masks(model, random_masks(model))
    outputs = [model.train(mode)(X) for mode in (True, False, True, False)]
    assert all(torch.equal(y, outputs[0]) for y in outputs)


UNSEEN = (".data", "numpy", "the words themselves", "memory format")


@pytest.mark.parametrize("name", [name for name in CHANGES if name not in UNSEEN])
def test_cached_weights_see_what_pytorch_counts(name: str) -> None:
    model = Net().eval()
    sk.sparsify(model)
    sk.set_masks(model, random_masks(model))
    with sk.cached_weights(model):
        for _ in range(2):
            with torch.no_grad():
                before = model(X)
                torch.testing.assert_close(before, expected(model))
            CHANGES[name](model)
            with torch.no_grad():
                for _ in range(2):
                    torch.testing.assert_close(model(X), expected(model))
                assert not torch.allclose(model(X), before)


def test_cached_weights_are_formed_once_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, formed = Net(), []
    sk.sparsify(model)
    real = ops.mask_weight
    monkeypatch.setattr(ops, "mask_weight", lambda *a: formed.append(a) or real(*a))
    with torch.no_grad(), sk.cached_weights(model):
        first = [model(X) for _ in range(3)]
        assert len(formed) == 2
        with sk.cached_weights(model):
            model(X)
            assert len(formed) == 4
        with torch.autocast("cpu", torch.bfloat16):
            y = [model(X) for _ in range(2)]
            assert len(formed) == 6 and y[0].dtype == torch.bfloat16
        model(X)
    assert len(formed) == 8 and all(torch.equal(y, first[0]) for y in first)
    assert model.conv._cache is None and not _global_optimizer_post_hooks
    through_data(model)
    with torch.no_grad():
        torch.testing.assert_close(model(X), expected(model))


def test_a_cache_serves_no_gradients_no_recorded_programs_and_no_odd_tensors() -> None:
    model = Net().eval()
    sk.sparsify(model)
    sk.set_masks(model, random_masks(model))
    with sk.cached_weights(model):
        model(X).sum().backward()
        assert model.conv.weight.grad is not None
        with torch.no_grad():
            model(X)
            exported = torch.export.export(model, (X,))
            compiled = torch.compile(model, backend="eager", fullgraph=True)
            compiled(X)
        in_place(model)
        with torch.no_grad():
            torch.testing.assert_close(exported.module()(X), expected(model))
            torch.testing.assert_close(compiled(X), expected(model))
            single = model.conv(X[0])
            torch.testing.assert_close(single, model.conv(X)[0])
        with torch.inference_mode():
            torch.testing.assert_close(model(X), expected(model))
        for wrong, error in ((torch.ones(2, 3), ValueError), (torch.ones(2, 4).double(), TypeError)):
            with torch.no_grad(), pytest.raises(error, match="masked_linear: x"):
                model.fc(wrong)
        with torch.no_grad(), pytest.raises(ValueError, match="masked_conv2d: x"):
            model.conv(torch.ones(2, 2, 6, 6))


def test_copies_and_states_know_nothing_of_a_cache() -> None:
    model = Net()
    sk.sparsify(model)
    keys = list(model.state_dict())
    with torch.no_grad(), sk.cached_weights(model):
        model(X)
        assert list(model.state_dict()) == keys
        twin = copy.deepcopy(model)
        assert twin.conv._cache is None and pickle.loads(pickle.dumps(model)).fc._cache is None
        through_data(twin)
        torch.testing.assert_close(twin(X), expected(twin))
        with pytest.raises(RuntimeError), sk.cached_weights(model):
            raise RuntimeError
        sk.finalize(model)
    torch.testing.assert_close(model(X), model(X))
    for wrong, error in ((nn.Linear(2, 2), ValueError), (3, TypeError)):
        with pytest.raises(error, match="cached_weights: model: expected"), sk.cached_weights(wrong):  # type: ignore
            pass


def test_cached_weights_see_tensors_at_the_address_of_earlier_ones() -> None:
    model = Net()
    sk.sparsify(model)
    with torch.no_grad(), sk.cached_weights(model):
        for _ in range(10):
            model(X)
            # The second one often lies where the first one was, and has the same version.
            for _ in range(2):
                model.conv.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
            torch.testing.assert_close(model(X), expected(model))
