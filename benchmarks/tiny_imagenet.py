# SPDX-License-Identifier: Apache-2.0
"""Tiny-ImageNet as the papers use it: 200 classes, 100,000 training images of 64 pixels, 10,000 labelled ones besides.

"tiny-imagenet", as SpODE: all training images, and all 10,000 others are the test set; there is no validation set.
"tiny-imagenet-bip", as BiP: the 10,000 are cut in two halves of 25 images for each class; one is the test set, the other the
validation set. Which image is in which half is not published; here it is drawn once and for all.

Both are augmented by crops of 64 pixels out of the image with 4 more on each side, and mirrored. BiP crops images that are
normalised already, so what is added has the mean colour; SpODE's released code crops before, so it is black. Mean and
deviation are those of each code: ImageNet's with BiP, those of the 200 classes with SpODE. BiP's released code loses the last
image of a set, which is not imitated.
"""

from __future__ import annotations

from pathlib import Path

import torch

from sparsekit.benchmarks.image_files import Example
from sparsekit.benchmarks.image_folder import ANNOTATIONS, decode_splits, list_splits
from sparsekit.benchmarks.images import Arrays
from sparsekit.benchmarks.splits import SPLIT_SEED, Split, draw_stratified, make_generator

TINY = ("tiny-imagenet", "tiny-imagenet-bip")
ARCHIVE = "tiny-imagenet-200"
ADDRESS = f"http://cs231n.stanford.edu/{ARCHIVE}.zip"


def load_tiny_imagenet(
    name: str, root: Path, *, seed: int, limit: int | None, image_size: int | None
) -> tuple[Arrays, tuple[str, ...]]:
    """Images, labels and class names (WordNet ids) of one of TINY.

    Args:
        root: holds the folder tiny-imagenet-200, or is it.
        seed, limit, image_size: see load_data.

    Raises:
        ValueError: the folder is missing or not of that layout; the message says how to get it.
    """
    folder = _folder(root)
    listed, class_names = list_splits(folder)
    listed = {"train": listed["train"], **_halves(listed["test"], name)}
    arrays = decode_splits(folder, listed, seed=seed, limit=limit, cache=root / ".cache", image_size=image_size)
    return arrays, class_names


def _folder(root: Path) -> Path:
    for folder in (root / ARCHIVE, root):
        if (folder / "train").is_dir() and (folder / "val" / ANNOTATIONS).is_file():
            return folder
    raise ValueError(
        f"load_data: root: expected {ARCHIVE} under {root} with train/ and val/{ANNOTATIONS}, got neither; get it with "
        f"curl -L {ADDRESS} -o {root / ARCHIVE}.zip && unzip -q {root / ARCHIVE}.zip -d {root}"
    )


def _halves(examples: list[Example], name: str) -> dict[Split, list[Example]]:
    """The test and the validation set of the 10,000 labelled images that are not for training."""
    if name == "tiny-imagenet":
        return {"val": [], "test": examples}
    labels = torch.tensor([example.label for example in examples], dtype=torch.int64)
    halves = draw_stratified(labels, len(examples) // 2, make_generator("tiny-imagenet-bip", SPLIT_SEED))
    splits: tuple[Split, Split] = ("test", "val")
    return {split: [examples[i] for i in half.tolist()] for split, half in zip(splits, halves, strict=True)}
