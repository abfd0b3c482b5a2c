# SPDX-License-Identifier: Apache-2.0
"""How the masks of two models or checkpoints differ, layer by layer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from sparsekit import ops
from sparsekit.inspection import read_masks
from sparsekit.mask import Mask, Masks


@dataclass(frozen=True)
class LayerDifference:
    """One layer: weights kept by a, by b, by both, and intersection over union (1 when neither keeps any).

    chance: the iou to expect of independent random masks that keep as many.
    """

    name: str
    shape: tuple[int, ...]
    kept_a: int
    kept_b: int
    both: int
    iou: float
    chance: float

    @property
    def only_a(self) -> int:
        """Weights kept by a alone."""
        return self.kept_a - self.both

    @property
    def only_b(self) -> int:
        """Weights kept by b alone."""
        return self.kept_b - self.both


@dataclass(frozen=True)
class MaskDifference:
    """Layers that both have, in a's order; names of those that one alone has; hashes of all masks; iou over all layers.

    chance: the iou to expect of independent random masks that keep as many weights of every layer.

    identical: the same layers with the same masks, hence the same hash.
    """

    layers: tuple[LayerDifference, ...]
    missing_in_a: tuple[str, ...]
    missing_in_b: tuple[str, ...]
    hash_a: str
    hash_b: str
    identical: bool
    kept_a: int
    kept_b: int
    both: int
    iou: float
    chance: float


def diff(
    a: nn.Module | Mapping[str, Mask] | str | os.PathLike[str],
    b: nn.Module | Mapping[str, Mask] | str | os.PathLike[str],
) -> MaskDifference:
    """Compare the masks of two models, two snapshots (``sk.masks``) or two checkpoints, in any combination.

    Args:
        a, b: what ``sk.inspect`` takes, or masks by layer name.

    Raises:
        ValueError: no masks, a layer whose shapes differ, no layer in common. TypeError: something else.
    """
    first, second = _masks("a", a), _masks("b", b)
    common = [name for name in first if name in second]
    if not common:
        raise ValueError(f"diff: b: expected layers of a ({', '.join(first)}), got {', '.join(second)}")
    for name in common:
        if first[name].shape != second[name].shape:
            expected, got = first[name].shape, second[name].shape
            raise ValueError(f"diff: b[{name!r}]: expected shape {expected}, got {got}")
    layers = tuple(_layer(name, first[name], second[name]) for name in common)
    kept_a, kept_b, both = (sum(getattr(x, key) for x in layers) for key in ("kept_a", "kept_b", "both"))
    return MaskDifference(
        layers=layers,
        missing_in_a=tuple(name for name in second if name not in first),
        missing_in_b=tuple(name for name in first if name not in second),
        hash_a=first.hash(),
        hash_b=second.hash(),
        identical=first == second,
        kept_a=kept_a,
        kept_b=kept_b,
        both=both,
        iou=_iou(kept_a, kept_b, both),
        chance=chance_overlap(first, second),
    )


def _masks(argument: str, source: nn.Module | Mapping[str, Mask] | str | os.PathLike[str]) -> Masks:
    if isinstance(source, Mapping) and not isinstance(source, nn.Module):
        if wrong := [value for value in source.values() if not isinstance(value, Mask)]:
            raise TypeError(f"diff: {argument}: expected values of type Mask, got {type(wrong[0]).__name__}")
        if not source:
            raise ValueError(f"diff: {argument}: expected at least one mask, got none")
        return Masks(source)
    if not isinstance(source, (nn.Module, str, os.PathLike)):
        raise TypeError(f"diff: {argument}: expected a Module, masks or a path, got {type(source).__name__}")
    return read_masks(source)


def _layer(name: str, a: Mask, b: Mask) -> LayerDifference:
    kept_a, kept_b, both = ops.mask_counts([a.words.cpu()], [b.words.cpu()])[0].tolist()
    chance = chance_overlap({name: a}, {name: b})
    return LayerDifference(name, a.shape, kept_a, kept_b, both, _iou(kept_a, kept_b, both), chance)


def chance_overlap(a: Mapping[str, Mask], b: Mapping[str, Mask]) -> float:
    """Intersection over union to expect of independent random masks with the densities that a and b have in each layer.

    The expected intersection over what is left of both; of the layers that both have, whose shapes agree.
    """
    kept = [(a[name].count(), b[name].count(), a[name].numel) for name in a if name in b]
    both = sum(x * y / n for x, y, n in kept if n)
    return _iou(sum(x for x, _, _ in kept), sum(y for _, y, _ in kept), both)


def _iou(kept_a: int, kept_b: int, both: float) -> float:
    either = kept_a + kept_b - both
    return both / either if either else 1.0
