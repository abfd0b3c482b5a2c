# SPDX-License-Identifier: Apache-2.0
"""Jobs of test_ddp.py: pruning in DistributedDataParallel, on every rank, against one process with the whole batch.

The networks of ``exact`` are sums of single layers and their loss is linear, so a gradient depends on the batch alone. With
small integers as data and powers of two as rates, every sum is exact whatever its order: the masks have to be equal bit by bit.
"""

from __future__ import annotations

import copy
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import all_raise, everyone
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import sparsekit as sk
from sparsekit import ops
from sparsekit.gradients import curvature_at
from sparsekit.pruners.bip_options import BiPOptions
from sparsekit.pruners.checks import cycle
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


def curved(loss: Any) -> Any:
    """The loss, but for a linear one its square in each row: what is linear has no curvature to score by."""
    return squared_loss if loss is linear_loss else loss


def squared_loss(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]) * batch[1]).sum(1).square().mean()


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


def from_masks(model: nn.Module, loss: Any, start: Any) -> Any:
    sk.RandomPruning(model, loss, 0.7, seed=2, projection=sk.Projection())
    return bip(start="masks")(model, loss, start)


def iterative(model: nn.Module, loss: Any, inner: Any) -> Any:
    options: Any = {"steps_per_round": 2, "rounds": 2, "final_steps": 2, "curve": "constant", "final_curve": "constant"}
    return sk.Iterative(model, loss, 0.7, pruner=inner, optimizer=sgd, **options)


PRUNERS: dict[str, Maker] = {
    "BiP": bip(),
    "BiP, tied": bip(passes=1, scores="tied"),
    "BiP, one pass, separate": bip(passes=1, upper_batchnorm="train"),
    "BiP, released": bip(variant="released"),
    "BiP, value": bip(key="value", lower_steps=2, upper_batchnorm="eval"),
    "BiP, rare": bip(upper_every=2),
    "BiP, upper batches": bip(upper_batches=2),
    "BiP, rare, one pass": bip(passes=1, upper_every=3),
    "BiP, from masks": lambda model, loss, start: from_masks(model, loss, start),
    "SpODE": spode(),
    "SpODE, gau": spode(polariser="gau", options=SpODEOptions(step_schedule="hess")),
    "SpODE, oh": spode(polariser="oh", energy="l1", options=SpODEOptions(reproject=False)),
    "SpODE, search": spode(options=SpODEOptions(radius_search="auto", mask_option="sign", recalibration="released")),
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
    "GMP": lambda model, loss, _: sk.GMP(model, loss, 0.7, optimizer=sgd, steps=5, every=2, curve="constant"),
    "DPF": lambda model, loss, _: sk.DPF(model, loss, 0.7, optimizer=sgd, steps=6, every=2, curve="constant"),
    "Hydra": lambda model, loss, _: sk.Hydra(
        model, loss, 0.7, optimizer=sgd, steps=4, finetune_steps=2, curve="constant", projection=sk.Projection()
    ),
    "Hydra, raw": lambda model, loss, _: sk.Hydra(model, loss, 0.7, steps=5, start="raw", score_lr=0.25),
    "Movement": lambda model, loss, _: sk.Movement(model, loss, 0.7, optimizer=sgd, steps=6, curve="constant"),
    "ProbMask": lambda model, loss, start: sk.ProbMask(
        model, loss, 0.7, optimizer=sgd, steps=6, finetune_steps=2, score_lr=0.25, rewind_state=start, curve="constant"
    ),
    "WoodFisher": lambda model, loss, _: sk.WoodFisher(
        model, loss, 0.7, optimizer=sgd, steps=5, every=2, fisher_batches=2, curve="constant"
    ),
    "WoodFisher, one shot": lambda model, loss, _: sk.WoodFisher(
        model, loss, 0.7, optimizer=sgd, steps=2, ramp=0, fisher_batches=3, update="joint", block=30
    ),
    "STR": lambda model, loss, start: sk.STR(
        model, loss, 0.7, optimizer=sgd, steps=4, ramp=0.5, first=0.0, finetune_steps=2, rewind_state=start
    ),
    "STR, one threshold": lambda model, loss, _: sk.STR(
        model, loss, 0.7, optimizer=sgd, steps=4, first=-3.0, scope="global"
    ),
    "Powerprop": lambda model, loss, start: sk.Powerprop(
        model, loss, 0.7, optimizer=sgd, steps=3, finetune_steps=2, rewind_state=start
    ),
    "Powerprop, ramp": lambda model, loss, _: sk.Powerprop(
        model, loss, 0.7, optimizer=sgd, steps=5, ramp=0.6, alpha=3.0
    ),
    "RigL": lambda model, loss, _: sk.RigL(model, loss, 0.7, optimizer=sgd, steps=6, every=2, curve="constant"),
    "SET": lambda model, loss, _: sk.SET(model, loss, 0.7, optimizer=sgd, steps=6, every=2, curve="constant"),
    "Iterative": lambda model, loss, _: iterative(model, loss, lambda m, s: sk.OneShotMagnitude(m, loss, s)),
    "Iterative, SpODE": lambda model, loss, _: iterative(
        model, loss, lambda m, s: sk.SpODE(m, loss, s, steps=2, recalibrate=1)
    ),
    "RandomPruning": lambda model, loss, start: sk.RandomPruning(
        model, loss, 0.7, optimizer=sgd, steps=3, rewind_state=start, curve="constant", projection=sk.Projection()
    ),
    "SNIP": lambda model, loss, start: sk.SNIP(
        model, loss, 0.7, optimizer=sgd, steps=2, batches=2, rounds=2, rewind_state=start, curve="constant"
    ),
    "SNIP, filters": lambda model, loss, _: sk.SNIP(
        model, loss, 0.7, optimizer=sgd, steps=1, curve="constant", projection=sk.Projection("filter", "uniform")
    ),
    "GraSP": lambda model, loss, start: sk.GraSP(
        model, curved(loss), 0.7, optimizer=sgd, steps=1, batches=2, rounds=2, temperature=1, rewind_state=start
    ),
    "SynFlow": lambda model, loss, _: sk.SynFlow(model, loss, 0.7, optimizer=sgd, steps=2, rounds=4, curve="constant"),
    "random criterion": lambda model, loss, _: sk.CriterionPruning(
        model, loss, 0.7, "random", optimizer=sgd, steps=2, rounds=2, curve="constant"
    ),
    "Gradual": lambda model, loss, _: sk.Gradual(model, 0.7, steps=4),
    "Gradual, filters": lambda model, loss, _: sk.Gradual(
        model, 0.7, steps=4, projection=sk.Projection("filter", "global")
    ),
}


