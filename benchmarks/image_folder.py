# SPDX-License-Identifier: Apache-2.0
"""Folders of images, one subfolder per class: listed, split, decoded once, cached as one safetensors file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsekit.benchmarks.image_files import SUFFIXES, Example, decode_all
from sparsekit.benchmarks.images import Arrays
from sparsekit.benchmarks.splits import SPLITS, Split, plan_splits

ANNOTATIONS = "val_annotations.txt"
CACHE_VERSION = 1
log = logging.getLogger(__name__)


def load_image_folder(
    folder: Path, *, seed: int, limit: int | None, cache: Path, image_size: int | None
) -> tuple[Arrays, tuple[str, ...]]:
    """Loads `folder`, which holds either subfolders train/ and test/ (or val/), or the classes themselves.

    With train/, val/ and test/ all three serve as named; with train/ and one other, that one is the test set, and the
    validation set is carved out of train/. Without train/ both are carved out. Where val/ has a val_annotations.txt
    (Tiny-ImageNet), it is the test set, and test/, whose labels are not public, is ignored. Classes are the names of
    the subfolders in sorted order; images may lie deeper.

    Args:
        folder: the folder.
        seed: draws the examples that `limit` keeps.
        limit: at most this many examples of each split; only these are decoded.
        cache: folder of the decoded copy; its name depends on the names, sizes and times of the chosen files.
        image_size: the shorter side is scaled to it, then the centre is cut out; None demands equal square images.

    Returns:
        Images (three channels, or one if every image is grey) and labels of each split, and the class names.
    """
    listed, class_names = list_splits(folder)
    return decode_splits(folder, listed, seed=seed, limit=limit, cache=cache, image_size=image_size), class_names


def decode_splits(
    folder: Path,
    listed: dict[Split, list[Example]],
    *,
    seed: int,
    limit: int | None,
    cache: Path,
    image_size: int | None,
) -> Arrays:
    """Images and labels of each split of what ``folder`` offers, a missing split carved out; see load_image_folder."""
    labels: dict[Split, Tensor] = {
        split: torch.tensor([example.label for example in examples], dtype=torch.int64)
        for split, examples in listed.items()
    }
    chosen: dict[Split, list[Example]] = {
        split: [listed[source][i] for i in positions.tolist()]
        for split, (source, positions) in plan_splits(labels, limit=limit, seed=seed).items()
    }
    path = cache / f"{_fingerprint(folder, chosen, image_size)}.safetensors"
    tensors = _read_cache(path)
    if tensors is None:
        tensors = decode_all(chosen, image_size)
        _write_cache(path, tensors)
    return {split: (tensors[f"x_{split}"], tensors[f"y_{split}"]) for split in SPLITS}


def list_splits(folder: Path) -> tuple[dict[Split, list[Example]], tuple[str, ...]]:
    """Files and labels of the splits that the folder offers, and the class names."""
    train = folder / "train" if (folder / "train").is_dir() else folder
    class_names = tuple(sorted(path.name for path in train.iterdir() if path.is_dir() and path.name[0] != "."))
    if not class_names:
        raise ValueError(f"load_data: name: expected one subfolder per class in {train}, got none")
    splits: dict[Split, list[Example]] = {"train": _list_classes(train, class_names)}
    missing = set(range(len(class_names))) - {example.label for example in splits["train"]}
    if missing:
        raise ValueError(f"load_data: name: expected images in {train / class_names[min(missing)]}, got none")
    if train == folder:
        return splits, class_names
    test, val = folder / "test", folder / "val"
    if (val / ANNOTATIONS).is_file():
        splits["test"] = _list_annotated(val, class_names)
    elif test.is_dir():
        splits["test"] = _list_classes(test, class_names)
        if val.is_dir():
            splits["val"] = _list_classes(val, class_names)
    elif val.is_dir():
        splits["test"] = _list_classes(val, class_names)
    return splits, class_names


def _label(name: str, class_names: tuple[str, ...], where: Path) -> int:
    """Position of a class name, or a ValueError that says where it came from."""
    if name not in class_names:
        raise ValueError(f"load_data: name: expected in {where} only classes of the training set, got {name!r}")
    return class_names.index(name)


def _list_classes(folder: Path, class_names: tuple[str, ...]) -> list[Example]:
    """All images below the class folders, by class, then by path."""
    examples: list[Example] = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name[0] != ".":
            label = _label(path.name, class_names, folder)
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.name[0] != ".")
            examples += [Example(file, label) for file in files]
    return examples


def _list_annotated(folder: Path, class_names: tuple[str, ...]) -> list[Example]:
    """Images of Tiny-ImageNet's val/, whose classes stand in a table of file name, class and more."""
    table = folder / ANNOTATIONS
    rows = [line.split("\t") for line in table.read_text().splitlines() if line]
    return [Example(folder / "images" / row[0], _label(row[1], class_names, table)) for row in sorted(rows)]


def _fingerprint(folder: Path, chosen: dict[Split, list[Example]], image_size: int | None) -> str:
    """Changes with the choice of files, their sizes and times, and the form they are decoded to."""
    digest = hashlib.sha256(json.dumps([CACHE_VERSION, str(folder.resolve()), image_size]).encode())
    for split, examples in chosen.items():
        for path, label in examples:
            status = path.stat()
            entry = [split, str(path.relative_to(folder)), label, status.st_size, status.st_mtime_ns]
            digest.update(json.dumps(entry).encode())
    return digest.hexdigest()[:32]


def _read_cache(path: Path) -> dict[str, Tensor] | None:
    """The cached tensors; None if there are none or they are damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError) as error:
        log.warning("cache %s cannot be read and is made anew: %s", path, error)
        return None


def _write_cache(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes beside the final name and renames, so that readers see all or nothing."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial)
        os.replace(partial, path)
    except (SafetensorError, OSError) as error:
        if partial.exists():
            partial.unlink()
        log.warning("cache %s cannot be written; the images will be decoded again: %s", path, error)
