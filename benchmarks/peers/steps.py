# SPDX-License-Identifier: Apache-2.0
"""What the checks do with models and libraries."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sparsekit.benchmarks.peers.library import Library, NotOffered, layers, zeros
from sparsekit.benchmarks.peers.networks import Net

Result = tuple[bool, str]

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
HALF = 0.5


def pruned(library: Library, model: nn.Module | None = None, x: Any = X, sparsity: float = HALF) -> nn.Module:
    """A pruned model, the same for all libraries."""
    torch.manual_seed(0)
    return library.prune(model or Net(), x, sparsity)


def steps(model: nn.Module, x: Any, count: int, guard: Callable[..., Any] | None = None) -> None:
    """Steps of SGD with momentum and decay, after ``guard(optimizer, model)``."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
    if guard is not None:
        guard(optimizer, model)
    for _ in range(count):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def final_of(library: Library, model: nn.Module, x: Any = X) -> nn.Module:
    """The plain model, from a copy where models can be copied."""
    try:
        model = copy.deepcopy(model)
    except RuntimeError:
        model = pickle.loads(pickle.dumps(model))
    return library.baked(model, x)


def exact(library: Library, model: nn.Module, sparsity: float, x: Any = X) -> Result:
    """Is the number of weights kept within one of the wanted one? (Roundings differ.)"""
    if not library.single:
        raise NotOffered("whole channels are taken out, not single weights")
    n = weights(model)
    final = final_of(library, pruned(library, model, x, sparsity), x)
    kept = sum(int((layer.weight != 0).sum()) for layer in layers(final).values())
    return abs(kept - n * (1 - sparsity)) < 1, f"kept {kept:,} of {n:,}, wanted {n * (1 - sparsity):,.1f}"


def refuse_smaller(final: nn.Module, n: int) -> None:
    """Raise NotOffered for a model that has lost weights altogether."""
    if weights(final) < n:
        raise NotOffered(f"whole channels are taken out: {weights(final):,} of {n:,} weights are left")


def zero_fraction(model: nn.Module) -> float:
    """Fraction of zeros in all Linear and Conv2d weights."""
    return zeros([layer.weight for layer in layers(model).values()])


def weights(model: nn.Module) -> int:
    """Number of Linear and Conv2d weights."""
    return sum(layer.weight.numel() for layer in layers(model).values())


def pairs(one: nn.Module, two: nn.Module) -> list[tuple[Any, Any]]:
    """Layers of two models side by side."""
    return list(zip(layers(one).values(), layers(two).values(), strict=True))
