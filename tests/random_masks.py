# SPDX-License-Identifier: Apache-2.0
"""Random masks for networks under test, and poison under them."""

from __future__ import annotations

import torch
from torch import nn

import sparsekit as sk


def remask_(model: nn.Module, seed: int, kept: float = 0.5) -> None:
    """Keeps every weight with the probability ``kept``."""
    generator = torch.Generator().manual_seed(seed)
    masks = {n: torch.rand(m.shape, generator=generator) < kept for n, m in sk.masks(model).items()}
    sk.set_masks(model, {n: sk.Mask.from_dense(m) for n, m in masks.items()})


@torch.no_grad()
def poison_(model: nn.Module, value: float) -> None:
    """Overwrite every pruned entry."""
    for layer in sk.masked_layers(model).values():
        layer.weight.masked_fill_(~layer.mask.dense(), value)
