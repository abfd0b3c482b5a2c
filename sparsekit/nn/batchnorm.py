# SPDX-License-Identifier: Apache-2.0
"""BatchNorm and pruning: statistics that fit the pruned network, and passes that leave them alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsekit.modes import kept_modes
from sparsekit.ops import agreement, replicas, shards


def batchnorms(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers with running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def has_batchnorm(model: nn.Module) -> bool:
    """Does the model have a BatchNorm with running statistics?"""
    return bool(batchnorms(model))


def _forward(model: nn.Module, batch: Any) -> Any:
    return model(batch[0] if isinstance(batch, (tuple, list)) else batch)


@torch.no_grad()
def recalibrate_batchnorm(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any] = _forward
) -> int:
    """Replace the running statistics of every BatchNorm by their average over ``batches`` at the present weights.

    Pruning shifts the activations, so the statistics of the dense network no longer fit; a cumulative average over 20 or
    more batches repairs what one batch with momentum 0.1 cannot. Dropout and the like stay in eval mode.

    Args:
        model: its parameters and its modes are left as they were.
        batches: finite; each is given to ``forward``.
        forward: runs the model on a batch; by default ``model(batch[0])`` for tuples, ``model(batch)`` otherwise.

    Returns:
        Number of batches used; 0 when the model has no BatchNorm (nothing is drawn then).

    Raises:
        ValueError: there are BatchNorm layers but no batch.

    In DistributedDataParallel or under fully_shard the statistics are averages over the batches of all processes, which
    all have to call with as many batches each; an error on one of them is raised on all.
    """
    norms = batchnorms(model)
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    saved = [(n.running_mean, n.running_var, n.num_batches_tracked) for n in norms]
    copies = [[None if t is None else t.clone() for t in tensors] for tensors in saved]
    try:
        with kept_modes(model):
            model.eval()
            used = _together(model, lambda: _accumulate(model, norms, batches, forward))
    except BaseException:
        _restore(saved, copies)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return used


def _accumulate(
    model: nn.Module, norms: list[_BatchNorm], batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any]
) -> int:
    """Statistics of the batches alone; returns how many there were."""
    used = 0
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    for batch in batches:
        for norm in norms:
            # The cumulative average; momentum=None would ask the device how many batches there were.
            norm.momentum = 1.0 / (used + 1)
        forward(model, batch)
        used += 1
    if not used:
        raise ValueError("recalibrate_batchnorm: batches: expected at least one batch, got none")
    return used


def _together(model: nn.Module, accumulate: Callable[[], int]) -> int:
    """``accumulate`` on every rank, and then the mean of what they have found."""
    group = replicas.group_of(model) or shards.group_of(model.parameters())
    with replicas.quiet_buffers(model):
        used = agreement.alike("recalibrate_batchnorm", group, accumulate, lambda used: {"batches": used})
    average_batchnorm(model, group)
    return used


def average_batchnorm(model: nn.Module, group: Any) -> None:
    """Replace the running means and variances by their mean over the ranks of a group; None leaves them."""
    found = [t for norm in batchnorms(model) for t in (norm.running_mean, norm.running_var) if t is not None]
    _restore([found], [replicas.averages(found, group)])


def _restore(tensors: Iterable[Iterable[Tensor | None]], values: Iterable[Iterable[Tensor | None]]) -> None:
    for group, before in zip(tensors, values, strict=True):
        for tensor, value in zip(group, before, strict=True):
            if tensor is not None and value is not None:
                tensor.copy_(value)


@contextmanager
def frozen_batchnorm(model: nn.Module) -> Iterator[None]:
    """Within it, BatchNorm layers in train mode normalise with the batch but do not move their running statistics."""
    norms = [norm for norm in batchnorms(model) if norm.training]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
