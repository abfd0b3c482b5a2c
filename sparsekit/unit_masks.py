# SPDX-License-Identifier: Apache-2.0
"""Scores of a pattern's units, and masks of weights from decisions on units; of DTensors, each process does its part."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsekit import ops
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


def unit_scores(pattern: Pattern, scores: Tensor, key: Key) -> Tensor:
    """One score per unit, ``pattern.unit_shape``, to be ranked by value; spread as the scores are."""
    groups, p = groups_of(pattern), getattr(pattern, "p", 2.0)

    def of_part(part: Tensor) -> Tensor:
        return pattern.unit_scores(part, key) if groups is None else ops.group_scores(part, groups, p=p, key=key)

    return shards.on_parts(of_part, scores, shape=pattern.unit_shape(scores.shape))


def mask_of_units(pattern: Pattern, kept: Tensor, scores: Tensor) -> Mask:
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
