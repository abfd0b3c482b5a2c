# SPDX-License-Identifier: Apache-2.0
"""Image classification data as uint8 tensors that fit in memory, with an honest validation split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from sparsekit.benchmarks.batches import AUGMENTS, Augment, Batch, BatchStream, Normalise
from sparsekit.benchmarks.image_folder import load_image_folder
from sparsekit.benchmarks.imagenet import IMAGENET, StreamedData, load_imagenet
from sparsekit.benchmarks.images import Arrays, resize, statistics_of
from sparsekit.benchmarks.packaged import PACKAGED, load_packaged
from sparsekit.benchmarks.splits import SPLITS, Split, plan_splits
from sparsekit.benchmarks.streaming import FileStream
from sparsekit.benchmarks.tiny_imagenet import TINY, load_tiny_imagenet


class Images(Protocol):
    """What training needs of data, in memory (Data) or not (StreamedData): sizes, labels of a split, batches."""

    @property
    def classes(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def image_size(self) -> int: ...
    @property
    def device(self) -> torch.device: ...

    def labels(self, split: Split) -> Tensor: ...
    def batches(
        self, split: Split = "train", *, batch_size: int, seed: int, epochs: int | None = None, start_step: int = 0
    ) -> BatchStream | FileStream: ...
    def evaluation(self, split: Split = "test") -> Iterator[Batch]: ...


@dataclass(frozen=True, eq=False)
class Data:
    """Train, validation and test images on one device.

    Args:
        name: what load_data was asked for.
        x_train, x_val, x_test: uint8 [N, C, S, S].
        y_train, y_val, y_test: int64 [N] in [0, classes).
        mean, std: float32 [C], of the training images in the range [0, 1].
        class_names: one name per class.
        augment: what `batches("train", ...)` does to the images: "none", "shift" (by at most one pixel), "crop-flip"
            (shift by at most four pixels and mirror; what comes in is black) or "crop-flip-mean" (of the mean colour).
        channels_last: memory format of the batches.

    Raises:
        ValueError: wrong dtype or shape, no training images, or a label out of range.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_val: Tensor
    y_val: Tensor
    x_test: Tensor
    y_test: Tensor
    mean: Tensor
    std: Tensor
    class_names: tuple[str, ...]
    augment: Augment = "none"
    channels_last: bool = False

    def __post_init__(self) -> None:
        image = self.x_train.shape[1:]
        if self.x_train.ndim != 4 or image[1] != image[2] or not self.x_train.numel():
            shape = tuple(self.x_train.shape)
            raise ValueError(f"Data: x_train: expected shape [N >= 1, C, S, S], got {shape}")
        if self.augment not in AUGMENTS:
            raise ValueError(f"Data: augment: expected one of {', '.join(AUGMENTS)}, got {self.augment!r}")
        for split in SPLITS:
            x, y = self.split(split)
            if x.dtype != torch.uint8 or x.shape[1:] != image:
                got = f"{x.dtype} {tuple(x.shape)}"
                raise ValueError(f"Data: x_{split}: expected torch.uint8 images of shape {tuple(image)}, got {got}")
            if y.dtype != torch.int64 or y.shape != x.shape[:1]:
                got = f"{y.dtype} {tuple(y.shape)}"
                raise ValueError(f"Data: y_{split}: expected torch.int64 of shape {tuple(x.shape[:1])}, got {got}")
            for label in (y.min(), y.max()) if y.numel() else ():
                if not 0 <= label < self.classes:
                    raise ValueError(f"Data: y_{split}: expected labels in [0, {self.classes}), got {int(label)}")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.x_train.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width of an image in pixels."""
        return self.x_train.shape[2]

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.x_train.device

    def split(self, split: Split) -> tuple[Tensor, Tensor]:
        """Raw images uint8 [N, C, S, S] and labels int64 [N] of "train", "val" or "test"."""
        if split not in SPLITS:
            raise ValueError(f"Data: split: expected one of {', '.join(SPLITS)}, got {split!r}")
        return getattr(self, f"x_{split}"), getattr(self, f"y_{split}")

    def labels(self, split: Split) -> Tensor:
        """int64 [N]."""
        return self.split(split)[1]

    def to(self, device: torch.device | str) -> Data:
        """The same data on `device`."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in tensors.items() if isinstance(v, Tensor)})

    def batches(
        self, split: Split = "train", *, batch_size: int, seed: int, epochs: int | None = None, start_step: int = 0
    ) -> BatchStream:
        """Shuffled batches, augmented if `split` is "train"; see BatchStream for the promises and the arguments."""
        x, y = self.split(split)
        return BatchStream(
            x,
            y,
            Normalise.by(self.mean, self.std, self.channels_last),
            augment=self.augment if split == "train" else "none",
            batch_size=batch_size,
            seed=seed,
            epochs=epochs,
            start_step=start_step,
        )

    def evaluation(self, split: Split = "test", *, batch_size: int = 1024) -> Iterator[Batch]:
        """Every example of `split` once, in order, never augmented; the last batch may be smaller."""
        if batch_size < 1:
            raise ValueError(f"evaluation: batch_size: expected an integer >= 1, got {batch_size}")
        x, y = self.split(split)
        pairs = zip(x.split(batch_size), y.split(batch_size), strict=True)
        normalise = Normalise.by(self.mean, self.std, self.channels_last)
        return ((normalise(images), labels) for images, labels in pairs if labels.numel())


