# SPDX-License-Identifier: Apache-2.0
"""What all sources of images share: their form in memory, statistics, scaling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekit.benchmarks.splits import Split

Arrays = dict[Split, tuple[Tensor, Tensor]]
"""Images uint8 [N, C, H, W] and labels int64 [N] of each split."""

PUBLISHED: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "cifar10-full": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100-full": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny-imagenet": ((0.480, 0.448, 0.397), (0.276, 0.269, 0.282)),
    "tiny-imagenet-bip": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "imagenet-spode": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and standard deviation that the papers normalise with, by the name of the data."""

CHUNK = 4096
"""Images that are worked on at once."""


def statistics_of(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation float32 [C]: those that the papers use for data called ``name``, else those of ``x``."""
    if name in PUBLISHED:
        mean, std = PUBLISHED[name]
        return torch.tensor(mean), torch.tensor(std)
    return channel_statistics(x)


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
