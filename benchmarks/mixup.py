# SPDX-License-Identifier: Apache-2.0
"""Mixup: training on convex combinations of pairs of images and of their labels (Zhang et al., ICLR 2018)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekit.benchmarks.batches import Batch, BatchStream
from sparsekit.benchmarks.random_crop import generator_of
from sparsekit.benchmarks.splits import make_generator
from sparsekit.benchmarks.streaming import FileStream


class MixedStream(Iterator[Batch]):
    """The batches of a stream, each mixed with itself in another order.

    With a share s ~ Beta(alpha, alpha) of the whole batch, as in the paper's code, and a random order p of it,

        x <- s x + (1 - s) x[p],    y <- s onehot(y) + (1 - s) onehot(y[p]).

    The cross-entropy to such labels is s CE(y) + (1 - s) CE(y[p]), with label smoothing and without. Labels become float32
    [B, classes]. Share and order are drawn from hashes of seed and step, so a stream that starts at step t continues one
    that stopped there, and the images before the mixing are those of a stream without it.

    Args:
        batches: what is mixed; labels int64 [B].
        alpha: > 0; small ones mix little.
        classes: number of classes.
        seed: any integer.
    """

    def __init__(self, batches: BatchStream | FileStream, alpha: float, classes: int, seed: int) -> None:
        self._batches, self._alpha, self._classes, self._seed = batches, alpha, classes, seed

    @property
    def step(self) -> int:
        """Number of the next batch."""
        return self._batches.step

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return self._batches.steps_per_epoch

    def __next__(self) -> Batch:
        words = "mixup", self._seed, self.step
        x, y = next(self._batches)
        share = generator_of(*words).betavariate(self._alpha, self._alpha)
        order = torch.randperm(len(y), generator=make_generator(*words)).to(y.device, non_blocking=True)
        labels = F.one_hot(y, self._classes).to(torch.float32)
        return _mixed(x, order, share), _mixed(labels, order, share)


Stream = BatchStream | FileStream | MixedStream


def mixed(batches: BatchStream | FileStream, alpha: float, classes: int, seed: int) -> Stream:
    """The stream with mixup; at alpha 0 the stream itself."""
    return MixedStream(batches, alpha, classes, seed) if alpha else batches


def _mixed(x: Tensor, order: Tensor, share: float) -> Tensor:
    # In place for the sum, so that the memory format is that of x whatever indexing makes of it.
    return x.mul(share).add_(x[order], alpha=1 - share)
