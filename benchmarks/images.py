# SPDX-License-Identifier: Apache-2.0
"""What all sources of images share: their form in memory, statistics, scaling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekit.benchmarks.splits import Split

Arrays = dict[Split, tuple[Tensor, Tensor]]
"""Images uint8 [N, C, H, W] and labels int64 [N] of each split."""

CHUNK = 4096
"""Images that are worked on at once."""


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of uint8 [N, C, H, W] in [0, 1]; float32 [C].

    Counted in integers, hence equal on every machine. A constant channel gets standard deviation 1.
    """
    counts = torch.zeros(x.shape[1], 256, dtype=torch.int64)
    for part in x.split(CHUNK):
        for channel in range(x.shape[1]):
            counts[channel] += torch.bincount(part[:, channel].flatten(), minlength=256).cpu()
    share = counts.double() / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ values
    variance = (share * (values - mean[:, None]) ** 2).sum(1)
    return mean.float(), torch.where(variance > 0, variance.sqrt(), 1.0).float()


def resize(x: Tensor, size: int) -> Tensor:
    """uint8 [N, C, H, W] scaled to [N, C, size, size], bilinear with antialiasing."""
    if tuple(x.shape[2:]) == (size, size):
        return x
    scaled = x.new_empty((x.shape[0], x.shape[1], size, size))
    for source, target in zip(x.split(CHUNK), scaled.split(CHUNK), strict=True):
        if source.numel():
            part = F.interpolate(source.float(), (size, size), mode="bilinear", antialias=True)
            target.copy_(part.round_().clamp_(0, 255))
    return scaled
