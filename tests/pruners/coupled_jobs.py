# SPDX-License-Identifier: Apache-2.0
"""Jobs of test_ddp.py: coupled filters in DistributedDataParallel, on every rank, against one process with the whole batch.

The network of ``exact`` is linear and its last layer fixed, so that gradients depend on the batch alone: see ddp_jobs.py.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from ddp_jobs import linear_loss, own_batches, seen, sgd, squared_loss, undistributed, whole_batches
from processes import all_raise, everyone
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import sparsekit as sk
from sparsekit.pruners.bip_options import BiPOptions

X = torch.randn(2, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Coupled(nn.Module):
    """Two masked layers whose outputs are added and a third beside them, read by a layer that is neither masked nor trained."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 1)
        self.alone, self.head = nn.Conv2d(4, 7, 3, padding=1), nn.Conv2d(13, 10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.wide(x) + self.narrow(x), self.alone(x)], 1)).flatten(1)


def plain(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = Coupled()
    for p in model.parameters():
        p.data = torch.randint(-31, 32, p.shape).double() / 16
    model.head.weight.data = torch.randint(-2, 3, model.head.weight.shape).double()
    model.head.requires_grad_(False)
    return model


def masked(seed: int) -> nn.Module:
    model = plain(seed)
    sk.sparsify(model, skip=["head"])
    return model


def coupled(model: nn.Module, allocation: str) -> sk.Projection:
    return sk.Projection(sk.coupled_filters(model, X), allocation)


# Each with (model, projection, state to rewind to).
PRUNERS: dict[str, Any] = {
    "BiP": lambda m, p, _: sk.BiP(
        m, linear_loss, 0.5, steps=3, lower=sgd([w for w in m.parameters() if w.requires_grad]), upper_lr=0.125,
        lower_curve="constant", upper_curve="constant", options=BiPOptions(upper_momentum=0.0), projection=p,
    ),
    "IMP": lambda m, p, s: sk.IMP(
        m, linear_loss, 0.6, optimizer=sgd, steps_per_round=2, rewind="init", rewind_state=s, curve="constant", projection=p
    ),
    "OMP": lambda m, p, _: sk.OMP(m, linear_loss, 0.5, optimizer=sgd, steps=1, dense_steps=2, curve="constant", projection=p),
    "OneShotMagnitude": lambda m, p, _: sk.OneShotMagnitude(
        m, linear_loss, 0.5, optimizer=sgd, steps=2, curve="constant", projection=p
    ),
    "GMP": lambda m, p, _: sk.GMP(m, linear_loss, 0.6, optimizer=sgd, steps=5, every=2, curve="constant", projection=p),
    "DPF": lambda m, p, _: sk.DPF(m, linear_loss, 0.6, optimizer=sgd, steps=5, every=2, curve="constant", projection=p),
    "SNIP": lambda m, p, _: sk.SNIP(
        m, linear_loss, 0.5, optimizer=sgd, steps=1, batches=2, rounds=2, curve="constant", projection=p
    ),
    "GraSP": lambda m, p, _: sk.GraSP(m, squared_loss, 0.5, optimizer=sgd, steps=1, temperature=1, projection=p),
    "SynFlow": lambda m, p, _: sk.SynFlow(
        m, linear_loss, 0.5, optimizer=sgd, steps=1, rounds=3, curve="constant", projection=p
    ),
    "Hydra": lambda m, p, _: sk.Hydra(m, linear_loss, 0.5, steps=4, start="raw", score_lr=0.25, projection=p),
    "Movement": lambda m, p, _: sk.Movement(m, linear_loss, 0.5, optimizer=sgd, steps=4, curve="constant", projection=p),
    "SpODE": lambda m, p, _: sk.SpODE(m, linear_loss, 0.5, steps=4, recalibrate=0, projection=p),
    "Gradual": lambda m, p, _: sk.Gradual(m, 0.5, steps=3, projection=p),
    "Iterative": lambda m, p, _: sk.Iterative(
        m, linear_loss, 0.6, pruner=lambda n, s: sk.OneShotMagnitude(n, linear_loss, s, projection=p), optimizer=sgd,
        steps_per_round=2, rounds=2, final_steps=1, curve="constant", final_curve="constant",
    ),
}  # fmt: skip
# Scores by magnitudes of products, whose sums are rounded in an order that the number of ranks may change; no mask moves.
ROUNDED = ("GraSP",)


def masks_of_one_process(rank: int, world: int) -> None:
    """Masks, weights and moved entries after every step are the same on all ranks and those of one process, bit by bit."""
    for name, make in PRUNERS.items():
        for allocation in ("uniform", "global"):
            model, alone = masked(1), masked(1)
            ddp, start = DDP(model), copy.deepcopy(model.state_dict())
            pattern: Any = coupled(ddp, allocation).pattern
            assert repr(pattern) == repr(coupled(alone, allocation).pattern)
            assert {g.name: len(g) for g in pattern.groups} == {"wide": 6, "alone": 7}
            pruner = make(ddp, coupled(ddp, allocation), start)
            reference = undistributed(make, alone, coupled(alone, allocation), copy.deepcopy(start))
            mine, whole = own_batches(rank, world, 2), whole_batches(2)
            trace, expected = [seen(pruner, {})[:2]], [seen(reference, {})[:2]]
            while not pruner.done:
                trace.append(seen(pruner, pruner.step(mine).read())[:2])
                expected.append(seen(reference, reference.step(whole).read())[:2])
            rows = everyone(trace)
            assert rows == [rows[0]] * world, (name, allocation)
            assert trace == expected, (name, allocation, trace, expected)
            state, other = model.state_dict(), alone.state_dict()
            if name not in ROUNDED:
                assert all(torch.equal(state[key], value) for key, value in other.items()), (name, allocation)
            exact_counts(pattern, model, pruner.sparsity, allocation)


def exact_counts(pattern: Any, model: nn.Module, sparsity: float, allocation: str) -> None:
    """Filters of a unit agree, and the budget of units is exact."""
    filters = {name: mask.dense().flatten(1).any(1) for name, mask in sk.masks(model).items()}
    assert torch.equal(filters["wide"], filters["narrow"])
    kept = [int(units.sum()) for units in pattern.kept_units(filters)]
    wanted = [sk.kept_count(len(g), sparsity) for g in pattern.groups]
    assert kept == wanted if allocation == "uniform" else sum(kept) == sk.kept_count(13, sparsity), (kept, wanted)


def wrappers(rank: int, world: int) -> None:
    """Sparsified before or after wrapping, compiled inside or outside: the same coupling and the same masks everywhere."""

    def eager(model: nn.Module) -> Any:
        return torch.compile(model, backend="eager")

    def inside(model: nn.Module) -> nn.Module:
        model.narrow = eager(model.narrow)  # pyright: ignore
        return model

    wraps: dict[str, Any] = {
        "DDP": DDP,
        "DDP(compiled)": lambda m: DDP(eager(m)),
        "compiled(DDP)": lambda m: eager(DDP(m)),
        "a compiled part": lambda m: DDP(inside(m)),
    }
    found = {}
    for name, wrap in wraps.items():
        for first in (True, False):
            model = masked(1) if first else plain(1)
            wrapped = wrap(model)
            if not first:
                sk.sparsify(wrapped, skip=["head"])
            pruner = PRUNERS["SNIP"](wrapped, coupled(wrapped, "uniform"), None)
            pruner.fit([next(own_batches(rank, world, 2))])
            kept = sorted((key.replace("._orig_mod", ""), mask.words.tolist()) for key, mask in pruner.masks.items())
            found[name, first] = repr(pruner.projection.pattern), kept
    assert len(set(map(str, found.values()))) == 1, found
    rows = everyone(str(found))
    assert rows == [rows[0]] * world


def other_couplings(rank: int, world: int) -> None:
    """Patterns that differ between ranks, and groups, are refused on all; a rank may look for its coupling alone."""
    model, ddp = masked(1), DDP(masked(1))
    pattern = sk.coupled_filters(model, X)
    mine = sk.CoupledFilters(pattern.groups[: 1 + (rank == 0)], pattern.layers)
    text = "OneShotMagnitude: arguments: projection: expected the same on all ranks"
    all_raise(lambda: sk.OneShotMagnitude(ddp, linear_loss, 0.5, projection=sk.Projection(mine)), "ValueError", text)
    synced = masked(1)
    synced.wide = nn.Sequential(synced.wide, nn.SyncBatchNorm(6).double())  # pyright: ignore
    if rank == world - 1:
        found = sk.coupled_filters(synced, X)
        assert [len(g) for g in found.groups] == [6, 7]
        weights = {name: layer.weight.detach() for name, layer in sk.masked_layers(synced).items()}
        sk.set_masks(synced, sk.Projection(found, "uniform")(weights, 0.5).masks)
        small, report = sk.compact(synced, X, silence_batchnorm=True)
        assert report.layers[0].outputs.removed == 3 and type(small.wide[1]) is nn.SyncBatchNorm  # pyright: ignore
    everyone(None)
