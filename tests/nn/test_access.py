# SPDX-License-Identifier: Apache-2.0
"""Reading and setting masks, looking through them, and the summary."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import sparsekit as sk


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


X = torch.randn(2, 1, 6, 6)


@pytest.fixture
def model() -> nn.Module:
    net = Small().eval()
    sk.sparsify(net)
    sk.set_masks(net, {name: sk.Mask.from_dense(torch.rand(m.shape) < 0.5) for name, m in sk.masks(net).items()})
    return net


def test_masks_is_a_snapshot(model: nn.Module) -> None:
    before = sk.masks(model)
    kept = before.count()
    model.fc.mask = sk.Mask.full((3, 4))
    assert before.count() == kept != sk.masks(model).count()
    assert list(before) == ["conv", "fc"]


def test_the_mask_of_a_layer_is_a_snapshot_and_settable(model: nn.Module) -> None:
    mask, words = model.fc.mask, model.fc.mask_words
    model.fc.mask = ~mask
    assert model.fc.mask == ~mask != mask
    assert model.fc.mask_words is words
    with pytest.raises(ValueError, match=r"mask: expected shape \(3, 4\), got \(4, 3\)"):
        model.fc.mask = sk.Mask.full((4, 3))


def test_set_masks_is_in_place_and_partial(model: nn.Module) -> None:
    words, conv = model.fc.mask_words, model.conv.mask
    sk.set_masks(model, {"fc": sk.Mask.full((3, 4))})
    assert model.fc.mask_words is words and model.fc.mask.sparsity == 0 and model.conv.mask == conv
    given = sk.Mask.from_dense(torch.eye(3, 4, dtype=torch.bool))
    sk.set_masks(model, {"fc": given})
    given.words.zero_()
    assert model.fc.mask.count() == 3


def test_set_masks_is_all_or_nothing(model: nn.Module) -> None:
    before = sk.masks(model)
    good = sk.Mask.full((4, 1, 3, 3))
    with pytest.raises(ValueError) as caught:
        sk.set_masks(model, {"conv": good, "fc": sk.Mask.full((4, 3))})
    assert str(caught.value) == "set_masks: masks['fc']: expected shape (3, 4), got (4, 3)"
    with pytest.raises(ValueError) as caught:
        sk.set_masks(model, {"conv": good, "norm": good})
    assert str(caught.value) == "set_masks: masks: expected names of masked layers, got 'norm'; known: conv, fc"
    assert sk.masks(model) == before


def test_masked_weight(model: nn.Module) -> None:
    z = model.fc.masked_weight()
    assert torch.equal(z, torch.where(model.fc.mask.dense(), model.fc.weight, 0)) and not z.requires_grad


def test_dense_gradient_is_restored_even_after_an_error(model: nn.Module) -> None:
    model.fc.dense_grad = True
    with pytest.raises(KeyError), sk.dense_gradient(model):
        assert model.conv.dense_grad and model.fc.dense_grad
        raise KeyError
    assert not model.conv.dense_grad and model.fc.dense_grad


def test_dense_gradient_belongs_to_the_forward_pass(model: nn.Module) -> None:
    with sk.dense_gradient(model):
        y = model(X)
    y.sum().backward()
    dense = model.fc.weight.grad
    assert dense[~model.fc.mask.dense()].any()
    model.zero_grad()
    y = model(X)
    with sk.dense_gradient(model):
        y.sum().backward()
    assert torch.equal(model.fc.weight.grad, torch.where(model.fc.mask.dense(), dense, 0))


def test_effective_weights(model: nn.Module) -> None:
    y = model(X)
    z = {name: layer.weight.detach().clone() for name, layer in sk.masked_layers(model).items()}
    plain = Small().eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "mask_words" not in k})
    with sk.effective_weights(model, z):
        torch.testing.assert_close(model(X), plain(X))
        with sk.effective_weights(model, {"fc": torch.zeros(3, 4)}):
            torch.testing.assert_close(model(X), model.fc.bias.expand(2, 3))
        torch.testing.assert_close(model(X), plain(X))
    assert torch.equal(model(X), y)


def test_effective_weights_of_any_order(model: nn.Module) -> None:
    z = {name: layer.masked_weight().requires_grad_() for name, layer in sk.masked_layers(model).items()}
    with sk.effective_weights(model, z):
        (g,) = torch.autograd.grad(model(X).square().sum(), z["fc"], create_graph=True)
        g.square().sum().backward()
    assert z["fc"].grad.any() and z["conv"].grad.any() and model.fc.weight.grad is None


def test_effective_weights_may_be_parameters_and_leave_no_trace(model: nn.Module) -> None:
    keys = list(model.state_dict())
    with sk.effective_weights(model, {"fc": nn.Parameter(torch.zeros(3, 4))}):
        model(X)
        assert list(model.state_dict()) == keys and len(list(model.parameters())) == 6
    with pytest.raises(KeyError), sk.effective_weights(model, {"fc": torch.zeros(3, 4)}):
        raise KeyError
    assert model(X).ne(model.fc.bias).any()


def test_effective_weights_errors(model: nn.Module) -> None:
    with pytest.raises(ValueError) as caught, sk.effective_weights(model, {"fc": torch.zeros(4, 3)}):
        pass
    assert str(caught.value) == "effective_weights: z: expected shape (3, 4), got (4, 3)"
    with pytest.raises(ValueError) as caught, sk.effective_weights(model, {"head": torch.zeros(3, 4)}):
        pass
    assert str(caught.value) == "effective_weights: z: expected names of masked layers, got 'head'; known: conv, fc"


def test_tied_layers_share_the_effective_weight() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    sk.sparsify(model)
    with sk.effective_weights(model, {"0": 2 * torch.eye(3)}):
        assert torch.equal(model(torch.ones(1, 3)), torch.full((1, 3), 4.0))


def test_dense_state_dict(model: nn.Module) -> None:
    state = sk.dense_state_dict(model)
    plain = Small()
    assert list(state) == list(plain.state_dict())
    assert not any(v.requires_grad for v in state.values())
    assert state["fc.weight"].data_ptr() != model.fc.weight.data_ptr()
    plain.load_state_dict(state)
    torch.testing.assert_close(plain.eval()(X), model(X))


def test_summary(model: nn.Module) -> None:
    text = sk.summary(model)
    kept = sk.masks(model).count()
    assert text.splitlines()[-2].split()[:3] == ["total", str(kept), "48"]
    free = sum(p.numel() for p in model.parameters()) - 48
    total = free + 48
    assert text.splitlines()[-1] == (
        f"not masked: {free:,} parameters; sparsity over all {total:,} parameters: {1 - (free + kept) / total:.2%}"
    )


def test_models_without_masked_layers() -> None:
    plain = Small()
    assert sk.masked_layers(plain) == {} and len(sk.masks(plain)) == 0
    assert list(sk.dense_state_dict(plain)) == list(plain.state_dict())
    sk.set_masks(plain, {})
    with sk.dense_gradient(plain), sk.effective_weights(plain, {}):
        plain(X)
