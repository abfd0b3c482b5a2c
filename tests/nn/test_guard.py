# SPDX-License-Identifier: Apache-2.0
"""Optimizers and pruned entries: the effective weight is exactly zero; with guard_ nothing about them moves at all."""

from __future__ import annotations

import copy

import pytest
import torch
from random_masks import remask_
from torch import Tensor, nn

import sparsekit as sk

VARIANTS = {"plain": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
OPTIMIZERS = {
    "sgd": lambda p, **kw: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True, **kw),
    "adamw": lambda p, **kw: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, amsgrad=True, **kw),
}
X = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().flatten(1))


@pytest.fixture
def model() -> nn.Module:
    net = Net()
    sk.sparsify(net)
    remask_(net, 0)
    return net


def step(model: nn.Module, optimizer: torch.optim.Optimizer, dense: bool = False) -> None:
    optimizer.zero_grad()
    if dense:
        with sk.dense_gradient(model):
            loss = model(X).square().mean()
    else:
        loss = model(X).square().mean()
    loss.backward()
    optimizer.step()


def per_weight(optimizer: torch.optim.Optimizer, weight: Tensor) -> dict[str, Tensor]:
    """The optimizer's state with one entry for each weight."""
    state = optimizer.state.get(weight, {})
    return {k: v for k, v in state.items() if isinstance(v, Tensor) and v.shape == weight.shape}


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().view(torch.int32)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_effective_weight_is_zero_without_a_guard(model: nn.Module, name: str, variant: str) -> None:
    optimizer = OPTIMIZERS[name](model.parameters(), **VARIANTS[variant])
    start = model.fc.weight.detach().clone()
    for _ in range(5):
        step(model, optimizer, dense=True)
    pruned = ~model.fc.mask.dense()
    assert not model.fc.masked_weight()[pruned].any()
    assert model.fc.weight[pruned].ne(start[pruned]).any()  # the parameter itself does drift: what guard_ is for
    torch.testing.assert_close(sk.finalize(copy.deepcopy(model))(X), model(X))


