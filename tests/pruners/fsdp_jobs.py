# SPDX-License-Identifier: Apache-2.0
"""Jobs of test_ddp.py with weights that fully_shard spreads over the ranks, against one process with the whole batch."""

from __future__ import annotations

import copy
from typing import Any

import torch
from ddp_jobs import (
    PLAIN,
    PRUNERS,
    ROUNDED,
    entropy,
    exact,
    linear_loss,
    network,
    own_batches,
    real_batches,
    seen,
    undistributed,
    whole_batches,
)
from processes import all_raise, everyone
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import sparsekit as sk

WHOLE = StateDictOptions(full_state_dict=True)


def sharded(order: str, world: int) -> nn.Module:
    """The exact network under fully_shard; 10 rows, so shards are uneven on 4 ranks."""
    mesh, model = init_device_mesh("cpu", (world,)), exact(1)
    if order == "layers, then sparsify":
        sk.finalize(model)
        for layer in (model.fc, model.conv, model):
            fully_shard(layer, mesh=mesh)  # pyright: ignore[reportArgumentType]
        sk.sparsify(model)
    elif order == "root, then sparsify":
        sk.finalize(model)
        fully_shard(model, mesh=mesh)
        sk.sparsify(model)
    else:
        for layer in (model.fc, model.conv, model) if order == "sparsify, then layers" else (model,):
            fully_shard(layer, mesh=mesh)  # pyright: ignore[reportArgumentType]
    return model


REFUSED = ("RigL", "SET", "Iterative, SpODE")
ORDERS = ["sparsify, then root", "sparsify, then layers", "root, then sparsify", "layers, then sparsify"]


def masks_of_one_process(rank: int, world: int) -> None:
    """Masks, metrics and whole weights after every step, in each order of sparsify and fully_shard."""
    for i, (name, make) in enumerate(PRUNERS.items()):
        if name.startswith(("SpODE", "GraSP", "SynFlow", "ProbMask")) or name in (*PLAIN, *REFUSED):
            continue
        alone, whole, mine = exact(1), whole_batches(2), own_batches(rank, world, 2)
        start = copy.deepcopy(alone.state_dict())
        for order in ORDERS if name == "BiP" and world == 2 else [ORDERS[i % 4]]:
            alone, whole, mine = exact(1), whole_batches(2), own_batches(rank, world, 2)
            model = sharded(order, world)
            assert isinstance(model.fc.weight, DTensor) and type(model.fc.mask_words) is torch.Tensor
            pruner, reference = make(model, linear_loss, start), undistributed(make, alone, linear_loss, start)
            while not pruner.done:
                got, expected = seen(pruner, pruner.step(mine).read()), seen(reference, reference.step(whole).read())
                assert got[0] == expected[0] and (name in ROUNDED or got == expected), (name, order, got, expected)
                model(torch.ones(1, 4, 3, 3, dtype=torch.float64))  # may leave the weights of the root gathered
            assert everyone(got) == [got] * world
            state, target = get_model_state_dict(model, options=WHOLE), alone.state_dict()
            for key, value in state.items() if rank == 0 else ():
                torch.testing.assert_close(
                    value, target[key], rtol=1e-5 if name in ROUNDED else 0, atol=1e-5 if name in ROUNDED else 0
                )
            if rank == 0:
                exact(3).load_state_dict(state)


def finalized(rank: int, world: int) -> None:
    """Outputs, dense state, guard and optimizers of the package, finalize: as of one process; pruned entries never leak."""
    x, t = next(own_batches(rank, world, 2))
    whole = next(whole_batches(2))
    for order in ORDERS:
        model, alone = sharded(order, world), exact(1)
        for target in (model, alone):
            sk.set_masks(target, half_masks(exact(1)))
        optimizers = []
        for target, batch in ((model, (x, t)), (alone, whole)):
            optimizer = sk.MaskedSGD(target.parameters(), target, lr=0.25, momentum=0.5, weight_decay=0.5)
            guarded = torch.optim.Adam(target.parameters(), lr=0.125, weight_decay=0.5)
            guard = sk.guard_(guarded, target)
            for _ in range(2):
                target(batch[0])  # without a backward pass it leaves weights gathered
                optimizer.zero_grad()
                linear_loss(target, batch).backward()
                optimizer.step()
                guarded.step()
            guard.remove()
            optimizers.append(optimizer)
        assert torch.equal(model(whole[0]), alone(whole[0])), order
        raw = get_model_state_dict(model, options=WHOLE)
        for key, value in alone.state_dict().items() if rank == 0 else ():
            assert torch.equal(raw[key], value), (order, key)  # pruned weights too, as the guard has kept them
        kept = model.fc.weight.grad  # pyright: ignore
        gradients = sk.dense_gradients(model, linear_loss, (x, t))[1]
        for n, gradient in sk.dense_gradients(alone, linear_loss, whole)[1].items():
            assert torch.equal(gradients[n].full_tensor(), gradient), (order, n)  # pyright: ignore
        assert kept is model.fc.weight.grad and kept is not None
        dense = {key: value.full_tensor() for key, value in sk.dense_state_dict(model).items()}
        for key, value in sk.dense_state_dict(alone).items():
            assert torch.equal(dense[key], value), (order, key)
        output = model(x)
        sk.finalize(model)
        assert not sk.masked_layers(model) and torch.equal(model(x), output), order
        assert [type(m).__name__.replace("FSDP", "") for m in (model.fc, model.conv)] == ["Linear", "Conv2d"]
        whole_state = get_model_state_dict(model, options=WHOLE)
        for key, value in sk.dense_state_dict(alone).items() if rank == 0 else ():
            assert torch.equal(whole_state[key], value), (order, key)


