# SPDX-License-Identifier: Apache-2.0
"""sparsify and finalize: exact inverses; what is skipped is named with its reason."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import sparsekit as sk


def randomise_(model: nn.Module, density: float = 0.5) -> None:
    """Random masks, the same for the same model."""
    generator = torch.Generator().manual_seed(0)
    masks = {n: torch.rand(m.weight.shape, generator=generator) < density for n, m in sk.masked_layers(model).items()}
    sk.set_masks(model, {name: sk.Mask.from_dense(mask) for name, mask in masks.items()})


class Net(nn.Module):
    """One layer of every kind that can be masked."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv1d(2, 4, 3, padding="same")
        self.c2 = nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="reflect")
        self.c3 = nn.Conv3d(1, 2, 2, bias=False)
        self.norm = nn.BatchNorm3d(2)
        self.head = nn.Sequential(nn.Flatten(), nn.LazyLinear(3), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.c2(self.c1(x).reshape(-1, 4, 4, 4))
        return self.head(self.norm(self.c3(y.unsqueeze(1))))


X = torch.randn(2, 2, 16)


@pytest.fixture
def net() -> nn.Module:
    model = Net()
    model(X)  # gives the lazy layer its shape
    return model.eval()


def snapshot(model: nn.Module) -> dict:
    modules = dict(model.named_modules(remove_duplicate=False))
    return {
        "classes": {name: type(module) for name, module in modules.items()},
        "modules": {name: id(module) for name, module in modules.items()},
        "parameters": {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)},
        "keys": list(model.state_dict()),
        "training": {name: module.training for name, module in modules.items()},
        "attributes": {name: sorted(vars(module)) for name, module in modules.items()},
        "buffers": {name: list(module._buffers) for name, module in modules.items()},
        "repr": repr(model),
    }


def test_inverse(net: nn.Module) -> None:
    net.c1.train()
    net.c3.weight.requires_grad_(False)
    before, values = snapshot(net), {k: v.clone() for k, v in net.state_dict().items()}
    report = sk.sparsify(net)
    assert report.masked == ["c1", "c2", "c3", "head.1"] and report.skipped == {}
    between = snapshot(net)
    for same in ("modules", "parameters", "training"):
        assert between[same] == before[same]
    assert set(between["keys"]) - set(before["keys"]) == {f"{name}.mask_words" for name in report.masked}
    expected = [sk.MaskedConv1d, sk.MaskedConv2d, sk.MaskedConv3d, sk.MaskedLinear]
    assert [type(m) for m in sk.masked_layers(net).values()] == expected
    assert all(isinstance(net.get_submodule(n), before["classes"][n]) for n in report.masked)
    assert sk.finalize(net) is net
    assert snapshot(net) == before
    assert all(torch.equal(v, values[k]) for k, v in net.state_dict().items())


def test_full_masks_change_nothing(net: nn.Module) -> None:
    y = net(X)
    sk.sparsify(net)
    assert sk.masks(net).sparsity == 0
    torch.testing.assert_close(net(X), y)


def test_finalize_bakes_zeros(net: nn.Module) -> None:
    sk.sparsify(net)
    randomise_(net)
    masks, y = sk.masks(net), net(X)
    with torch.no_grad():
        net.c1.weight[~masks["c1"].dense()] = torch.nan
    sk.finalize(net)
    for name, mask in masks.items():
        weight = net.get_submodule(name).weight
        assert not weight[~mask.dense()].any() and weight[mask.dense()].all()
        assert weight.is_leaf and weight.requires_grad
    torch.testing.assert_close(net(X), y)


def test_twice_is_once(net: nn.Module) -> None:
    sk.sparsify(net)
    randomise_(net)
    masks = sk.masks(net)
    report = sk.sparsify(net)
    assert report.masked == ["c1", "c2", "c3", "head.1"] and sk.masks(net) == masks


def test_rules_do_not_unmask(net: nn.Module) -> None:
    sk.sparsify(net, only=["c1"])
    report = sk.sparsify(net, skip=["c1", "c2"])
    assert report.masked == ["c1", "c3", "head.1"] and report.skipped == {"c2": "skip=c2"}
    assert isinstance(net.c1, sk.MaskedConv1d)


def test_hooks_and_references_survive(net: nn.Module) -> None:
    calls: list[str] = []
    layer, weight = net.c1, net.c1.weight
    layer.register_forward_hook(lambda *_: calls.append("forward"))
    layer.register_forward_pre_hook(lambda *_: calls.append("pre"))
    weight.register_hook(lambda g: calls.append("grad"))
    layer.extra = "mine"
    sk.sparsify(net)
    net(X).sum().backward()
    assert calls == ["pre", "forward", "grad"]
    sk.finalize(net)
    net(X).sum().backward()
    assert calls == ["pre", "forward", "grad"] * 2
    assert net.c1 is layer and layer.weight is weight and layer.extra == "mine"


