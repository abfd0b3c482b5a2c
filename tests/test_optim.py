# SPDX-License-Identifier: Apache-2.0
"""MaskedSGD and MaskedAdamW against PyTorch's classes under guard_: same weights and state, pruned ones unchanged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from random_masks import remask_
from torch import Tensor, nn
from torch.nn import functional as F

import sparsekit as sk

SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, sk.MaskedSGD, SGD),
    "plain sgd": (torch.optim.SGD, sk.MaskedSGD, {"lr": 0.1}),
    "nesterov": (torch.optim.SGD, sk.MaskedSGD, SGD | {"nesterov": True}),
    "adamw": (torch.optim.AdamW, sk.MaskedAdamW, {"lr": 1e-2, "weight_decay": 0.1}),
}


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    # No bias before the norm: its gradient is rounding, which AdamW makes large.
    model = nn.Sequential(nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5))
    sk.sparsify(model)
    remask_(model, seed)
    return model


def closure(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(8, 1, 6, 6, generator=generator), torch.randint(0, 5, (8,), generator=generator)

    def run() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return run


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    state = [v for p in model.parameters() for _, v in sorted(optimizer.state[p].items()) if isinstance(v, Tensor)]
    return [*model.state_dict().values(), *state]


def assert_alike(got: list[Tensor], want: list[Tensor], exact: bool) -> None:
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b) if exact else torch.allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_as_guarded_through_changing_masks(kind: str) -> None:
    theirs, ours, options = KINDS[kind]
    results = []
    for make in (
        lambda m: theirs(m.parameters(), foreach=False, **options),
        lambda m: ours(m.parameters(), m, **options),
    ):
        model = net()
        optimizer = make(model)
        if type(optimizer) is theirs:
            sk.guard_(optimizer, model)
        for step in range(6):
            if step == 3:
                remask_(model, 7)
            optimizer.step(closure(model, optimizer, step))
        results.append(state_of(model, optimizer))
    assert_alike(*results, exact=kind != "adamw")


@pytest.mark.parametrize("kind", KINDS)
def test_pruned_weights_and_state_keep_their_bits(kind: str) -> None:
    _, ours, options = KINDS[kind]
    model = net()
    optimizer = ours(model.parameters(), model, **options)
    with torch.no_grad():
        for layer in sk.masked_layers(model).values():
            layer.weight.masked_fill_(~layer.mask.dense(), torch.nan)
    before = model[4].weight.detach().clone()
    loss = optimizer.step(closure(model, optimizer, 0))
    pruned, after = ~model[4].mask.dense(), model[4].weight.detach()
    assert torch.isfinite(loss) and torch.isnan(after[pruned]).all()
    assert torch.isfinite(after[~pruned]).all() and not torch.equal(after[~pruned], before[~pruned])
    for value in optimizer.state[model[4].weight].values():
        assert value.ndim == 0 or not value[pruned].any()
    assert model[4].weight.grad is not None


@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_fit_and_resume(kind: str) -> None:
    theirs, ours, options = KINDS[kind]
    model = net()
    optimizer = ours(model.parameters(), model, **options)
    for step in range(2):
        optimizer.step(closure(model, optimizer, step))
    theirs(model.parameters(), **options).load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other = copy.deepcopy(model)
    resumed = ours(other.parameters(), other, **options)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for m, o in ((model, optimizer), (other, resumed)):
        o.step(closure(m, o, 2))
    assert_alike(state_of(other, resumed), state_of(model, optimizer), exact=True)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_layers_may_start_late_groups_differ_and_hooks_run_once(kind: str) -> None:
    theirs, ours, options = KINDS[kind]
    results, calls = [], []
    theirs(net().parameters(), **options)  # by now PyTorch has wrapped its own class's step
    for make in (lambda g, m: theirs(g, foreach=False, **options), lambda g, m: ours(g, m, **options)):
        model = net()
        optimizer = make([{"params": model[:2].parameters()}, {"params": model[4].parameters(), "lr": 0.03}], model)
        if type(optimizer) is theirs:
            sk.guard_(optimizer, model)
        optimizer.register_step_post_hook(lambda *_: calls.append(1))
        for step in range(4):
            run = closure(model, optimizer, step)
            run()
            if step < 2:
                model[0].weight.grad = None
            optimizer.step()
        results.append(state_of(model, optimizer))
    assert len(calls) == 8
    assert_alike(*results, exact=kind == "sgd")


def test_guard_may_be_put_around_it() -> None:
    model, twin = net(), net()
    for m, guarded in ((model, True), (twin, False)):
        optimizer = sk.MaskedSGD(m.parameters(), m, **SGD)
        if guarded:
            sk.guard_(optimizer, m)
        for step in range(3):
            optimizer.step(closure(m, optimizer, step))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
