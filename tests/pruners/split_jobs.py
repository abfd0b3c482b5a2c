# SPDX-License-Identifier: Apache-2.0
"""Jobs of test_split.py: each runs on every rank of a group; a rank holds some layers of one network."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import torch
import torch.distributed as dist
from processes import all_raise, everyone
from torch import Tensor, nn

from sparsekit.allocation import Uniform
from sparsekit.nn import masked_layers, sparsify
from sparsekit.projection import Projection
from sparsekit.pruners.bip import BiP
from sparsekit.pruners.dpf import DPF
from sparsekit.pruners.gmp import GMP
from sparsekit.pruners.hydra import Hydra
from sparsekit.pruners.imp import IMP
from sparsekit.pruners.movement import Movement
from sparsekit.pruners.one_shot import OMP
from sparsekit.pruners.random_pruning import RandomPruning
from sparsekit.pruners.rigl import RigL
from sparsekit.pruners.set_pruning import SET
from sparsekit.pruners.snip import SNIP
from sparsekit.pruners.spode import SpODE

LAYERS, SPARSITY = 5, 0.7


def network() -> nn.Sequential:
    torch.manual_seed(3)
    layers = [nn.Linear(8, 8, bias=i == 1) for i in range(LAYERS)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(24).round_().div_(24)  # many equal weights, in one layer and over ranks
    return nn.Sequential(*layers)


def part(rank: int, world: int) -> nn.Sequential:
    """The layers of this rank; the last rank has what is left."""
    each = LAYERS // world
    model = network()[rank * each : LAYERS if rank == world - 1 else (rank + 1) * each]
    sparsify(model)
    return model


def whole() -> nn.Sequential:
    model = network()
    sparsify(model)
    return model


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    """A sum over layers, so that the gradients of a layer are the same whoever holds the others."""
    return torch.stack([(layer(batch) - 1).square().mean() for layer in model.children()]).sum()


def batches() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randn(4, 8, generator=generator)


def sgd(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.3, momentum=0.9)


def bip(model: nn.Module, projection: Projection) -> BiP:
    return BiP(model, loss, SPARSITY, steps=4, lower=sgd(model.parameters()), upper_lr=0.5, projection=projection)


def omp(model: nn.Module, projection: Projection) -> OMP:
    return OMP(model, loss, SPARSITY, optimizer=sgd, steps=2, dense_steps=3, projection=projection)


def imp(model: nn.Module, projection: Projection) -> IMP:
    return IMP(model, loss, SPARSITY, optimizer=sgd, steps_per_round=2, dense_steps=2, projection=projection)


def gmp(model: nn.Module, projection: Projection) -> GMP:
    return GMP(model, loss, SPARSITY, optimizer=sgd, steps=5, projection=projection)


def dpf(model: nn.Module, projection: Projection) -> DPF:
    return DPF(model, loss, SPARSITY, optimizer=sgd, steps=6, every=2, projection=projection)


def hydra(model: nn.Module, projection: Projection) -> Hydra:
    return Hydra(model, loss, SPARSITY, optimizer=sgd, steps=4, finetune_steps=1, score_lr=10.0, projection=projection)


def movement(model: nn.Module, projection: Projection) -> Movement:
    return Movement(model, loss, SPARSITY, optimizer=sgd, steps=5, projection=projection)


def words(model: nn.Module) -> list[Tensor]:
    return [layer.mask_words.clone() for layer in masked_layers(model).values()]


def masks(rank: int, world: int) -> None:
    """Every step's masks, joined in the order of ranks, are those of one process with all layers."""
    for make in (bip, omp, imp, gmp, dpf, hydra, movement):
        flips = []
        for pattern, allocation in (("unstructured", "global"), ("filter", "global"), ("unstructured", Uniform())):
            model, alone = part(rank, world), whole()
            pruner = make(model, Projection(pattern, allocation, group=dist.group.WORLD))
            single = make(alone, Projection(pattern, allocation))
            mine, every = batches(), batches()
            while not single.done:
                metrics, expected = pruner.step(mine), single.step(every)
                joined = [w for held in everyone(words(model)) for w in held]
                same = [torch.equal(a, b) for a, b in zip(joined, words(alone), strict=True)]
                assert all(same), (make.__name__, pattern, allocation, same)
                assert sum(everyone(int(metrics["flips"]))) == int(expected["flips"])
                flips.append(int(expected["flips"]))
            assert pruner.done
        assert any(flips), make.__name__


def resume(rank: int, world: int) -> None:
    """A state made with one group goes on with another of the same size, and not without one."""
    group, other = dist.group.WORLD, dist.new_group(list(range(world)))
    straight, model = part(rank, world), part(rank, world)
    pruner, source = bip(straight, Projection(group=group)), batches()
    for _ in range(4):
        pruner.step(source)
    first, source = bip(model, Projection(group=group)), batches()
    first.step(source)
    again = part(rank, world)
    second = bip(again, Projection(group=other))
    state = copy.deepcopy(first.state_dict())
    again.load_state_dict(model.state_dict())
    second.load_state_dict(state)
    for _ in range(3):
        second.step(source)
    assert all(torch.equal(a, b) for a, b in zip(words(straight), words(again), strict=True))
    local = bip(part(rank, world), Projection())
    all_raise(lambda: local.load_state_dict(state), "ValueError", "BiP: load_state_dict: expected projection", "ranks)")


def faults(rank: int, world: int) -> None:
    """NaN scores on one rank stop all of them, and no mask has changed; what needs all layers, or would draw every
    part alike, is refused."""
    model = part(rank, world)
    pruner, source = bip(model, Projection(group=dist.group.WORLD)), batches()
    pruner.step(source)
    before = words(model)
    if rank == world - 1:
        next(iter(pruner.scores.values())).data[0, 0] = torch.nan
    all_raise(lambda: pruner.step(source), "ValueError", "BiP: scores: expected numbers, got NaN (step 2)")
    assert all(torch.equal(a, b) for a, b in zip(before, words(model), strict=True))
    text = "Projection: group: expected None where a budget is needed beforehand, got a group"
    projection = Projection(group=dist.group.WORLD)
    all_raise(lambda: SpODE(part(rank, world), loss, 0.5, projection=projection), "ValueError", text)
    text = "RandomPruning: projection: expected no group, whose processes would draw the same numbers, got Projection("
    all_raise(lambda: RandomPruning(part(rank, world), loss, 0.5, projection=projection), "ValueError", text)
    text = "SNIP: projection: expected no group, got Projection("
    all_raise(lambda: SNIP(part(rank, world), loss, 0.5, projection=projection), "ValueError", text)
    for kind in (RigL, SET):
        text = f"{kind.__name__}: projection: expected no group, whose processes would draw the same numbers, got "
        make = partial(kind, part(rank, world), loss, 0.5, optimizer=sgd, steps=3, projection=projection)
        all_raise(make, "ValueError", text)
