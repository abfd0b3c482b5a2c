# SPDX-License-Identifier: Apache-2.0
"""Data sets that other packages provide: scikit-learn's digits and torchvision's CIFAR."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import torch

from sparsekit.benchmarks.images import Arrays
from sparsekit.benchmarks.splits import Split

FULL = "-full"
PACKAGED = ("digits", "cifar10", "cifar100", f"cifar10{FULL}", f"cifar100{FULL}")
"""The papers train on all 50,000 images of CIFAR; "-full" does so too, and has no validation set."""


def load_packaged(name: str, root: Path) -> tuple[Arrays, tuple[str, ...]]:
    """Images, labels and class names of one of PACKAGED, in the splits that its authors made.

    Raises:
        ValueError: a package or the files under `root` are missing.
    """
    if name == "digits":
        return _digits()
    arrays, class_names = _cifar(name.removesuffix(FULL), root)
    if name.endswith(FULL):
        arrays["val"] = tuple(part[:0] for part in arrays["train"])  # pyright: ignore[reportArgumentType]
    return arrays, class_names


def required(module: str, package: str, name: str) -> Any:
    """The imported module, or a ValueError that says how to get it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"load_data: name: {name!r} expected the package {package} (pip install {package}), got none"
        ) from error


def _digits() -> tuple[Arrays, tuple[str, ...]]:
    """scikit-learn's digits; grey values 0..16 are stretched to 0..255."""
    bunch = required("sklearn.datasets", "scikit-learn", "digits").load_digits()
    x = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)[:, None]
    y = torch.from_numpy(bunch.target).to(torch.int64)
    return {"train": (x, y)}, tuple(str(name) for name in bunch.target_names)


def _cifar(name: str, root: Path) -> tuple[Arrays, tuple[str, ...]]:
    """torchvision's CIFAR, whose checksums are verified before anything is read."""
    title = name.upper()
    dataset = getattr(required("torchvision.datasets", "torchvision", name), title)
    arrays: Arrays = {}
    class_names: tuple[str, ...] = ()
    splits: tuple[tuple[Split, bool], ...] = (("train", True), ("test", False))
    for split, train in splits:
        try:
            with warnings.catch_warnings():
                # The published files are old pickles, about which new versions of numpy warn.
                warnings.simplefilter("ignore")
                part = dataset(str(root), train=train, download=False)
        except RuntimeError as error:
            command = f'python -c "import torchvision as tv; tv.datasets.{title}({str(root)!r}, download=True)"'
            raise ValueError(
                f"load_data: root: expected the files of {title} under {root}, got none that pass their checksums; "
                f"get them with {command}"
            ) from error
        x = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        arrays[split] = (x, torch.tensor(part.targets, dtype=torch.int64))
        class_names = tuple(part.classes)
    return arrays, class_names
