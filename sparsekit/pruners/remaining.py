# SPDX-License-Identifier: Apache-2.0
"""What is left of a pruned model and how it is ranked, for pruners that never take anything back."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sparsekit.coupled import CoupledFilters
from sparsekit.nn.masked import MaskedLayer
from sparsekit.ops import shards, unpack_mask
from sparsekit.patterns import NM, Key, Pattern, Unstructured
from sparsekit.projection import Projection
from sparsekit.unit_masks import over_units, unit_sums

# In float64: below every positive float32, yet its fifth power, as of a norm, is not zero.
_LEAST = 1e-60
UNITS = ("norm", "sum", "abs_sum")


def remaining_magnitudes(layers: Mapping[str, MaskedLayer], projection: Projection) -> tuple[dict[str, Tensor], Key]:
    """|theta| of the kept weights, and the key to rank by; see ``remaining_scores``."""
    return remaining_scores({n: layer.weight.detach() for n, layer in layers.items()}, layers, projection.pattern)


def remaining_scores(
    scores: Mapping[str, Tensor], layers: Mapping[str, MaskedLayer], pattern: Pattern, units: str = "norm"
) -> tuple[dict[str, Tensor], Key]:
    """Scores of the kept weights; pruned ones rank below all, whatever is stored there and kept zeros included.

    Args:
        scores: layer name -> tensor of the weight's shape.
        units: score of a unit: "norm" is the pattern's norm, "sum" the sum of the signed scores, "abs_sum" its absolute
            value. Of single weights "sum" is the score itself, the others its absolute value.

    Returns:
        layer name -> scores to be projected, spread as the given ones are; the key to rank them by.
    """
    single = isinstance(pattern, Unstructured)
    if isinstance(pattern, NM) and units == "abs_sum":
        units = "norm"  # its units are single weights
    if isinstance(pattern, CoupledFilters) and units == "abs_sum":
        scores, units = _absolute_shares(scores, layers, pattern), "sum"

    def of_part(score: Tensor, words: Tensor) -> Tensor:
        kept = unpack_mask(words, score.shape)
        if single:
            return torch.where(kept, score if units == "sum" else score.abs(), -math.inf)
        wide = torch.where(kept, score.double(), 0.0)
        if units == "norm":
            # A norm cannot be negative, so for units it is the kept zeros that rise above what is pruned.
            return torch.where(kept, wide.abs().clamp(min=_LEAST), 0.0)
        if units == "abs_sum":
            # Spread evenly over the unit, so that the sum over it, which ranks it, is the absolute value.
            share = pattern.reduce_sum(wide).abs() / pattern.reduce_sum(torch.ones_like(wide))
            wide = pattern.expand(share, score.shape)
        return torch.where(kept, wide, -math.inf)

    ranked = {
        name: shards.on_parts(of_part, score, layers[name].spread_words, shape=score.shape)
        for name, score in scores.items()
    }
    return ranked, "magnitude" if units == "norm" and not single else "value"


def remaining_units(where: str, layers: Mapping[str, MaskedLayer], pattern: Pattern) -> dict[str, int]:
    """Units of the pattern that each layer keeps, or each group of coupled ones.

    Raises:
        ValueError: a mask that keeps parts of units, of which the rest would come back. It begins with ``where``.
    """
    kept = kept_units({name: layer.mask.dense() for name, layer in layers.items()}, pattern, where)
    return {name: int(units.count_nonzero()) for name, units in kept.items()}


def kept_units(dense: Mapping[str, Tensor], pattern: Pattern, where: str = "") -> dict[str, Tensor]:
    """Which units are kept, wholly or in part: bool of the units' shape, by layer or by group of coupled ones.

    Args:
        dense: masks as bool, by layer. where: if given, begins the ValueError for masks that keep parts of units.
    """
    units = {name: total > 0 for name, total in unit_sums(pattern, {n: d.float() for n, d in dense.items()}).items()}
    for name, whole in over_units(pattern, units, dense, True).items() if where else ():
        bits = dense[name]
        if not (bool(bits.all()) if isinstance(pattern, NM) else torch.equal(whole, bits)):
            raise ValueError(f"{where}: model: expected masks of whole units of {pattern!r}, got others in `{name}`")
    return units


def _absolute_shares(
    scores: Mapping[str, Tensor], layers: Mapping[str, MaskedLayer], pattern: CoupledFilters
) -> dict[str, Tensor]:
    """Scores whose sums over coupled units are the absolute values of those of the given ones."""
    kept = {name: layer.mask.dense() for name, layer in layers.items()}
    sums = unit_sums(pattern, {n: torch.where(kept[n], s.double(), 0.0) for n, s in scores.items()})
    sizes = unit_sums(pattern, {n: torch.ones_like(s, dtype=torch.float64) for n, s in scores.items()})
    return over_units(pattern, {name: s.abs() / sizes[name] for name, s in sums.items()}, scores, 0.0)
