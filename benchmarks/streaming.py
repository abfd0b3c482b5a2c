# SPDX-License-Identifier: Apache-2.0
"""Seeded, resumable streams of batches from image files that do not fit in memory: decoded and cropped by worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sparsekit.benchmarks.batches import Batch, Normalise, planned
from sparsekit.benchmarks.image_files import decoded
from sparsekit.benchmarks.random_crop import Cut, centre_crop, generator_of
from sparsekit.benchmarks.splits import make_generator

WORKERS = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
"""Processes that decode; 0 decodes in this one. It changes nothing but time."""

Key = tuple[int, int, int]
"""(epoch, place in it, number of the image)"""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Files and labels of one split; small enough for the memory, and without an object for each file.

    root: folder that the names are relative to. names: bytes [N], encoded as file names are. labels: int64 [N].
    """

    root: Path
    names: np.ndarray
    labels: Tensor

    def path(self, number: int) -> Path:
        """Where an image lies."""
        return self.root / os.fsdecode(bytes(self.names[number]))

    def chosen(self, positions: Tensor) -> ImageFiles:
        """Some of them, by int64 positions."""
        return ImageFiles(self.root, self.names[positions.numpy()], self.labels[positions])


class _Decoder(Dataset[Any]):
    """Key -> uint8 image [3, size, size] and label, or what is wrong with the file, in words."""

    def __init__(self, files: ImageFiles, size: int, cut: tuple[Cut, int] | None) -> None:
        self._files, self._size, self._cut = files, size, cut

    def __getitem__(self, key: Key) -> tuple[Tensor, int] | str:
        epoch, place, number = key
        try:
            image = decoded(self._files.path(number), "RGB")
        except ValueError as error:
            return str(error)
        if self._cut is None:
            image = centre_crop(image, self._size)
        else:
            cut, seed = self._cut
            image = cut(image, self._size, generator_of("crop", seed, epoch, place))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels, int(self._files.labels[number])


def _collated(items: list[tuple[Tensor, int] | str]) -> tuple[Tensor, Tensor] | str:
    """A batch, or the first error in it: an exception that crosses processes arrives as a page of text."""
    whole = [item for item in items if not isinstance(item, str)]
    if len(whole) < len(items):
        return next(item for item in items if isinstance(item, str))
    return torch.stack([x for x, _ in whole]), torch.tensor([y for _, y in whole], dtype=torch.int64)


def loaded(
    files: ImageFiles,
    keys: Iterator[list[Key]],
    size: int,
    cut: tuple[Cut, int] | None,
    normalise: Normalise,
    device: torch.device,
) -> Iterator[Batch]:
    """Batches of the images that ``keys`` names, in that order, normalised on ``device``.

    Args:
        size: pixels per side. cut: what is done to the images, and the seed of its draws; None cuts out the centre.

    Raises:
        ValueError: a file that is no image.
    """
    # A generator of its own: a loader draws a seed for its workers, which must not move the random numbers of a run.
    loader = DataLoader(
        _Decoder(files, size, cut),
        batch_sampler=keys,  # pyright: ignore[reportArgumentType]
        num_workers=WORKERS,
        collate_fn=_collated,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(0),
    )
    for batch in loader:
        if isinstance(batch, str):
            raise ValueError(batch)
        x, y = (part.to(device, non_blocking=True) for part in batch)
        yield normalise(x), y


class FileStream(Iterator[Batch]):
    """Shuffled batches of augmented images; the last, smaller batch of an epoch is dropped. As BatchStream, of files.

    Batch number t depends on (files, batch_size, seed, t) alone, whatever the number of workers: order and draws come from
    hashes of seed, epoch and place. A stream that starts at step t continues one that stopped there, and decodes nothing of
    what lies before. Pixels are those of the installed pillow, whose versions may differ in the last bit.

    Args:
        files, size, normalise, device: see loaded. cut: what is done to the images.
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
        files: ImageFiles,
        size: int,
        cut: Cut,
        normalise: Normalise,
        device: torch.device,
        *,
        batch_size: int,
        seed: int,
        epochs: int | None = None,
        start_step: int = 0,
    ) -> None:
        examples = len(files.labels)
        self.steps_per_epoch, self._end = planned(examples, batch_size, epochs, start_step)
        self._batch_size, self._seed = batch_size, seed
        self.step = start_step
        self._batches = loaded(files, self._keys(examples, start_step), size, (cut, seed), normalise, device)

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self.step += 1
        return batch

    def _keys(self, examples: int, first: int) -> Iterator[list[Key]]:
        order, drawn = torch.empty(0), -1
        for step in count(first) if self._end is None else range(first, self._end):
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != drawn:
                order, drawn = torch.randperm(examples, generator=make_generator("epoch", self._seed, epoch)), epoch
            begin = place * self._batch_size
            chosen = order[begin : begin + self._batch_size].tolist()
            yield [(epoch, begin + i, number) for i, number in enumerate(chosen)]


def in_order(examples: int, batch_size: int) -> Iterator[list[Key]]:
    """Keys of every image once; the last batch may be smaller."""
    for begin in range(0, examples, batch_size):
        yield [(0, number, number) for number in range(begin, min(begin + batch_size, examples))]