@pytest.mark.parametrize("dense", [False, True], ids=["masked_grad", "dense_grad"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_guard_keeps_pruned_entries_bit_for_bit(model: nn.Module, name: str, variant: str, dense: bool) -> None:
    optimizer = OPTIMIZERS[name](model.parameters(), **VARIANTS[variant])
    sk.guard_(optimizer, model)
    with torch.no_grad():  # values that only survive if nobody computes with them
        for layer in sk.masked_layers(model).values():
            layer.weight[~layer.mask.dense()] = -0.0
        model.fc.weight.view(-1)[(~model.fc.mask.dense()).view(-1).nonzero()[0]] = torch.nan
    start = {n: layer.weight.detach().clone() for n, layer in sk.masked_layers(model).items()}
    for _ in range(4):
        step(model, optimizer, dense)
    for n, layer in sk.masked_layers(model).items():
        pruned = ~layer.mask.dense()
        assert torch.equal(bits(layer.weight)[pruned], bits(start[n])[pruned])
        assert layer.weight[~pruned].ne(start[n][~pruned]).all()
        state = per_weight(optimizer, layer.weight)
        assert state and all(not v[pruned].any() and v[~pruned].any() for v in state.values())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_kept_entries_train_exactly_as_without_a_guard(model: nn.Module, name: str, variant: str) -> None:
    twin = copy.deepcopy(model)
    guarded, free = (OPTIMIZERS[name](m.parameters(), **VARIANTS[variant]) for m in (model, twin))
    sk.guard_(guarded, model)
    for _ in range(4):
        step(model, guarded)
        step(twin, free)
    for n, layer in sk.masked_layers(model).items():
        assert torch.equal(layer.masked_weight(), sk.masked_layers(twin)[n].masked_weight())
    assert torch.equal(model.fc.bias, twin.fc.bias)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masks_may_change_between_steps(model: nn.Module, name: str, variant: str) -> None:
    optimizer = OPTIMIZERS[name](model.parameters(), **VARIANTS[variant])
    sk.guard_(optimizer, model)
    step(model, optimizer)
    for seed in range(1, 5):
        remask_(model, seed)
        before = {
            n: (bits(layer.weight), {k: bits(v) for k, v in per_weight(optimizer, layer.weight).items()})
            for n, layer in sk.masked_layers(model).items()
        }
        step(model, optimizer)
        for n, layer in sk.masked_layers(model).items():
            pruned, (weight, state) = ~layer.mask.dense(), before[n]
            assert torch.equal(bits(layer.weight)[pruned], weight[pruned])
            assert all(
                torch.equal(bits(v)[pruned], state[k][pruned]) for k, v in per_weight(optimizer, layer.weight).items()
            )
            assert (bits(layer.weight) != weight)[~pruned].all()


def test_regrowth_starts_where_it_was(model: nn.Module) -> None:
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    sk.guard_(optimizer, model)
    step(model, optimizer)
    mask, at_pruning = model.fc.mask, model.fc.weight.detach().clone()
    step(model, optimizer)
    model.fc.mask = sk.Mask.full(mask.shape)
    regrown = ~mask.dense()
    assert torch.equal(model.fc.masked_weight()[regrown], at_pruning[regrown])


def test_remove(model: nn.Module) -> None:
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    handle = sk.guard_(optimizer, model)
    step(model, optimizer)
    handle.remove()
    handle.remove()
    start, pruned = model.fc.weight.detach().clone(), ~model.fc.mask.dense()
    step(model, optimizer)
    assert model.fc.weight[pruned].ne(start[pruned]).any()


def test_other_parameters_are_free_and_a_partial_optimizer_will_do(model: nn.Module) -> None:
    groups = [{"params": [model.fc.weight]}, {"params": [model.fc.bias], "lr": 1.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=0.1)
    sk.guard_(optimizer, model)
    bias, conv, fc = (t.detach().clone() for t in (model.fc.bias, model.conv.weight, model.fc.weight))
    step(model, optimizer)
    pruned = ~model.fc.mask.dense()
    assert model.fc.bias.ne(bias).all() and torch.equal(model.conv.weight, conv)
    assert torch.equal(model.fc.weight[pruned], fc[pruned])


def test_adagrad_state_that_exists_before_the_first_step(model: nn.Module) -> None:
    optimizer = torch.optim.Adagrad(model.parameters(), initial_accumulator_value=0.5)
    sk.guard_(optimizer, model)
    step(model, optimizer, dense=True)
    pruned = ~model.fc.mask.dense()
    assert optimizer.state[model.fc.weight]["sum"][pruned].eq(0.5).all()


def test_a_closure_is_guarded_too(model: nn.Module) -> None:
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    sk.guard_(optimizer, model)
    start, pruned = model.fc.weight.detach().clone(), ~model.fc.mask.dense()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.equal(model.fc.weight[pruned], start[pruned])


def test_scaler_scheduler_and_state_dict_go_on_working(model: nn.Module) -> None:
    optimizer = OPTIMIZERS["adamw"](model.parameters(), fused=True)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    sk.guard_(optimizer, model)
    scaler = torch.amp.GradScaler("cpu")
    start, pruned = bits(model.fc.weight), ~model.fc.mask.dense()
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(X).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
    assert torch.equal(bits(model.fc.weight)[pruned], start[pruned]) and (bits(model.fc.weight) != start)[~pruned].any()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(model, optimizer)
    assert torch.equal(bits(model.fc.weight)[pruned], start[pruned])


def test_tied_layers(model: nn.Module) -> None:
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    sk.sparsify(tied)
    remask_(tied, 3)
    optimizer = torch.optim.SGD(tied.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    sk.guard_(optimizer, tied)
    start, pruned = bits(tied[0].weight), ~tied[0].mask.dense()
    for _ in range(2):
        optimizer.zero_grad()
        tied(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    assert torch.equal(bits(tied[0].weight)[pruned], start[pruned])


def test_error(model: nn.Module) -> None:
    with pytest.raises(ValueError) as caught:
        sk.guard_(torch.optim.SGD([model.fc.bias], lr=0.1), model)
    assert str(caught.value) == (
        "guard_: optimizer: expected an optimizer over masked weights of the model, got none of them"
    )
