# SPDX-License-Identifier: Apache-2.0
"""What SpODE's released code does to ImageNet's training images: windows, grey, colour jitter, mirroring.

The paper says that it trains as STR does, which is "imagenet" here; with which of the two its numbers were reached is not
known, nor with which versions of torchvision and Pillow.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from sparsekit.benchmarks.random_crop import random_resized_crop

if TYPE_CHECKING:
    from PIL.Image import Image

SCALE = (0.2, 1.0)
"""Share of the area that a window has."""

GREY = 0.2
"""Share of the images that lose their colours."""

JITTER = 0.4
"""Brightness, contrast and saturation are multiplied by 1 - this to 1 + this; hues turn by at most this part of the circle."""


def spode_crop(image: Image, size: int, generator: random.Random) -> Image:
    """A random window, scaled and mirrored, in random colours. Mirroring comes last there; it commutes with what is done to
    colours.

    Args:
        image: RGB. size: pixels per side of what is returned.
    """
    return random_colours(random_resized_crop(image, size, generator, SCALE), generator)


def random_colours(image: Image, generator: random.Random) -> Image:
    """RandomGrayscale(0.2), then ColorJitter(0.4, 0.4, 0.4, 0.4), by torchvision's own operations on an RGB image."""
    from torchvision.transforms.v2 import functional

    if generator.random() < GREY:
        image = functional.rgb_to_grayscale(image, num_output_channels=3)
    changes = [
        (functional.adjust_brightness, generator.uniform(1 - JITTER, 1 + JITTER)),
        (functional.adjust_contrast, generator.uniform(1 - JITTER, 1 + JITTER)),
        (functional.adjust_saturation, generator.uniform(1 - JITTER, 1 + JITTER)),
        (functional.adjust_hue, generator.uniform(-JITTER, JITTER)),
    ]
    for change, amount in generator.sample(changes, len(changes)):
        image = change(image, amount)
    return image
