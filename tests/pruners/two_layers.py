# SPDX-License-Identifier: Apache-2.0
"""A small network in float64 that a plain loop of a test can imitate: two Linear layers, a square loss, endless batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import sparsekit as sk

Batch = tuple[Tensor, Tensor]
N = 7 * 9 + 9 * 4


def build(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 4)).double()
    sk.sparsify(model)
    return model


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch[0]) - batch[1]).square().sum(1).mean()


def batches() -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(3)
    while True:
        yield (
            torch.randn(8, 7, generator=generator, dtype=torch.float64),
            torch.randn(8, 4, generator=generator, dtype=torch.float64),
        )


def sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)