def load_data(
    name: str, *, seed: int, limit: int | None = None, root: str | Path = ".data", image_size: int | None = None
) -> Data | StreamedData:
    """Loads a data set: into memory, but for ImageNet.

    The validation set is carved out of the training set (one in ten, at most 10,000), never out of the test set; it
    depends on neither `seed` nor the machine. The papers' own variants have none, but for tiny-imagenet-bip.

    Args:
        name: "digits" (1,797 images of 8x8 pixels that come with scikit-learn), "cifar10", "cifar100" (torchvision's
            files under `root`); as in the papers "cifar10-full", "cifar100-full" (all 50,000 images to train on, the
            printed mean and deviation), "tiny-imagenet" (SpODE's), "tiny-imagenet-bip" (see load_tiny_imagenet),
            "imagenet" and "imagenet-spode" (see load_imagenet); or a folder of images, see load_image_folder.
        seed: draws the examples that `limit` keeps.
        limit: at most this many examples of each split, >= 1, class shares kept; None keeps all.
        root: folder of downloaded data and of the cache of decoded folders.
        image_size: pixels per side to scale to; None keeps the size of the images.

    Raises:
        ValueError: unknown name, missing files or packages, argument out of range, labels or images that do not fit.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"load_data: image_size: expected an integer >= 1 or None, got {image_size}")
    how = {"seed": seed, "limit": limit, "image_size": image_size}
    if name in IMAGENET:
        return load_imagenet(name, Path(root), **how)  # pyright: ignore[reportArgumentType]
    if name in TINY:
        arrays, class_names = load_tiny_imagenet(name, Path(root), **how)  # pyright: ignore[reportArgumentType]
    elif name in PACKAGED:
        arrays, class_names = load_packaged(name, Path(root))
        arrays = _choose(arrays, **how)  # pyright: ignore[reportArgumentType]
    elif Path(name).is_dir():
        cache = Path(root) / ".cache"
        arrays, class_names = load_image_folder(Path(name), cache=cache, **how)  # pyright: ignore[reportArgumentType]
    else:
        known = ", ".join((*PACKAGED, *TINY, *IMAGENET))
        raise ValueError(f"load_data: name: expected {known} or a folder of images, got {name!r} (no such folder)")
    mean, std = statistics_of(name, arrays["train"][0])
    tensors = {f"{kind}_{split}": part for split, pair in arrays.items() for kind, part in zip("xy", pair, strict=True)}
    augment: Augment = "crop-flip" if name != "digits" and arrays["train"][0].shape[-1] >= 32 else "none"
    augment = "crop-flip-mean" if name == "tiny-imagenet-bip" else augment
    return Data(name=name, mean=mean, std=std, class_names=class_names, augment=augment, **tensors)


def _choose(arrays: Arrays, *, limit: int | None, seed: int, image_size: int | None) -> Arrays:
    """Carves the missing splits, applies the limit and scales what is left."""
    plan = plan_splits({split: y for split, (_, y) in arrays.items()}, limit=limit, seed=seed)
    chosen: Arrays = {}
    for split, (source, positions) in plan.items():
        x, y = (part[positions] for part in arrays[source])
        chosen[split] = (x if image_size is None else resize(x, image_size), y)
    return chosen
