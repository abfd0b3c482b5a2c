# SPDX-License-Identifier: Apache-2.0
"""Seeded, resumable streams of training batches from images that stay on their device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekit.benchmarks.splits import make_generator

Augment = Literal["none", "shift", "crop-flip", "crop-flip-mean"]
AUGMENTS: tuple[Augment, ...] = get_args(Augment)
PADDING: dict[Augment, int] = {"none": 0, "shift": 1, "crop-flip": 4, "crop-flip-mean": 4}
"""Pixels by which an image may move in each direction."""

MIRRORING: tuple[Augment, ...] = ("crop-flip", "crop-flip-mean")
"""What mirrors every second image."""

AHEAD = {"cuda": 16}
"""Batches that are made at once, by device type; 1 elsewhere. It changes nothing but time."""

Batch = tuple[Tensor, Tensor]
"""Images float32 [B, C, H, W], normalised per channel, and labels int64 [B]."""


def crop_flip(x: Tensor, down: Tensor, right: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Cuts a window of the original size out of each image, which is padded with zeros, and mirrors some windows.

    Args:
        x: [B, C, H, W], any dtype.
        down, right: int64 [B] in [0, 2 * padding], upper left corner of the window; `padding` moves nothing.
        flip: bool [B], True mirrors left and right.
        padding: pixels added on each side, >= 0.

    Returns:
        New tensor like x.
    """
    height, width = x.shape[2:]
    padded = F.pad(x, (padding,) * 4)
    rows = down[:, None] + torch.arange(height, device=x.device)
    cols = torch.arange(width, device=x.device)
    cols = right[:, None] + torch.where(flip[:, None], width - 1 - cols, cols)
    image = torch.arange(x.shape[0], device=x.device)[:, None, None, None]
    channel = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
    return padded[image, channel, rows[:, None, :, None], cols[:, None, None, :]]


@dataclass(frozen=True)
class Normalise:
    """x uint8 [B, C, H, W] -> float32 (x / 255 - mean) / std, as x * scale - offset with factors [C, 1, 1]."""

    scale: Tensor
    offset: Tensor
    channels_last: bool = False

    @staticmethod
    def by(mean: Tensor, std: Tensor, channels_last: bool = False) -> Normalise:
        """For mean and standard deviation float32 [C] of images in the range [0, 1]."""
        return Normalise((1 / (255 * std))[:, None, None], (mean / std)[:, None, None], channels_last)

    @property
    def layout(self) -> torch.memory_format:
        """Memory format of what it makes."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def __call__(self, x: Tensor) -> Tensor:
        return x.to(torch.float32, memory_format=self.layout).mul_(self.scale).sub_(self.offset)


@dataclass(frozen=True)
class _Epoch:
    """The random decisions of one epoch: order of the examples and, for each place in it, window and mirroring."""

    order: Tensor
    down: Tensor
    right: Tensor
    flip: Tensor

    @staticmethod
    def draw(examples: int, seed: int, epoch: int, augment: Augment, device: torch.device) -> _Epoch:
        """Draws on the CPU, so that every device sees the same batches, and moves the result once."""
        generator = make_generator("epoch", seed, epoch)
        moves = 2 * PADDING[augment] + 1
        order = torch.randperm(examples, generator=generator)
        windows = torch.randint(moves, (2, examples), generator=generator)
        flip = torch.rand(examples, generator=generator) < (0.5 if augment in MIRRORING else 0.0)
        return _Epoch(order.to(device), windows[0].to(device), windows[1].to(device), flip.to(device))


def planned(examples: int, batch_size: int, epochs: int | None, start_step: int) -> tuple[int, int | None]:
    """Steps of an epoch, and how many steps a stream has in all, or None; raises ValueError for what no stream can be."""
    if not 1 <= batch_size <= examples:
        raise ValueError(f"batches: batch_size: expected an integer in [1, {examples}], got {batch_size}")
    if epochs is not None and epochs < 0:
        raise ValueError(f"batches: epochs: expected an integer >= 0 or None, got {epochs}")
    if start_step < 0:
        raise ValueError(f"batches: start_step: expected an integer >= 0, got {start_step}")
    steps = examples // batch_size
    return steps, None if epochs is None else epochs * steps


class BatchStream(Iterator[Batch]):
    """Shuffled, augmented, normalised batches; the last, smaller batch of an epoch is dropped.

    Batch number t depends on (images, batch_size, seed, t) alone: equal seeds give equal batches on every device, and a
    stream that starts at step t continues one that stopped there, at no cost for the batches before.

    Args:
        x: uint8 [N, C, H, W].
        y: int64 [N], same device.
        normalise: turns bytes into numbers.
        augment: one of AUGMENTS.
        batch_size: in [1, N].
        seed: any integer.
        epochs: number of epochs from step 0 on, >= 0; None never ends.
        start_step: number of the first batch, >= 0.

    Attributes:
        step: number of the next batch; pass it as start_step to continue in another process.
        steps_per_epoch: N // batch_size.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        normalise: Normalise,
        *,
        augment: Augment,
        batch_size: int,
        seed: int,
        epochs: int | None = None,
        start_step: int = 0,
    ) -> None:
        self.steps_per_epoch, self._end = planned(x.shape[0], batch_size, epochs, start_step)
        self._x, self._y, self._normalise = x, y, normalise
        self._augment: Augment = augment
        self._batch_size, self._seed = batch_size, seed
        self.step = start_step
        self._drawn: tuple[int, _Epoch] | None = None
        self._made: tuple[tuple[int, int], Batch] | None = None

    def __next__(self) -> Batch:
        if self._end is not None and self.step >= self._end:
            raise StopIteration
        number, place = divmod(self.step, self.steps_per_epoch)
        block, within = divmod(place, AHEAD.get(self._x.device.type, 1))
        if self._made is None or self._made[0] != (number, block):
            self._made = (number, block), self._make(self._epoch(number), block)
        self.step += 1
        window = slice(within * self._batch_size, (within + 1) * self._batch_size)
        x, y = self._made[1]
        return x[window], y[window]

    def _make(self, epoch: _Epoch, block: int) -> Batch:
        """Some batches in one, as a GPU spends its time on launching what one batch needs."""
        size = AHEAD.get(self._x.device.type, 1) * self._batch_size
        window = slice(block * size, min((block + 1) * size, self.steps_per_epoch * self._batch_size))
        chosen = epoch.order[window]
        x, padding = self._x[chosen], PADDING[self._augment]
        moves = epoch.down[window], epoch.right[window], epoch.flip[window]
        if self._augment == "crop-flip-mean":  # zeros are the mean colour behind the normalisation, and black before it
            x = crop_flip(self._normalise(x), *moves, padding)
            return x.contiguous(memory_format=self._normalise.layout), self._y[chosen]
        if self._augment != "none":
            x = crop_flip(x, *moves, padding)
        return self._normalise(x), self._y[chosen]

    def _epoch(self, number: int) -> _Epoch:
        if self._drawn is None or self._drawn[0] != number:
            drawn = _Epoch.draw(self._x.shape[0], self._seed, number, self._augment, self._x.device)
            self._drawn = (number, drawn)
        return self._drawn[1]
