# SPDX-License-Identifier: Apache-2.0
"""Crops of single images with pillow: those of ImageNet's training and evaluation (Szegedy et al. 2015; torchvision's form)."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

SCALE, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
"""Share of the area that a window has, its width over its height, and how often a window is drawn that may not fit."""

Cut = Callable[["Image", int, random.Random], "Image"]
"""(whole image, pixels per side, generator) -> what a network is trained on."""


def generator_of(*words: int | str) -> random.Random:
    """A generator seeded by a hash of ``words``, equal on every machine."""
    digest = hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "little"))


def draw_window(
    width: int, height: int, generator: random.Random, scale: tuple[float, float] = SCALE
) -> tuple[int, int, int, int]:
    """A window (left, upper, right, lower) of random area and form; the largest centred one if none fits in TRIES draws."""
    for _ in range(TRIES):
        area = width * height * generator.uniform(*scale)
        ratio = math.exp(generator.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = generator.randint(0, height - h), generator.randint(0, width - w)
            return left, top, left + w, top + h
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def random_resized_crop(image: Image, size: int, generator: random.Random, scale: tuple[float, float] = SCALE) -> Image:
    """A random window scaled to size x size, mirrored half of the time: RandomResizedCrop and RandomHorizontalFlip."""
    from PIL.Image import Resampling, Transpose

    window = draw_window(image.width, image.height, generator, scale)
    image = image.crop(window).resize((size, size), Resampling.BILINEAR)
    return image.transpose(Transpose.FLIP_LEFT_RIGHT) if generator.random() < 0.5 else image


def centre_crop(image: Image, size: int) -> Image:
    """The centre, size x size, of the image scaled so that its shorter side is 8/7 of that: 256 for 224."""
    from PIL.Image import Resampling

    shorter = round(size * 8 / 7)
    width, height = (int(shorter * side / min(image.size)) for side in image.size)
    image = image.resize((width, height), Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))