def half_masks(model: nn.Module) -> sk.Masks:
    return sk.Projection()({n: layer.weight.detach() for n, layer in sk.masked_layers(model).items()}, 0.5).masks


def refused(rank: int, world: int) -> None:
    """What does not work says so on all ranks, by name."""
    model = sharded(ORDERS[0], world)
    all_raise(
        lambda: sk.GraSP(model, linear_loss, 0.5), "ValueError", "GraSP: model: expected plain weights, got DTensors"
    )
    for name in ("SpODE", "GraSP", "SynFlow", "ProbMask", *PLAIN, *REFUSED):
        own = f"{name.removeprefix('Iterative, ').split(',')[0]}: model: expected plain weights"
        all_raise(lambda n=name: PRUNERS[n](model, linear_loss, None), "ValueError", own)
    model(torch.ones(1, 4, 3, 3, dtype=torch.float64))  # leaves the weights of the root gathered
    all_raise(
        lambda: sk.cached_weights(model).__enter__(), "ValueError", "cached_weights: model: expected plain weights"
    )
    for call in (lambda: sk.save(model, "nowhere"), lambda: sk.load(model, "nowhere")):
        all_raise(call, "ValueError", "model: expected plain weights, got the DTensor `fc.weight`; gather and spread")
    for name, call in {
        "inspect": lambda: sk.inspect(model),
        "export": lambda: sk.export(model, "nowhere", "safetensors"),
        "speed": lambda: sk.speed(model, torch.ones(1, 4, 3, 3, dtype=torch.float64)),
    }.items():
        all_raise(call, "ValueError", f"{name}: model: expected plain weights, got the DTensor `fc.weight`")
    z = {"fc": torch.ones(10, 36, dtype=torch.float64)}
    batch = next(own_batches(rank, world, 2))
    all_raise(
        lambda: sk.gradients_at(model, linear_loss, batch, z), "ValueError", "gradients_at: model: expected plain"
    )
    mesh = init_device_mesh("cpu", (world,))
    parallel: Any = nn.Sequential(nn.Linear(8, 8))
    parallel[0].weight = nn.Parameter(distribute_tensor(parallel[0].weight.detach(), mesh, [Shard(1)]))
    text = "its weight: expected placement Shard(0) or Replicate(), got"
    all_raise(lambda: sk.sparsify(parallel), "ValueError", "expected at least one layer to mask", text)
    masked: Any = nn.Sequential(nn.Linear(8, 8))
    sk.sparsify(masked)
    masked[0].weight = nn.Parameter(distribute_tensor(masked[0].weight.detach(), mesh, [Shard(0)]))
    all_raise(
        lambda: masked(torch.ones(1, 8)), "ValueError", "masked_linear: weight: expected a plain tensor, got a DTensor"
    )
    late = exact(1)
    pruner = undistributed(PRUNERS["BiP"], late, linear_loss, None)
    fully_shard(late, mesh=mesh)  # pyright: ignore[reportArgumentType]
    text = "BiP: model: expected fully_shard called before the pruner is made, got weights that were spread since"
    all_raise(lambda: pruner.step(iter([batch] * 4)), "ValueError", text)
    grid = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicas", "shards"))
    hybrid = exact(1)
    fully_shard(hybrid, mesh=grid)
    text = "BiP: model: `fc.weight`: expected a 1-D device mesh with this process in it"
    all_raise(lambda: PRUNERS["BiP"](hybrid, linear_loss, None), "ValueError", text)
    half = exact(1)
    fully_shard(half.fc, mesh=mesh)  # pyright: ignore[reportArgumentType]
    text = "BiP: model: expected the masked weights all plain, or all DTensors on one mesh, got 1 of 2"
    all_raise(lambda: PRUNERS["BiP"](half, linear_loss, None), "ValueError", text)


def statistics(rank: int, world: int) -> None:
    """A network with BatchNorm: masks and statistics are the same on all ranks."""
    torch.manual_seed(0)
    model = network(0)
    sk.sparsify(model)
    start = copy.deepcopy(model.state_dict())
    fully_shard(model, mesh=init_device_mesh("cpu", (world,)))  # pyright: ignore[reportArgumentType]
    for name in ("OneShotMagnitude", "IMP"):
        sk.set_masks(model, {n: sk.Mask.full(m.shape) for n, m in sk.masks(model).items()})
        pruner, batches = PRUNERS[name](model, entropy, start), real_batches(rank)
        while not pruner.done:
            pruner.step(batches)
        buffers = {key: b.tolist() for key, b in model.named_buffers()}
        assert everyone(buffers) == [buffers] * world and pruner.masks.sparsity > 0.6, name