def test_optimizer_made_before_still_trains(net: nn.Module) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sk.sparsify(net)
    before = net.c1.weight.detach().clone()
    net(X).sum().backward()
    optimizer.step()
    assert not torch.equal(net.c1.weight, before)


def test_the_model_may_be_the_layer() -> None:
    layer = nn.Linear(5, 3)
    y = layer(torch.ones(2, 5))
    assert sk.sparsify(layer).masked == [""]
    assert list(layer.state_dict()) == ["weight", "bias", "mask_words"]
    assert list(sk.masks(layer)) == [""] and list(sk.dense_state_dict(layer)) == ["weight", "bias"]
    torch.testing.assert_close(layer(torch.ones(2, 5)), y)
    assert type(sk.finalize(layer)) is nn.Linear


def test_layers_may_be_built_masked() -> None:
    layer = sk.MaskedConv2d(4, 6, (3, 2), stride=2, padding=1, groups=2, bias=False, padding_mode="circular")
    assert layer.mask == sk.Mask.full((6, 2, 3, 2))
    assert type(sk.finalize(layer)) is nn.Conv2d
    assert sk.MaskedLinear(3, 4, bias=False, dtype=torch.bfloat16).weight.dtype == torch.bfloat16
    assert sk.MaskedConv1d(3, 4, 3, device="meta").mask_words.is_meta


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def test_shared_modules_are_converted_once() -> None:
    model = Shared()
    before = snapshot(model)
    assert sk.sparsify(model).masked == ["a"]
    assert model.a is model.b
    randomise_(model)
    y = model(torch.ones(1, 4))
    plain = Shared()
    state = sk.dense_state_dict(model)
    assert list(state) == before["keys"] and torch.equal(state["a.weight"], state["b.weight"])
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(torch.ones(1, 4)), y)
    sk.finalize(model)
    assert snapshot(model) == before
    torch.testing.assert_close(model(torch.ones(1, 4)), y)


class Tied(nn.Module):
    """Two layers on one Parameter."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second
        second.weight = first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def test_tied_linear_layers_share_the_mask() -> None:
    model = Tied(nn.Linear(4, 4), nn.Linear(4, 4))
    report = sk.sparsify(model)
    assert report.masked == ["first", "second"]
    assert list(sk.masked_layers(model)) == ["first"]
    assert sk.masks(model).numel == 16
    randomise_(model)
    assert model.first.mask == model.second.mask and model.first.mask.count() < 16
    x, mask = torch.randn(3, 4), model.first.mask.dense()
    y = model(x)
    with torch.no_grad():
        model.first.weight[~mask] = torch.nan
    assert torch.equal(model(x), y)
    model(x).square().sum().backward()
    assert not model.first.weight.grad[~mask].any() and model.first.weight.grad[mask].all()
    plain = Tied(nn.Linear(4, 4), nn.Linear(4, 4))
    plain.load_state_dict(sk.dense_state_dict(model))
    torch.testing.assert_close(plain(x), y)
    sk.finalize(model)
    assert model.first.weight is model.second.weight
    torch.testing.assert_close(model(x), y)


@pytest.mark.parametrize("order", [0, 1])
def test_a_layer_tied_to_an_embedding_is_skipped(order: int) -> None:
    embedding, linear = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
    names = ["first", "second"]
    model = Tied(*((embedding, linear) if order == 0 else (linear, embedding)))
    model.other = nn.Linear(2, 2)
    report = sk.sparsify(model)
    assert report.masked == ["other"]
    assert report.skipped[names[1 - order]] == f"its weight is tied to {names[order]}, which is not masked"
    assert report.skipped[names[order]] == "Embedding has no masked form"


def test_a_tie_chain_is_skipped_as_a_whole() -> None:
    model = Tied(nn.Linear(4, 4), nn.Linear(4, 4))
    model.third = nn.Linear(4, 4)
    model.third.weight = model.first.weight
    model.other = nn.Linear(2, 2)
    report = sk.sparsify(model, skip=["third"])
    assert report.masked == ["other"] and set(report.skipped) == {"first", "second", "third"}


def test_a_parameter_of_the_parent_counts_as_a_tie() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
            self.shortcut = self.fc.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.other(self.fc(x) @ self.shortcut)

    report = sk.sparsify(Reader())
    assert report.masked == ["other"] and "fc" in report.skipped


def test_a_copy_finalized_leaves_the_original_masked(net: nn.Module) -> None:
    sk.sparsify(net)
    randomise_(net)
    masks = sk.masks(net)
    sk.finalize(copy.deepcopy(net))
    assert sk.masks(net) == masks
