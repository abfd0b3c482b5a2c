# SPDX-License-Identifier: Apache-2.0
"""Scores of a pattern's units, and masks of weights from decisions on units; of DTensors, each process does its part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from sparsekit import ops
from sparsekit.coupled import CoupledFilters
from sparsekit.mask import Mask
from sparsekit.nm import rank_values
from sparsekit.ops import shards
from sparsekit.ops.structured import Groups
from sparsekit.patterns import NM, Block, Channel, Filter, Key, Pattern, Unstructured


def groups_of(pattern: Pattern) -> Groups | None:
    """What the fused ops call the units of the pattern; None for a pattern of someone else's making."""
    if type(pattern) is Block:
        return pattern.h, pattern.w
    return {Filter: "filter", Channel: "channel"}.get(type(pattern))  # pyright: ignore[reportReturnType]


def is_ours(pattern: Pattern) -> bool:
    """Is it a pattern of this package? One of someone else's making may fail on some processes and not on others."""
    return type(pattern) in (Unstructured, Filter, Channel, Block, NM, CoupledFilters)


def unit_counts(pattern: Pattern, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Units by layer, or by group of coupled ones; shapes are those of the weights, by layer."""
    if isinstance(pattern, CoupledFilters):
        return {name: shape[0] for name, shape in pattern.group_shapes(shapes).items()}
    return {name: prod(pattern.unit_shape(shape)) for name, shape in shapes.items()}


def unit_sizes(pattern: Pattern, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Weights in one unit, by layer or by group of coupled ones."""
    if isinstance(pattern, CoupledFilters):
        return {name: shape[1] for name, shape in pattern.group_shapes(shapes).items()}
    return {name: pattern.unit_size(shape) for name, shape in shapes.items()}


def unit_sums(pattern: Pattern, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sum over each unit, by layer or by group of coupled ones; float32 or wider.

    Args:
        values: layer name -> floats of the weight's shape; plain tensors.
    """
    if isinstance(pattern, CoupledFilters):
        wide = torch.promote_types(next(iter(values.values())).dtype, torch.float32)
        sums = pattern.group_scores(values, "value")
        return {group.name: s.to(wide) for group, s in zip(pattern.groups, sums, strict=True)}
    return {name: pattern.reduce_sum(x) for name, x in values.items()}


def over_units(
    pattern: Pattern, units: Mapping[str, Tensor], weights: Mapping[str, Tensor], fill: float = 1.0
) -> dict[str, Tensor]:
    """Each unit's value at all its weights, by layer; may be views.

    Args:
        units: by layer, or by group of coupled ones, as ``unit_sums`` gives them.
        weights: layer name -> tensor whose shape and device count. fill: at weights that are in no unit.
    """
    if not isinstance(pattern, CoupledFilters):
        return {name: pattern.expand(units[name], w.shape) for name, w in weights.items()}
    filters = pattern.of_filters(list(units.values()), weights, fill)
    return {n: filters[n].reshape(-1, *[1] * (w.ndim - 1)).expand(w.shape) for n, w in weights.items()}


def unit_scores(pattern: Pattern, scores: Mapping[str, Tensor], key: Key) -> list[Tensor]:
    """One score per unit, to be ranked by value: a tensor for each layer, or for each group of coupled ones."""
    if isinstance(pattern, CoupledFilters):
        return pattern.group_scores(scores, key)
    return [_unit_scores(pattern, s, key) for s in scores.values()]


def _unit_scores(pattern: Pattern, scores: Tensor, key: Key) -> Tensor:
    """One score per unit, ``pattern.unit_shape``; spread as the scores are."""
    groups, p = groups_of(pattern), getattr(pattern, "p", 2.0)

    def of_part(part: Tensor) -> Tensor:
        return pattern.unit_scores(part, key) if groups is None else ops.group_scores(part, groups, p=p, key=key)

    return shards.on_parts(of_part, scores, shape=pattern.unit_shape(scores.shape))


def masks_of_units(pattern: Pattern, kept: Sequence[Tensor], scores: Mapping[str, Tensor]) -> dict[str, Mask]:
    """Masks of the layers from decisions on what ``unit_scores`` gave, in its order."""
    if isinstance(pattern, CoupledFilters):
        return pattern.masks(kept, scores)
    return {name: _mask_of_units(pattern, units, s) for (name, s), units in zip(scores.items(), kept, strict=True)}


def _mask_of_units(pattern: Pattern, kept: Tensor, scores: Tensor) -> Mask:
    """The mask of a weight whose units are kept as ``kept`` says.

    Args:
        kept: words of a mask of units, or bool of ``pattern.unit_shape``; spread as the scores are.
        scores: of the weight; only shape and placement count.
    """
    groups, shape = groups_of(pattern), tuple(scores.shape)
    if groups is None and not isinstance(pattern, Unstructured):
        return Mask.from_dense(shards.on_parts(lambda u, s: _expanded(pattern, u, s.shape), kept, scores, shape=shape))

    def of_part(units: Tensor, part: Tensor) -> Tensor:
        words = ops.pack_mask(units) if units.dtype == torch.bool else units
        return words if groups is None else ops.expand_units(words, part.shape, groups)

    return Mask(shards.on_parts(of_part, kept, scores, shape=ops.words_shape(shape)), shape)


def _expanded(pattern: Pattern, units: Tensor, shape: Sequence[int]) -> Tensor:
    bits = units if units.dtype == torch.bool else ops.unpack_mask(units, pattern.unit_shape(shape))
    return pattern.expand(bits, shape)


def nm_masks(pattern: NM, scores: Sequence[Tensor], key: Key, nan: str) -> tuple[list[Mask], Tensor]:
    """Masks of a pattern that fixes its own budget, and whether NaN in the parts of this process makes them invalid."""
    parts = [shards.part(s) for s in scores]
    if type(pattern) is not NM:  # a pattern with a selection of its own
        ranked, invalid = ranked_values(parts, key, nan)
        words = [ops.pack_mask(pattern.select(r)) for r in ranked]
    elif pattern.transposable:
        words, invalid = ops.transposable_nm_mask(parts, key=key, nan=nan)
    else:
        words, invalid = ops.nm_mask(parts, pattern.n, pattern.m, key=key, nan=nan)
    shapes = [tuple(s.shape) for s in scores]
    whole = [shards.spread(w, s, ops.words_shape(s.shape)) for w, s in zip(words, scores, strict=True)]
    return [Mask(w, shape) for w, shape in zip(whole, shapes, strict=True)], invalid


def ranked_values(values: Sequence[Tensor], key: Key, nan: str) -> tuple[list[Tensor], Tensor]:
    """Values to be ranked as they are, in which NaN means never, and whether NaN makes the masks invalid (0-d bool)."""
    ranked = [rank_values(v, key, nan) for v in values]
    missing = torch.stack([torch.isnan(v).any() for v in values]).any() if values else torch.tensor(False)
    return ranked, missing if nan == "error" else torch.zeros_like(missing)


def check_scores(scores: Any, may_be_empty: bool) -> None:
    """Raise unless these can be the scores of a projection."""
    if not isinstance(scores, Mapping):
        raise TypeError(
            f"Projection: scores: expected a mapping of layer names to tensors, got {type(scores).__name__}"
        )
    if not scores and not may_be_empty:
        raise ValueError("Projection: scores: expected at least one layer, got none")
    for name, value in scores.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"Projection: scores[{name!r}]: expected a floating point tensor, got {got}")


def check_warm(warm: Any, rows: int, scores: Mapping[str, Tensor]) -> None:
    """Raise unless this can be the warm start of so many selections."""
    if warm is None:
        return
    if not isinstance(warm, Tensor) or warm.dtype != torch.int64:
        got = warm.dtype if isinstance(warm, Tensor) else type(warm).__name__
        raise TypeError(f"Projection: warm: expected an int64 tensor, as warm_start makes it, got {got}")
    devices = {s.device for s in scores.values()} or {warm.device}
    if warm.shape[1:] != (3,) or len(warm) < rows or not warm.is_contiguous() or warm.device not in devices:
        expected = f"what warm_start makes for {len(scores)} layers on {next(iter(devices))}"
        raise ValueError(f"Projection: warm: expected {expected}, got {tuple(warm.shape)} on {warm.device}")
