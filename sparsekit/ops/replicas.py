# SPDX-License-Identifier: Apache-2.0
"""Copies of one network on many processes: what wraps them, and averages that DistributedDataParallel does not form."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparsekit.ops import agreement, shards

# Elements of one collective: large enough for full speed, small beside a network.
_BUCKET = 1 << 23


def wrapper_of(model: nn.Module) -> DistributedDataParallel | None:
    """The DistributedDataParallel around the network, itself compiled or not; None where there is none."""
    while not isinstance(model, DistributedDataParallel):
        inner = getattr(model, "_orig_mod", None)  # of torch.compile
        if not isinstance(inner, nn.Module):
            return None
        model = inner
    return model


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel, with the names that it has without it; any other model as it is."""
    wrapper = wrapper_of(model)
    if wrapper is None:
        return model
    inner: Any = wrapper.module
    while isinstance(getattr(inner, "_orig_mod", None), nn.Module):
        inner = inner._orig_mod
    return inner


def bare(model: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel and ``torch.compile``, in whatever order and number."""
    network = unwrapped(model)
    while isinstance(inner := getattr(network, "_orig_mod", None), nn.Module):
        network = inner
    return network


def plain_name(name: str) -> str:
    """The name that a module has without ``torch.compile``, around the network or around parts of it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def uncompiled(network: nn.Module) -> nn.Module:
    """The network itself, in which every compiled part has been replaced, in place, by what was compiled."""
    network = bare(network)
    for module in list(network.modules()):
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = bare(child)
    return network


def eager(network: nn.Module) -> AbstractContextManager[Any]:
    """Within it, nothing of the network runs compiled, which would pass by hooks that came later."""
    compiled = any(m._compiled_call_impl is not None or hasattr(m, "_orig_mod") for m in network.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def plain_network(function: str, model: nn.Module) -> nn.Module:
    """The network without its wrappers; raises ValueError where processes have parts of weights only."""
    network = bare(model)
    if name := next((n for n, p in network.named_parameters() if shards.is_spread(p)), None):
        remedy = "gather and spread states with torch.distributed.checkpoint.state_dict"
        raise ValueError(f"{function}: model: expected plain weights, got the DTensor `{name}`; {remedy}")
    return network


def group_of(model: nn.Module) -> Any:
    """The process group of the DistributedDataParallel around the network, or None."""
    wrapper = wrapper_of(model)
    return None if wrapper is None else wrapper.process_group


@contextmanager
def local_gradients(model: nn.Module) -> Iterator[None]:
    """Within it, DistributedDataParallel leaves gradients to the caller, who takes them by ``torch.autograd.grad``."""
    wrapper = wrapper_of(model)
    if wrapper is not None and wrapper.static_graph:
        raise ValueError("dense_gradients: model: expected DistributedDataParallel without static_graph, got it")
    with nullcontext() if wrapper is None else wrapper.no_sync():
        yield


@contextmanager
def quiet_buffers(model: nn.Module) -> Iterator[None]:
    """Within it, a forward pass of DistributedDataParallel broadcasts no buffers.

    A process that fails before its forward pass would leave the others waiting for it there; see ``share_buffers``.
    """
    wrapper = wrapper_of(model)
    before = wrapper is not None and wrapper.broadcast_buffers
    try:
        if wrapper is not None:
            wrapper.broadcast_buffers = False
        yield
    finally:
        if wrapper is not None:
            wrapper.broadcast_buffers = before


@torch.no_grad()
def share_buffers(model: nn.Module, keep: Collection[str]) -> None:
    """Give all processes the buffers of rank 0, as a forward pass of DistributedDataParallel does; all have to call.

    Args:
        keep: last names of buffers that every process keeps as they are.
    """
    wrapper = wrapper_of(model)
    if wrapper is None or not wrapper.broadcast_buffers:
        return
    named = [b for name, b in unwrapped(model).named_buffers() if name.split(".")[-1] not in keep]
    for dtype in dict.fromkeys(b.dtype for b in named):
        own = [b for b in named if b.dtype == dtype]
        flat = torch.cat([b.reshape(-1) for b in own])
        sent = flat.to(agreement.carrier(wrapper.process_group, flat.device))
        dist.broadcast(sent, group=wrapper.process_group, group_src=0)
        for b, value in zip(own, sent.to(flat.device).split([b.numel() for b in own]), strict=True):
            b.copy_(value.view(b.shape))


def averages(tensors: Sequence[Tensor], group: Any) -> list[Tensor]:
    """Mean over the ranks of each tensor, the same bits on all ranks; the lists agree in number, shapes and dtypes.

    As DistributedDataParallel does, each share is divided before the sum. Collectives of at most 2^23 elements (or of one
    tensor); None for ``group`` returns the tensors as they are.
    """
    if group is None:
        return list(tensors)
    found: list[Tensor] = []
    for bucket in _buckets(tensors):
        flat = torch.cat([t.reshape(-1) for t in bucket]).div_(dist.get_world_size(group))
        sent = flat.to(agreement.carrier(group, flat.device))
        dist.all_reduce(sent, group=group)
        parts = sent.to(flat.device).split([t.numel() for t in bucket])
        found += [part.view(t.shape) for part, t in zip(parts, bucket, strict=True)]
    return found


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, in runs of one dtype and a limited size."""
    bucket: list[Tensor] = []
    for t in tensors:
        if bucket and (t.dtype != bucket[0].dtype or sum(b.numel() for b in bucket) + t.numel() > _BUCKET):
            yield bucket
            bucket = []
        bucket.append(t)
    if bucket:
        yield bucket
