# SPDX-License-Identifier: Apache-2.0
"""Decodes image files into one uint8 tensor."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

    from sparsekit.benchmarks.splits import Split

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}

MEMORY_SHARE = 0.8
"""Refuse to decode more than this share of the machine's memory."""


class Example(NamedTuple):
    """One image file and the number of its class."""

    path: Path
    label: int


def decode_all(chosen: dict[Split, list[Example]], image_size: int | None) -> dict[str, Tensor]:
    """Decodes on all cores.

    Args:
        chosen: the examples of each split.
        image_size: the shorter side is scaled to it, then the centre is cut out; None demands equal square images.

    Returns:
        uint8 images x_SPLIT [N, C, S, S], C = 1 if every image is grey, else 3, and int64 labels y_SPLIT [N].

    Raises:
        ValueError: an unreadable file, unequal images without image_size, or more than the memory holds.
    """
    mode, size = _common_form([example.path for examples in chosen.values() for example in examples], image_size)
    channels = len(mode)
    _require_memory(sum(map(len, chosen.values())) * channels * size * size)
    tensors: dict[str, Tensor] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for split, examples in chosen.items():
            x = np.empty((len(examples), channels, size, size), dtype=np.uint8)
            rooms = pool.map(_decode_into, x, [example.path for example in examples])
            for _ in rooms:  # drawn so that errors of the workers surface
                pass
            tensors[f"x_{split}"] = torch.from_numpy(x)
            tensors[f"y_{split}"] = torch.tensor([example.label for example in examples], dtype=torch.int64)
    return tensors


def open_image(path: Path) -> Image:
    """Reads the header. Raises ValueError if it is none of an image, or pillow is missing."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise ValueError("load_data: name: a folder needs the package pillow (pip install pillow), got none") from error
    try:
        return Image.open(path)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"load_data: name: expected an image in {path}, got {error}") from error


def _common_form(paths: list[Path], image_size: int | None) -> tuple[str, int]:
    """Pillow mode "L" if every image is grey, else "RGB", and pixels per side, from the headers alone."""
    grey = True
    sizes: set[tuple[int, int]] = set()
    for path in paths:
        with open_image(path) as image:
            grey = grey and image.mode in ("1", "L")
            sizes.add(image.size)
    if image_size is None:
        width, height = min(sizes)
        if len(sizes) > 1 or width != height:
            got = ", ".join(f"{w} x {h}" for w, h in sorted(sizes)[:3])
            raise ValueError(f"load_data: image_size: expected a number for unequal or oblong images, got sizes {got}")
        image_size = width
    return "L" if grey else "RGB", image_size


def decoded(path: Path, mode: str) -> Image:
    """The whole image in pillow's mode "L" or "RGB". Raises ValueError if it cannot be read."""
    with open_image(path) as image:
        try:
            return image.convert(mode)
        except OSError as error:
            raise ValueError(f"load_data: name: expected a whole image in {path}, got {error}") from error


def _decode_into(room: np.ndarray, path: Path) -> None:
    """Fills uint8 [C, S, S] with the image."""
    size = room.shape[1]
    pixels = decoded(path, "L" if room.shape[0] == 1 else "RGB")
    if pixels.size != (size, size):
        from PIL.Image import Resampling

        side = min(pixels.size)
        left, top = (pixels.width - side) / 2, (pixels.height - side) / 2
        box = (left, top, left + side, top + side)
        pixels = pixels.resize((size, size), Resampling.BILINEAR, box=box)
    room[:] = np.asarray(pixels).reshape(size, size, room.shape[0]).transpose(2, 0, 1)


def _require_memory(needed: int) -> None:
    """Raises ValueError if `needed` bytes are too many for this machine (where the system tells its memory)."""
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed > MEMORY_SHARE * memory:
            most, got = MEMORY_SHARE * memory / 2**30, needed / 2**30
            raise ValueError(
                f"load_data: image_size: expected decoded images of at most {most:.1f} GiB, got {got:.1f} GiB; pass a "
                f"smaller image_size or a limit"
            )
