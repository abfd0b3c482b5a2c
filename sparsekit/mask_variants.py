# SPDX-License-Identifier: Apache-2.0
"""Masks that share numbers with given ones and nothing else: what a mask is compared with to see what its choice is worth.

Sources: Frankle et al., "Pruning neural networks at initialization: why are we missing the mark?", ICLR 2021 (shuffling,
inversion); Su et al., "Sanity-checking pruning methods: random tickets can win the jackpot", NeurIPS 2020 (random masks).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction

import torch
from torch import Tensor

from sparsekit.allocation import Allocation, Number, as_allocation
from sparsekit.mask import Mask, Masks
from sparsekit.ops import shards

UNITS = ("unstructured", "filter", "channel")


def shuffled(masks: Mapping[str, Mask], seed: int, units: str = "unstructured") -> Masks:
    """Every layer's mask with its units in another order: the densities of layers stay, the choice within them goes.

    Args:
        masks: by layer name, as ``sk.masks(model)`` gives them.
        seed: of the permutations, in [0, 2**32); the same on every device.
        units: what trades places: "unstructured" single weights, "filter" entries of dim 0, "channel" entries of dim 1.

    Raises:
        ValueError: a seed out of range, unknown units, masks spread over processes.
        TypeError: no masks by name, a seed that is no int.
    """
    generator, found = _generator("shuffled", seed), {}
    for name, mask, rows in _by_unit("shuffled", masks, units):
        order = torch.randperm(len(rows), generator=generator)
        found[name] = _packed(rows[order], mask, units)
    return Masks(found)


def random_like(
    masks: Mapping[str, Mask],
    seed: int,
    allocation: str | Mapping[str, Number] | Allocation | None = None,
    units: str = "unstructured",
) -> Masks:
    """Random masks that keep as many units as the given ones do: in every layer, or in all layers together.

    Args:
        masks: by layer name. Of units, each counts as kept of which any weight is; the new masks keep units whole.
        seed: of the draws, in [0, 2**32); the same on every device.
        allocation: None keeps the number of every layer; "erk", "uniform" or another allocation divides the same total
            anew ("uniform" rounds layer by layer, so its total may differ a little). "global", a ranking of scores,
            divides nothing.
        units: as for ``shuffled``.

    Raises:
        ValueError: as ``shuffled``; an allocation without numbers for layers. TypeError: likewise.
    """
    generator = _generator("random_like", seed)
    layers = {name: (mask, rows) for name, mask, rows in _by_unit("random_like", masks, units)}
    kept = {name: int(rows.any(1).sum()) for name, (_, rows) in layers.items()}
    if allocation is not None:
        kept = _divided({name: mask.shape for name, (mask, _) in layers.items()}, layers, kept, allocation)
    found = {}
    for name, (mask, rows) in layers.items():
        chosen = torch.zeros(len(rows), dtype=torch.bool)
        chosen[torch.randperm(len(rows), generator=generator)[: kept[name]]] = True
        found[name] = _packed(chosen[:, None].expand_as(rows), mask, units)
    return Masks(found)


def inverted_choice(masks: Mapping[str, Mask], weights: Mapping[str, Tensor], units: str = "unstructured") -> Masks:
    """Masks that keep as many units of every layer, of those that the given masks remove, smallest weights first.

    Args:
        masks: by layer name.
        weights: of the same layers, shapes as the masks'; magnitudes of single weights, sums of squares of units. Where
            a layer keeps more than half, kept units follow once no removed one is left, smallest first as well. Ties go
            to the lowest index.
        units: as for ``shuffled``.

    Raises:
        ValueError: as ``shuffled``; a weight missing, of another shape, or not finite. TypeError: no masks by name.
    """
    found = {}
    for name, mask, rows in _by_unit("inverted_choice", masks, units):
        weight = weights.get(name)
        if weight is None or tuple(weight.shape) != mask.shape or not bool(weight.isfinite().all()):
            got = "none" if weight is None else f"shape {tuple(weight.shape)}, finite: {bool(weight.isfinite().all())}"
            raise ValueError(f"inverted_choice: weights[{name!r}]: expected finite values of {mask.shape}, got {got}")
        size = _rows(weight.detach().cpu().double(), units).square().sum(1)
        kept = rows.any(1)
        order = torch.argsort(size, stable=True)
        order = order[torch.argsort(kept[order].int(), stable=True)]
        chosen = torch.zeros(len(rows), dtype=torch.bool)
        chosen[order[: int(kept.sum())]] = True
        found[name] = _packed(chosen[:, None].expand_as(rows), mask, units)
    return Masks(found)


def _generator(where: str, seed: int) -> torch.Generator:
    if type(seed) is not int:
        raise TypeError(f"{where}: seed: expected an int in [0, 2**32), got {seed!r}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"{where}: seed: expected an int in [0, 2**32), got {seed}")
    return torch.Generator().manual_seed(seed)


def _by_unit(where: str, masks: Mapping[str, Mask], units: str) -> Iterator[tuple[str, Mask, Tensor]]:
    """(name, mask, its bits as [units, weights of a unit] on the CPU) of every layer."""
    if not isinstance(masks, Mapping) or not all(isinstance(mask, Mask) for mask in masks.values()):
        raise TypeError(f"{where}: masks: expected masks by layer name, got {type(masks).__name__}")
    if units not in UNITS:
        raise ValueError(f"{where}: units: expected one of {', '.join(UNITS)}, got {units!r}")
    for name, mask in masks.items():
        if shards.is_spread(mask.words):
            raise ValueError(f"{where}: masks[{name!r}]: expected a plain tensor of words, got a DTensor")
        if units != "unstructured" and len(mask.shape) < 2:
            raise ValueError(f"{where}: masks[{name!r}]: expected two dimensions for {units}, got shape {mask.shape}")
        yield name, mask, _rows(mask.dense().cpu(), units)


def _rows(values: Tensor, units: str) -> Tensor:
    if units == "unstructured":
        return values.reshape(-1, 1)
    return (values if units == "filter" else values.transpose(0, 1)).flatten(1)


def _packed(rows: Tensor, like: Mask, units: str) -> Mask:
    """The inverse of ``_rows``, on the device of the mask that it came from."""
    shape = like.shape
    across = (shape[1], shape[0], *shape[2:]) if units == "channel" else shape
    dense = rows.reshape(across).transpose(0, 1) if units == "channel" else rows.reshape(across)
    return Mask.from_dense(dense.contiguous().to(like.words.device))


def _divided(
    shapes: Mapping[str, tuple[int, ...]],
    layers: Mapping[str, tuple[Mask, Tensor]],
    kept: Mapping[str, int],
    allocation: str | Mapping[str, Number] | Allocation,
) -> dict[str, int]:
    """Units of each layer when the same total is divided by an allocation."""
    units = {name: len(rows) for name, (_, rows) in layers.items()}
    total, some = sum(units.values()), sum(kept.values())
    if not some:
        raise ValueError("random_like: masks: expected at least one kept weight to divide among layers, got none")
    # As a fraction the sparsity gives back the total without rounding.
    budget = as_allocation(allocation)(shapes, units, Fraction(total - some, total))
    if isinstance(budget, int):
        raise ValueError(f"random_like: allocation: expected numbers for layers, got {allocation!r}")
    return budget
