# SPDX-License-Identifier: Apache-2.0
"""Folders of small generated images in the layouts of Tiny-ImageNet and ImageNet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

WNIDS = ("n01443537", "n01629819", "n02098286")


def write_image(path: Path, seed: int, size: tuple[int, int], grey: bool = False) -> None:
    """A smooth random picture, whose mean colour tells of the seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    (image.convert("L") if grey else image).save(path, quality=95)


def write_tiny_imagenet(root: Path, train: int = 8, val: int = 6, size: int = 64) -> Path:
    """tiny-imagenet-200 with three classes, ``train`` and ``val`` images of each; one of them is grey."""
    folder = root / "tiny-imagenet-200"
    for label, wnid in enumerate(WNIDS):
        for i in range(train):
            path = folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG"
            write_image(path, 100 * label + i, (size, size), grey=(label, i) == (1, 1))
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("x")
    lines = []
    for i in range(3 * val):
        name = f"val_{i}.JPEG"
        write_image(folder / "val" / "images" / name, 1000 + i, (size, size))
        lines.append(f"{name}\t{WNIDS[i % 3]}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    write_image(folder / "test" / "images" / "test_0.JPEG", 5, (size, size))
    return folder


def write_imagenet(root: Path, train: int = 6, val: int = 4) -> Path:
    """train/ and val/ with three classes and images of all forms."""
    for part, count, shift in (("train", train, 0), ("val", val, 5000)):
        for label, wnid in enumerate(WNIDS):
            for i in range(count):
                size = ((96, 64), (64, 96), (80, 80), (300, 40))[(i + label) % 4]
                path = root / part / wnid / f"{wnid}_{i}.JPEG"
                write_image(path, shift + 100 * label + i, size, grey=(label, i) == (1, 1))
    return root
