# SPDX-License-Identifier: Apache-2.0
"""ImageNet (ILSVRC 2012) from its files: train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, streamed.

Training images are random windows (8 to 100 % of the area) scaled to 224 pixels and mirrored, or as in SpODE's released code
smaller windows with random colours; test images are the centre of 224 pixels of the image scaled to 256; mean and standard
deviation are the usual ones. All training images serve for training and all of val/ for the test, as in the papers; there is
no validation set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsekit.benchmarks.batches import Batch, Normalise
from sparsekit.benchmarks.colours import spode_crop
from sparsekit.benchmarks.image_files import SUFFIXES
from sparsekit.benchmarks.images import PUBLISHED
from sparsekit.benchmarks.packaged import required
from sparsekit.benchmarks.random_crop import Cut, random_resized_crop
from sparsekit.benchmarks.splits import SPLITS, Split, plan_splits
from sparsekit.benchmarks.streaming import FileStream, ImageFiles, in_order, loaded

SIZE = 224

IMAGENET: dict[str, Cut] = {"imagenet": random_resized_crop, "imagenet-spode": spode_crop}
"""What is done to training images, by the name of the data."""


@dataclass(frozen=True, eq=False)
class StreamedData:
    """Image classification data that stays on disk; what Data offers, but for the tensors of images.

    name: what load_data was asked for. files: of each split, perhaps none. mean, std: per channel, of numbers in [0, 1].
    image_size: pixels per side of what the batches hold. device: where they go. channels_last: their memory format.
    cut: what is done to training images.
    """

    name: str
    files: Mapping[Split, ImageFiles]
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int = SIZE
    device: torch.device = torch.device("cpu")
    channels_last: bool = False
    channels: int = 3
    cut: Cut = random_resized_crop

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def labels(self, split: Split) -> Tensor:
        """int64 [N], on the CPU."""
        return self.files[split].labels

    def to(self, device: torch.device | str) -> StreamedData:
        """The same data with batches on ``device``."""
        return replace(self, device=torch.device(device))

    def batches(
        self, split: Split = "train", *, batch_size: int, seed: int, epochs: int | None = None, start_step: int = 0
    ) -> FileStream:
        """Shuffled batches of augmented images; see FileStream."""
        how = {"batch_size": batch_size, "seed": seed, "epochs": epochs, "start_step": start_step}
        return FileStream(self.files[split], self.image_size, self.cut, self._normalise(), self.device, **how)  # pyright: ignore

    def evaluation(self, split: Split = "test", *, batch_size: int = 256) -> Iterator[Batch]:
        """Every example of ``split`` once, in order, its centre; the last batch may be smaller."""
        if batch_size < 1:
            raise ValueError(f"evaluation: batch_size: expected an integer >= 1, got {batch_size}")
        files = self.files[split]
        keys = in_order(len(files.labels), batch_size)
        return loaded(files, keys, self.image_size, None, self._normalise(), self.device)

    def _normalise(self) -> Normalise:
        mean, std = (torch.tensor(values, device=self.device) for values in (self.mean, self.std))
        return Normalise.by(mean, std, self.channels_last)


def load_imagenet(name: str, root: Path, *, seed: int, limit: int | None, image_size: int | None) -> StreamedData:
    """ImageNet, ready to be streamed; only names are read.

    Args:
        name: of IMAGENET; "imagenet-spode" needs torchvision.
        root: holds train/ and val/, or the folder imagenet/ with these.
        seed: draws the examples that ``limit`` keeps.
        limit: at most this many examples of each split, class shares kept; None keeps all.
        image_size: pixels per side of the windows; 224 if None, and then the centre is cut out of 256.

    Raises:
        ValueError: the folders are missing, empty or of other classes, and the message says where to get them; no torchvision.
    """
    if name != "imagenet":
        required("torchvision.transforms.v2.functional", "torchvision", name)
    folder = _folder(root)
    class_names = tuple(sorted(entry.name for entry in os.scandir(folder / "train") if entry.is_dir()))
    found = {"train": _listed(folder, "train", class_names), "test": _listed(folder, "val", class_names)}
    found["val"] = found["train"].chosen(torch.empty(0, dtype=torch.int64))
    plan = plan_splits({split: found[split].labels for split in SPLITS}, limit=limit, seed=seed)
    files = {split: found[source].chosen(positions) for split, (source, positions) in plan.items()}
    mean, std = PUBLISHED[name]
    return StreamedData(name, files, class_names, mean, std, image_size or SIZE, cut=IMAGENET[name])


def _folder(root: Path) -> Path:
    for folder in (root / "imagenet", root):
        if (folder / "train").is_dir() and (folder / "val").is_dir():
            return folder
    tool = f"torchvision.datasets.ImageNet({str(root)!r}, split=s)"
    raise ValueError(
        f"load_data: root: expected train/ and val/ with one folder per class under {root}, got neither; get "
        "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz from "
        f"https://image-net.org/download-images (login) into it, and unpack them with "
        f"python -c \"import torchvision; [{tool} for s in ('train', 'val')]\""
    )


def _listed(folder: Path, part: str, class_names: tuple[str, ...]) -> ImageFiles:
    """Every image below the folders of the classes, by class, then by path, as torchvision's ImageFolder lists them."""
    present = {entry.name for entry in os.scandir(folder / part) if entry.is_dir()}
    if strange := sorted(present.symmetric_difference(class_names)):
        raise ValueError(
            f"load_data: root: expected the same classes in train/ and val/, got {strange[0]!r} in one of them"
        )
    names: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        inside = [
            os.path.join(place, file)
            for place, _, files in sorted(os.walk(folder / part / name))
            for file in sorted(files)
            if os.path.splitext(file)[1].lower() in SUFFIXES
        ]
        if not inside:
            raise ValueError(f"load_data: root: expected images in {folder / part / name}, got none")
        names += [os.fsencode(os.path.relpath(file, folder)) for file in inside]
        labels += [label] * len(inside)
    return ImageFiles(folder, np.array(names, dtype=np.bytes_), torch.tensor(labels, dtype=torch.int64))