# Refuse DTensors. Solves, powers and thresholds round, and the weights keep it.
PLAIN = ("WoodFisher", "WoodFisher, one shot", "STR", "STR, one threshold", "Powerprop", "Powerprop, ramp")
# Tied scores put products of weights and gradients into the weights, whose bits then double with every step: these are
# rounded, in another order by each number of ranks. Rounding moves no mask here, but that is luck.
ROUNDED = ("BiP, tied", "BiP, released", *PLAIN)
# The weights in the forward pass are products with real gates, so the losses are rounded; gradients do not depend on them.
SOFT = ("SpODE, gau", "SpODE, oh", "ProbMask")


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


def curvature(rank: int, world: int) -> None:
    """H v of a share of the batch on each rank is, bit by bit, that of one process with all of it."""
    model, ddp = wrapped(rank)
    z = {name: layer.weight.detach() for name, layer in sk.masked_layers(model).items()}
    found = curvature_at(ddp, squared_loss, next(own_batches(rank, world, 2)), z, z)
    expected = curvature_at(exact(1), squared_loss, next(whole_batches(2)), z, z)
    assert all(torch.equal(found[name], value) and bool(value.any()) for name, value in expected.items())


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
    some = dict(list(PRUNERS.items())[:: world // 2])
    for i, (name, make) in enumerate(some.items()):
        for first in (True, False) if i == 0 else (i % 2 == 0,):
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
            most = 0.8 if "filters" in name else 0.75  # a quarter of eight filters is less than 0.3 of them
            assert 0.65 < pruner.masks.sparsity < most, (name, pruner.masks.sparsity)


def wrapped(rank: int, seed: int = 1) -> tuple[nn.Module, DDP]:
    model = exact(seed)
    return model, DDP(model)


def losses_that_fail(rank: int, world: int) -> None:
    """What goes wrong on the last rank alone is raised on all, with that rank, and the group stays in step."""
    last, at = rank == world - 1, f"(on rank {world - 1})"
    batches = own_batches(rank, world, 2)

    def failing(model: nn.Module, batch: Any) -> Tensor:
        if last:
            raise KeyError("of the user")
        return linear_loss(model, batch)

    def not_finite(model: nn.Module, batch: Any) -> Tensor:
        return linear_loss(model, batch) * (math.nan if last else 1)

    alone = (
        "BiP",
        "BiP, tied",
        "SpODE",
        "SpODE, gau",
        "IMP",
        "OMP",
        "OneShotMagnitude",
        "SNIP",
        "GraSP",
        "Hydra",
        "ProbMask",
    )
    for name in alone:
        pruner = PRUNERS[name](wrapped(rank)[1], failing, exact(1).state_dict())
        while name == "OneShotMagnitude" and pruner._step == 0:
            pruner.step(batches)  # recalibrates; nothing to do without BatchNorm
        all_raise(lambda p=pruner: p.step(batches), "RuntimeError", "of the user", at)
        pruner = PRUNERS[name](
            wrapped(rank)[1], lambda m, b: linear_loss(m, b) * (math.nan if last else 1), exact(1).state_dict()
        )
        while name == "OneShotMagnitude" and pruner._step == 0:
            pruner.step(batches)
        all_raise(lambda p=pruner: p.step(batches), "ValueError", "loss: expected a finite value, got NaN or inf", at)
        pruner = PRUNERS[name](wrapped(rank)[1], linear_loss, exact(1).state_dict())
        few = iter([]) if last else batches
        all_raise(
            lambda p=pruner, f=few: p.step(f), "ValueError", "batches: expected another batch at step 1, got none", at
        )
        if name.startswith("BiP"):  # with buffers, which DistributedDataParallel broadcasts in each forward pass
            torch.manual_seed(0)
            normed = DDP(network(0))
            sk.sparsify(normed)
            pruner = PRUNERS[name](normed, lambda m, b: entropy(m, None if last else b), None)
            all_raise(lambda p=pruner: p.step(real_batches(rank)), "TypeError", "subscriptable", at)


def faults(rank: int, world: int) -> None:
    """Arguments that are wrong on one rank alone, or that cannot work, are refused on all."""
    last, at = rank == world - 1, f"(on rank {world - 1})"
    make, batches = PRUNERS["BiP"], own_batches(rank, world, 2)
    ddp = wrapped(rank)[1]
    options: Any = {"steps": 3, "lower": sgd(ddp.parameters())}
    text = f"BiP: arguments: sparsity: expected the same on all ranks, got 0.5 on rank 0, 0.25 on rank {world - 1}"
    all_raise(lambda: sk.BiP(ddp, linear_loss, 0.25 if last else 0.5, **options), "ValueError", text)
    text = "BiP: projection: expected no group for a model that DistributedDataParallel"
    all_raise(
        lambda: sk.BiP(ddp, linear_loss, 0.5, projection=sk.Projection(group=dist.group.WORLD), **options),
        "ValueError",
        text,
    )
    static = DDP(exact(1), static_graph=True)
    text = "dense_gradients: model: expected DistributedDataParallel without static_graph"
    all_raise(lambda: make(static, linear_loss, None).step(batches), "ValueError", text)
    text = "gradients_at: create_graph: expected False in DistributedDataParallel"
    all_raise(lambda: sk.gradients_at(ddp, linear_loss, next(batches), {}, create_graph=True), "ValueError", text)
    wrapper, bare = (
        PRUNERS["IMP"](wrapped(rank)[1], linear_loss, state) for state in (ddp.state_dict(), exact(1).state_dict())
    )
    for key, value in bare._states["init"].items():
        assert torch.equal(wrapper._states["init"][key], value), key
    text = (
        "GraSP: samples_per_class: expected None in DistributedDataParallel, whose processes draw batches of their own"
    )
    all_raise(lambda: sk.GraSP(ddp, linear_loss, 0.5, samples_per_class=2), "ValueError", text)
    inside = nn.Sequential(wrapped(rank)[1], nn.Identity())
    text = "BiP: model: expected a network in one DistributedDataParallel around all of it, got one inside it, `0`"
    all_raise(lambda: make(inside, linear_loss, None), "ValueError", text)
    sk.Gradual(inside, 0.5, steps=1).step()  # looks at weights alone
    odd = Odd(last)
    text = "of the pattern"
    projection = sk.Projection(odd)
    all_raise(lambda: make_with(ddp, projection), "ValueError", text, at)
    together = sk.Projection(odd, group=dist.group.WORLD)
    all_raise(lambda: together({"a": torch.ones(4, 4)}, 0.5), "ValueError", text, at)
    for flag in (3, torch.ones(2) > 0, torch.ones(()), torch.ones((), dtype=torch.bool, device="meta")):
        text = f"any_rank: flag: expected a 0-d bool tensor on all ranks, got something else on rank {world - 1}"
        all_raise(lambda f=flag: ops.any_rank(f if last else torch.tensor(False), None), "TypeError", text)
    assert bool(ops.any_rank(torch.tensor(last), None)) and not bool(ops.any_rank(torch.tensor(False), None))
    with pytest.warns(UserWarning, match=f"BiP: model: {world} processes, but the model is not in Distributed"):
        make(exact(1), linear_loss, None)


class Odd(sk.Filter):
    """A pattern of someone else's making, which fails where it is told to."""

    def __new__(cls, *_: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, fails: bool) -> None:
        super().__init__()
        object.__setattr__(self, "fails", fails)

    def unit_scores(self, scores: Tensor, key: Any) -> Tensor:
        if self.fails:
            raise ValueError("of the pattern")
        return super().unit_scores(scores, key)


def make_with(model: nn.Module, projection: sk.Projection) -> Any:
    return sk.BiP(model, linear_loss, 0.5, steps=3, lower=sgd(model.parameters()), projection=projection)


def divergence(rank: int, world: int) -> None:
    """A rank with other masks, weights, steps or layers is named by all; without one nothing is said."""
    model, ddp = wrapped(rank)
    for given in (model, ddp):
        sk.check_ranks(given, weights=True)
        sk.check_ranks(given, step=7)
    odd = world - 1
    kept = model.fc.mask_words.clone()  # pyright: ignore
    if rank == odd:
        model.conv.mask_words[3, 0] ^= 1  # pyright: ignore
    who = f"rank {odd} differs"
    text = f"check_ranks: masks: expected the same on all ranks, {who}, first in `conv.mask_words` (got"
    all_raise(lambda: sk.check_ranks(ddp), "ValueError", text, "on rank 0)")
    pruner_text = f"masks: expected the same on all ranks, {who}"
    all_raise(lambda: PRUNERS["BiP"](ddp, linear_loss, None), "ValueError", pruner_text)
    if rank == odd:
        model.conv.mask_words[3, 0] ^= 1  # pyright: ignore
        model.fc.bias.data[0] += 1  # pyright: ignore
    sk.check_ranks(ddp)
    text = f"check_ranks: weights: expected the same on all ranks, {who}, first in `fc.bias`"
    all_raise(lambda: sk.check_ranks(ddp, weights=True), "ValueError", text)
    all_raise(lambda: PRUNERS["IMP"](ddp, linear_loss, model.state_dict()), "ValueError", text)
    text = f"check_ranks: step: expected the same on all ranks, {who} (got 4, 3 on rank 0)"
    all_raise(lambda: sk.check_ranks(model, step=4 if rank == odd else 3), "ValueError", text)
    other = nn.Sequential(nn.Linear(4, 5 if rank == odd else 4))
    sk.sparsify(other)
    all_raise(
        lambda: sk.check_ranks(other), "ValueError", f"check_ranks: layers: expected the same on all ranks, {who}"
    )
    if world > 2:
        if rank == 0:
            model.fc.mask_words.zero_()  # pyright: ignore
        all_raise(lambda: sk.check_ranks(model), "ValueError", "rank 0 differs, first in `fc.mask_words`", "on rank 1)")
        model.fc.mask_words.copy_(kept)  # pyright: ignore
        if rank in (0, 2):
            model.fc.mask_words.zero_()  # pyright: ignore
        text = "ranks 1, 3 differ, first in `fc.mask_words`"  # no majority: what rank 0 has counts
        all_raise(lambda: sk.check_ranks(model), "ValueError", text)
        model.fc.mask_words.copy_(kept)  # pyright: ignore
        sk.check_ranks(model)
    # During a run: every 100 steps, and at its end.
    for steps, flips in ((100, 3), (2, 1)) if world == 2 else ((2, 1),):
        model, ddp = wrapped(rank)
        pruner = sk.OneShotMagnitude(ddp, linear_loss, 0.5, optimizer=sgd, steps=steps if steps == 2 else 150)
        batches = own_batches(rank, world, 3)
        for _ in range(steps - 1):
            pruner.step(batches)
        if rank == odd:
            model.fc.mask_words[0, 0] ^= 1 << flips  # pyright: ignore
        all_raise(lambda p=pruner, b=batches: p.step(b), "ValueError", who, "first in `fc.mask_words`")


def unchanging(model: nn.Module) -> DDP:
    """DistributedDataParallel orders its buckets anew after the first pass, unless it looks for unused parameters.

    In another order the sums of more than two ranks have other bits, so a run that begins anew would differ from one that
    goes on.
    """
    return DDP(model, find_unused_parameters=True)


def resumed(rank: int, world: int) -> None:
    """Stopped after some steps and set up anew from the states that each rank has kept: as if never stopped, bit by bit."""
    some = {"BiP", "SpODE", "IMP", "OneShotMagnitude"} if world > 2 else PRUNERS
    for name in some:
        make = PRUNERS[name]
        torch.manual_seed(0)
        model = network(0)
        sk.sparsify(model)
        start = copy.deepcopy(model.state_dict())
        pruner, batches, position = make(unchanging(model), entropy, start), real_batches(rank), 0
        torch.manual_seed(50 + rank)  # Dropout differs between ranks
        for _ in range(2):
            pruner.step(batches)
        drawn, upcoming = real_batches(rank), next(batches)
        while not torch.equal(next(drawn)[0], upcoming[0]):
            position += 1
        saved = copy.deepcopy((pruner.state_dict(), model.state_dict(), torch.get_rng_state(), position))
        batches = chain([upcoming], batches)
        while not pruner.done:
            pruner.step(batches)
        again = network(99)
        sk.sparsify(again)
        fresh = make(unchanging(again), entropy, start)
        late = copy.deepcopy(saved[0])
        late["step"] += rank == world - 1
        text = f"load_state_dict: step: expected the same on all ranks, got 2 on rank 0, 3 on rank {world - 1}"
        all_raise(lambda f=fresh, s=late: f.load_state_dict(s), "ValueError", text)
        fresh.load_state_dict(saved[0])
        again.load_state_dict(saved[1])
        torch.set_rng_state(saved[2])
        batches = islice(real_batches(rank), saved[3], None)
        while not fresh.done:
            fresh.step(batches)
        assert fresh.masks == pruner.masks, name
        for key, value in model.state_dict().items():
            assert torch.equal(value, again.state_dict()[key]), (name, key)
        assert everyone(fresh.masks.hash()) == [pruner.masks.hash()] * world


def checkpoints(rank: int, world: int) -> None:
    """One file for each rank continues the run bit by bit; a file that one rank cannot read is an error on all."""
    names: list[Any] = [None]
    with tempfile.TemporaryDirectory() as folder:
        names[0] = folder
        dist.broadcast_object_list(names)
        file = f"{names[0]}/{rank}.safetensors"
        model, ddp = wrapped(rank)
        pruner, batches = PRUNERS["BiP"](ddp, linear_loss, None), own_batches(rank, world, 2)
        pruner.step(batches)
        sk.save_checkpoint(file, model=ddp, pruner=pruner)
        rest = list(islice(batches, 20))
        pruner.fit(rest)
        other, again = wrapped(rank, 5)
        fresh = PRUNERS["BiP"](again, linear_loss, None)
        gone = f"{names[0]}/none" if rank == world - 1 else file
        text = "load_checkpoint: path: expected a checkpoint, got"
        all_raise(
            lambda: sk.load_checkpoint(gone, model=again, pruner=fresh), "ValueError", text, f"(on rank {world - 1})"
        )
        sk.load_checkpoint(file, model=again, pruner=fresh)
        fresh.fit(rest)
        assert fresh.masks == pruner.masks
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
        dist.barrier()


def stale_model(rank: int, world: int) -> None:
    """A rank that has loaded the state of the pruner but not that of the model is found by the next step."""
    model, ddp = wrapped(rank)
    pruner, batches = PRUNERS["BiP"](ddp, linear_loss, None), own_batches(rank, world, 2)
    pruner.step(batches)
    saved = copy.deepcopy((pruner.state_dict(), model.state_dict()))
    model, ddp = wrapped(rank)
    pruner = PRUNERS["BiP"](ddp, linear_loss, None)
    pruner.load_state_dict(saved[0])
    if rank != world - 1:
        model.load_state_dict(saved[1])
    all_raise(lambda: pruner.step(batches), "ValueError", f"rank {world - 1} differs")


def recalibrated(rank: int, world: int) -> None:
    """BatchNorm statistics are averages over the batches of all ranks, and a failure on one rank is everyone's."""
    torch.manual_seed(0)
    model = network(0)
    ddp, mine = DDP(model), [x for x, _ in islice(real_batches(rank), 4)]
    everything = [x for x, _ in chain.from_iterable(islice(real_batches(r), 4) for r in range(world))]
    alone = copy.deepcopy(model)
    assert sk.recalibrate_batchnorm(ddp, mine) == 4
    sk.recalibrate_batchnorm(alone, everything)
    for key, value in alone.state_dict().items():
        if "num_batches" not in key:
            torch.testing.assert_close(model.state_dict()[key], value)
    states = everyone({key: value.tolist() for key, value in model.state_dict().items()})
    assert states == [states[0]] * world
    shared = []

    def watching(network: nn.Module, batch: Any) -> Tensor:
        shared.append(model[1].running_mean.tolist())  # pyright: ignore
        return entropy(network, batch)

    sk.sparsify(ddp)
    pruner, batches = sk.OneShotMagnitude(ddp, watching, 0.5, optimizer=sgd, steps=4), real_batches(rank)
    for _ in range(3):
        pruner.step(batches)
        assert len(set(map(str, everyone(model[1].running_mean.tolist())))) == world  # pyright: ignore
    assert (
        everyone(shared) == [shared] * world and len(set(map(str, shared))) == 3
    )  # those of rank 0, as in any training
    sk.finalize(ddp)
    before = copy.deepcopy(model.state_dict())
    last, text = rank == world - 1, f"batches: expected at least one batch, got none (on rank {world - 1})"
    all_raise(lambda: sk.recalibrate_batchnorm(ddp, [] if last else mine), "ValueError", text)
    text = "recalibrate_batchnorm: batches: expected the same on all ranks"
    all_raise(lambda: sk.recalibrate_batchnorm(ddp, mine[:1] if last else mine), "ValueError", text)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    if rank == 0:
        names = sk.sparsify(ddp, skip=["0"])
        assert [layer.name for layer in sk.inspect(ddp).layers] == ["5"]
        assert names.masked == ["5"] and list(sk.masks(ddp)) == ["5"] and "5.weight" in sk.dense_state_dict(ddp)
        with tempfile.TemporaryDirectory() as folder:
            sk.save(ddp, folder)
            assert sk.masks(sk.load(network(7), folder)) == sk.masks(ddp)
            assert sk.load(ddp, folder) is ddp
    # The number of the pass reaches a DistributedSampler.
    data = torch.utils.data.TensorDataset(torch.arange(8.0))
    sampler = torch.utils.data.DistributedSampler(data, seed=1)
    passes = cycle("test", torch.utils.data.DataLoader(data, sampler=sampler))
    seen_once = [[next(passes)[0].item() for _ in range(len(sampler))] for _ in range(3)]
    assert len({tuple(row) for row in seen_once}) > 1 and sampler.epoch == 2
