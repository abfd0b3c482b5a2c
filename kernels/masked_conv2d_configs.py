# SPDX-License-Identifier: Apache-2.0
"""Tiles and routes of masked convolutions, as data.

Tiles are chosen by a model, not measured: no row exists yet. Therefore WINNERS names no shape, and cuDNN on the masked
weight serves all of them. tests/kernels compiles every line of the tables for Hopper and asserts registers, shared memory
and the form of the tensor-core instruction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class ProductTiles:
    """Tiles of y and of the gradient at x.

    features x pixels is the tile of the result, depth the step of the sum; split parts of the sum are added by a second
    kernel (0: settled by settle). warps and stages are Triton's.
    """

    features: int
    pixels: int
    depth: int
    warps: int
    stages: int
    split: int = 0


@dataclass(frozen=True)
class GradientTiles:
    """Tiles of the gradient at the weight: out x inputs is the tile of the result, pixels the step of the sum."""

    out: int
    inputs: int
    pixels: int
    warps: int
    stages: int
    split: int = 0


@dataclass(frozen=True)
class Shape:
    """What a layer does to a batch, for the table of winners; a group has inputs / groups and outputs / groups channels."""

    batch: int
    inputs: int
    outputs: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


# The kinds of masked_linear_configs.kind_of. Most channels in a group -> tiles; the first line that fits. For products those of
# the result, but FEW for those of the input, too; for gradients those of the side that has fewer.
FEW, SOME, MANY = 15, 64, 1 << 62
HOPPER_PRODUCTS: dict[str, dict[int, ProductTiles]] = {
    # Steps of 64 would leave the masked tile of the weight too few registers.
    "narrow": {
        FEW: ProductTiles(64, 64, 32, 8, 3),
        SOME: ProductTiles(64, 128, 32, 4, 4),
        MANY: ProductTiles(128, 128, 32, 8, 4),
    },
    "masters": {
        FEW: ProductTiles(64, 64, 32, 8, 3),
        SOME: ProductTiles(64, 128, 32, 4, 4),
        MANY: ProductTiles(128, 128, 32, 8, 4),
    },
    "tf32": {
        FEW: ProductTiles(64, 64, 32, 8, 3),
        SOME: ProductTiles(64, 64, 32, 4, 3),
        MANY: ProductTiles(128, 64, 32, 8, 3),
    },
    "fp32": {MANY: ProductTiles(64, 128, 16, 8, 2)},
}
HOPPER_GRADIENTS: dict[str, dict[int, GradientTiles]] = {
    # Flat steps through 128 channels would spill, so the larger tile is for layers that fill it.
    "narrow": {127: GradientTiles(64, 64, 64, 4, 3), MANY: GradientTiles(128, 128, 64, 8, 3)},
    "masters": {127: GradientTiles(64, 64, 64, 4, 3), MANY: GradientTiles(128, 128, 64, 8, 3)},
    "tf32": {MANY: GradientTiles(64, 64, 32, 4, 3)},
    "fp32": {MANY: GradientTiles(64, 64, 16, 8, 3)},
}
# Elsewhere: tiles that fit the 99 KB of shared memory of the smallest devices.
ELSEWHERE_PRODUCTS: dict[int, ProductTiles] = {MANY: ProductTiles(64, 64, 32, 4, 3)}
ELSEWHERE_GRADIENTS: dict[int, GradientTiles] = {MANY: GradientTiles(64, 64, 32, 4, 3)}

# (product, kind, compute capability, shape) -> "fused" where a row under benchmarks/results shows that the Triton kernel is
# faster than cuDNN on the masked weight; all else is "hybrid". The product is "y", "dx" or "dw".
WINNERS: dict[tuple[str, str, tuple[int, int], Shape], str] = {}

# Parts of a sum take memory, 4 bytes for each entry of the result.
_MOST_PARTS, _MOST_PART_BYTES = 64, 64 << 20


def winner(product: str, kind: str, capability: tuple[int, int], shape: Shape) -> str:
    """ "fused" or "hybrid", by the table."""
    return WINNERS.get((product, kind, capability, shape), "hybrid")


def flat(channels: int, taps: int, step: int) -> bool:
    """Does the sum (or the tile of the weight) go through (channel, tap) as one index? Where channels do not fill a step."""
    return taps > 1 and channels < step


def product_tiles(kind: str, capability: tuple[int, int], features: int, depth: int) -> ProductTiles:
    """Tiles of y or dx with so many channels in a group, of the result and of what is summed, not settled."""
    table = HOPPER_PRODUCTS[kind] if capability[0] == 9 else ELSEWHERE_PRODUCTS
    # Flat steps through few channels take many registers.
    channels = depth if depth <= FEW else features
    return next(tiles for most, tiles in table.items() if channels <= most)


def gradient_tiles(kind: str, capability: tuple[int, int], outputs: int, inputs: int) -> GradientTiles:
    """Tiles of the gradient at a weight with so many channels in a group, not settled."""
    table = HOPPER_GRADIENTS[kind] if capability[0] == 9 else ELSEWHERE_GRADIENTS
    return next(tiles for most, tiles in table.items() if min(outputs, inputs) <= most)


def _parts(programs: int, steps: int, entries: int, processors: int) -> int:
    """Parts of a sum: as many as the device can run at the same time, of at least four steps each, in little memory."""
    most = min(_MOST_PARTS, steps // 4, _MOST_PART_BYTES // max(1, 4 * entries), 2 * processors // max(1, programs))
    return 1 << max(0, most.bit_length() - 1)


def settle_product(
    tiles: ProductTiles, pixels: int, features: int, depth: int, taps: int, groups: int, processors: int
) -> ProductTiles:
    """The tiles with their split chosen, for a result of so many pixels; features and depth are those of a group."""
    if tiles.split:
        return tiles
    programs = math.ceil(pixels / tiles.pixels) * math.ceil(features / tiles.features) * groups
    steps = math.ceil(depth * taps / tiles.depth)
    return replace(tiles, split=_parts(programs, steps, pixels * features * groups, processors))


def settle_gradient(
    tiles: GradientTiles, pixels: int, features: int, inputs: int, taps: int, groups: int, processors: int
) -> GradientTiles:
    """The tiles with their split chosen, for a sum over so many pixels."""
    if tiles.split:
        return tiles
    programs = math.ceil(features / tiles.out) * math.ceil(inputs * taps / tiles.inputs) * groups
    entries = features * inputs * taps * groups
    return replace(tiles, split=_parts(programs, math.ceil(pixels / tiles.pixels), entries, processors))
