# SPDX-License-Identifier: Apache-2.0
"""How well a network does."""

from __future__ import annotations

import math

import torch
from torch import nn

from sparsekit.benchmarks.data import Images
from sparsekit.benchmarks.splits import Split
from sparsekit.benchmarks.training import autocast


@torch.no_grad()
def accuracy(model: nn.Module, data: Images, split: Split, precision: str = "fp32") -> float:
    """Fraction of ``split`` classified correctly, in eval mode; the mode is restored. NaN for an empty split."""
    training, images = model.training, len(data.labels(split))
    model.eval()
    hits = torch.zeros((), dtype=torch.int64, device=data.device)
    for x, labels in data.evaluation(split):
        with autocast(x.device, precision):
            hits += (model(x).argmax(dim=1) == labels).sum()
    model.train(training)
    return float(hits) / images if images else math.nan
