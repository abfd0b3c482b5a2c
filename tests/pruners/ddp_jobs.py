# SPDX-License-Identifier: Apache-2.0
"""Jobs of test_ddp.py: pruning in DistributedDataParallel, on every rank, against one process with the whole batch.

The networks of ``exact`` are sums of single layers and their loss is linear, so a gradient depends on the batch alone. With
small integers as data and powers of two as rates, every sum is exact whatever its order: the masks have to be equal bit by bit.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from processes import everyone
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import sparsekit as sk
from sparsekit.pruners.bip_options import BiPOptions
from sparsekit.pruners.spode_options import SpODEOptions

ROWS = 16
Maker = Callable[[nn.Module, Any, Any], Any]


class Sum(nn.Module):
    """Two masked layers side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.conv = nn.Linear(36, 10), nn.Conv2d(4, 10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1)) + self.conv(x).flatten(1)


def exact(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = Sum()
    for p in model.parameters():
        p.data = torch.randint(-31, 32, p.shape).double() / 16
    sk.sparsify(model)
    return model


def whole_batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield (
            torch.randint(-3, 4, (ROWS, 4, 3, 3), generator=generator).double(),
            torch.randint(-3, 4, (ROWS, 10), generator=generator).double(),
        )


def own_batches(rank: int, world: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    for x, t in whole_batches(seed):
        yield x[rank::world], t[rank::world]


def linear_loss(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]) * batch[1]).sum(1).mean()


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.25)


def bip(**changes: Any) -> Maker:
    options = BiPOptions(upper_momentum=0.0, **changes)

    def make(model: nn.Module, loss: Any, _: Any) -> Any:
        curves: Any = {"lower_curve": "constant", "upper_curve": "constant"}
        rates: Any = {"upper_lr": 0.125, "options": options, **curves}
        return sk.BiP(model, loss, 0.7, steps=5, lower=sgd(model.parameters()), **rates)

    return make


def spode(**changes: Any) -> Maker:
    return lambda model, loss, _: sk.SpODE(model, loss, 0.7, steps=5, recalibrate=2, **changes)


PRUNERS: dict[str, Maker] = {
    "BiP": bip(),
    "BiP, tied": bip(passes=1, scores="tied"),
    "BiP, one pass, separate": bip(passes=1, upper_batchnorm="train"),
    "BiP, released": bip(variant="released"),
    "BiP, value": bip(key="value", lower_steps=2, upper_batchnorm="eval"),
    "SpODE": spode(),
    "SpODE, gau": spode(polariser="gau", options=SpODEOptions(step_schedule="hess")),
    "SpODE, oh": spode(polariser="oh", energy="l1", options=SpODEOptions(reproject=False)),
    "SpODE, channels": spode(projection=sk.Projection("channel", "uniform")),
    "IMP": lambda model, loss, start: sk.IMP(
        model, loss, 0.7, optimizer=sgd, steps_per_round=2, rewind="init", rewind_state=start, curve="constant"
    ),
    "IMP, budget": lambda model, loss, _: sk.IMP(
        model, loss, 0.7, optimizer=sgd, budget=20, dense_steps=2, curve="constant"
    ),
    "OMP": lambda model, loss, _: sk.OMP(model, loss, 0.7, optimizer=sgd, steps=2, dense_steps=3, curve="constant"),
    "OneShotMagnitude": lambda model, loss, _: sk.OneShotMagnitude(
        model, loss, 0.7, optimizer=sgd, steps=3, recalibrate=2, curve="constant"
    ),
}


# Tied scores put products of weights and gradients into the weights, whose bits then double with every step: these are
# rounded, in another order by each number of ranks. Rounding moves no mask here, but that is luck.
ROUNDED = ("BiP, tied", "BiP, released")
# The weights in the forward pass are products with real gates, so the losses are rounded; gradients do not depend on them.
SOFT = ("SpODE, gau", "SpODE, oh")


def seen(pruner: Any, metrics: dict[str, float]) -> tuple[str, dict[str, float], dict[str, float]]:
    """Hash of the masks, the metrics but the losses, the losses."""
    losses = {name: value for name, value in metrics.items() if name.startswith("loss")}
    return pruner.masks.hash(), {name: value for name, value in metrics.items() if name not in losses}, losses


def masks_of_one_process(rank: int, world: int) -> None:
    """Masks, weights, losses and moved entries after every step are the same on all ranks and those of one process."""
    for name, make in PRUNERS.items():
        model, alone = exact(1), exact(1)
        pruner = make(DDP(model), linear_loss, copy.deepcopy(model.state_dict()))
        reference = undistributed(make, alone, linear_loss, copy.deepcopy(alone.state_dict()))
        mine, whole = own_batches(rank, world, 2), whole_batches(2)
        trace, expected = [seen(pruner, {})], [seen(reference, {})]
        while not pruner.done:
            trace.append(seen(pruner, pruner.step(mine).read()))
            expected.append(seen(reference, reference.step(whole).read()))
        assert reference.done and list(pruner.masks) == ["fc", "conv"], name
        rows = everyone(trace)
        assert rows == [rows[0]] * world, name
        if name in ROUNDED:
            assert [h for h, *_ in trace] == [h for h, *_ in expected], name
            torch.testing.assert_close(model.state_dict(), alone.state_dict())
        else:
            kept = 2 if name in SOFT else 3
            assert [row[:kept] for row in trace] == [row[:kept] for row in expected], (name, trace, expected)
            wrong = [
                key for key, value in alone.state_dict().items() if not torch.equal(value, model.state_dict()[key])
            ]
            assert not wrong, (name, wrong)


def undistributed(make: Maker, *arguments: Any) -> Any:
    """A pruner of a plain model, without the warning that it gets beside other processes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return make(*arguments)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = (
        nn.Conv2d(4, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(72, 5),
    )
    return nn.Sequential(*layers)


def real_batches(rank: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(100 + rank)
    while True:
        yield torch.randn(8, 4, 3, 3, generator=generator), torch.randint(5, (8,), generator=generator)


def entropy(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def ranks_agree(rank: int, world: int) -> None:
    """A network with BatchNorm and Dropout, sparsified before or after it is wrapped: one mask and one loss on all ranks."""
    for first in (True, False):
        for name, make in PRUNERS.items():
            torch.manual_seed(1000 + rank)
            model = network(rank)  # of its own on every rank; DDP takes that of rank 0
            if first:
                sk.sparsify(model)
            wrapped = DDP(model)
            if not first:
                sk.sparsify(wrapped)
            torch.manual_seed(2000 + rank)
            pruner, batches = make(wrapped, entropy, copy.deepcopy(model.state_dict())), real_batches(rank)
            trace = []
            while not pruner.done:
                trace.append((pruner.step(batches).read(), pruner.masks.hash()))
            rows = everyone(trace)
            assert rows == [rows[0]] * world, (name, first)
            state = {key: value.tolist() for key, value in model.state_dict().items()}
            states = everyone(state)
            assert states == [states[0]] * world, (name, first)
            assert 0.65 < pruner.masks.sparsity < 0.75, (name, pruner.masks.sparsity)
