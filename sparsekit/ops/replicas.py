# SPDX-License-Identifier: Apache-2.0
"""Copies of one network on many processes: what wraps them, and averages that DistributedDataParallel does not form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparsekit.ops import agreement

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
