# SPDX-License-Identifier: Apache-2.0
"""Projection: scores -> masks with an exact budget, for a pattern and an allocation over the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsekit import ops
from sparsekit.allocation import Allocation, Budget, Global, Uniform, as_allocation, kept_count
from sparsekit.mask import Mask, Masks
from sparsekit.nm import rank_values
from sparsekit.ops.masks import KEYS, NAN_POLICIES, choose
from sparsekit.ops.structured import Groups
from sparsekit.patterns import NM, Block, Channel, Filter, Key, Pattern, Unstructured, as_pattern


class Projected(NamedTuple):
    """Masks by layer, and a 0-d bool tensor that is True when NaN scores make them invalid."""

    masks: Masks
    invalid: Tensor


@dataclass(frozen=True)
class Projection:
    """Euclidean projection of scores on the masks with a given budget.

    pattern: which weights are decided together; an object or a name ("unstructured", "filter", "channel", "2:4", ...).
    allocation: how the budget is spread over layers; an object, a name ("global", "uniform", "erk") or a mapping.
    nan: policy for NaN scores, as in ``ops.topk_mask``.

    Ties go to the lowest (layer, flat index); budgets count pattern units, kept_count(units, sparsity) of them.
    """

    pattern: Pattern = Unstructured()
    allocation: Allocation = Global()
    nan: str = "error"

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", as_pattern(self.pattern))
        object.__setattr__(self, "allocation", as_allocation(self.allocation))
        choose("Projection", "nan", self.nan, NAN_POLICIES)
        if isinstance(self.pattern, NM) and self.allocation not in (Global(), Uniform()):
            expected = f"global or uniform, as {self.pattern.describe()} fixes the budget of every layer"
            raise ValueError(f"Projection: allocation: expected {expected}, got {self.allocation!r}")

    def budget(self, shapes: Mapping[str, tuple[int, ...]], sparsity: float) -> Budget:
        """Units to keep: an int over all layers, or an int for each."""
        units = {name: prod(self.pattern.unit_shape(shape)) for name, shape in shapes.items()}
        return self.allocation(shapes, units, sparsity)

    @torch.no_grad()
    def __call__(self, scores: Mapping[str, Tensor], sparsity: float, key: Key = "magnitude") -> Projected:
        """Masks that keep the best-scored units.

        Args:
            scores: layer name -> float tensor of the weight's shape, one device; higher means keep.
            sparsity: fraction of units removed, in [0, 1).
            key: rank single weights by "magnitude" or "value"; units by the norm or the sum of theirs.

        Raises:
            ValueError: no scores, a sparsity out of range, an allocation that does not fit the layers. TypeError: scores
                of another kind.
        """
        _check_scores(scores)
        choose("Projection", "key", key, KEYS)
        shapes = {name: tuple(s.shape) for name, s in scores.items()}
        if isinstance(self.pattern, NM):
            return self._fixed(scores, sparsity, key)
        budget = self.budget(shapes, sparsity)
        values = list(scores.values())
        if not isinstance(self.pattern, Unstructured):
            values, key = [self._unit_scores(s, key) for s in values], "value"
        floor = self.allocation.min_keep if isinstance(budget, int) else 0
        if floor:
            return self._with_floor(shapes, values, budget, key, floor)  # pyright: ignore[reportArgumentType]
        if isinstance(budget, int):
            words, invalid = ops.topk_mask(values, budget, key=key, nan=self.nan)
        else:
            kept = [budget[name] for name in scores]
            words, invalid = ops.topk_mask(values, kept, key=key, scope="tensor", nan=self.nan)
        return self._projected(shapes, values, words, invalid)

    def _projected(
        self, shapes: Mapping[str, tuple[int, ...]], values: list[Tensor], words: list[Tensor], invalid: Tensor
    ) -> Projected:
        if isinstance(self.pattern, Unstructured):
            masks = {name: Mask(w, shape) for (name, shape), w in zip(shapes.items(), words, strict=True)}
            return Projected(Masks(masks), invalid)
        kept = zip(shapes.items(), words, values, strict=True)
        return Projected(Masks({name: self._expand(w, v.shape, shape) for (name, shape), w, v in kept}), invalid)

    def _unit_scores(self, scores: Tensor, key: Key) -> Tensor:
        groups = _groups(self.pattern)
        if groups is None:
            return self.pattern.unit_scores(scores, key)
        return ops.group_scores(scores, groups, p=getattr(self.pattern, "p", 2.0), key=key)

    def _expand(self, words: Tensor, unit_shape: Sequence[int], shape: tuple[int, ...]) -> Mask:
        """Mask of the weights of the units that ``words`` keeps."""
        groups = _groups(self.pattern)
        if groups is None:
            return Mask.from_dense(self.pattern.expand(ops.unpack_mask(words, unit_shape), shape))
        return Mask(ops.expand_units(words, shape, groups), shape)

    def _with_floor(
        self, shapes: Mapping[str, tuple[int, ...]], values: list[Tensor], kept: int, key: Key, floor: int
    ) -> Projected:
        """Global selection with at least ``floor`` units in each layer: their best ones first, then the best of the rest."""
        values, invalid = self._ranked(values, key)
        # Units that are NaN cannot fill a floor; without counting them (for "keep" none is left) the total would fall short.
        able = [int((~torch.isnan(v)).sum()) if self.nan == "drop" else v.numel() for v in values]
        floors = [min(floor, n) for n in able]
        if sum(floors) > kept:
            raise ValueError(f"Projection: min_keep: expected at most {kept} units in all, got {sum(floors)}")
        secured = ops.topk_mask(values, floors, key="value", scope="tensor", nan="drop", out="bool").masks
        # NaN with the policy "drop" is never chosen, so the secured ones do not compete a second time.
        rest = [v.masked_fill(s, torch.nan) for v, s in zip(values, secured, strict=True)]
        others = ops.topk_mask(rest, kept - sum(floors), key="value", nan="drop", out="bool").masks
        words = [ops.pack_mask(s | o) for s, o in zip(secured, others, strict=True)]
        return self._projected(shapes, values, words, invalid)

    def _fixed(self, scores: Mapping[str, Tensor], sparsity: float, key: Key) -> Projected:
        """N:M fixes its own budget; any other sparsity is a contradiction."""
        pattern = self.pattern
        assert isinstance(pattern, NM)
        kept_count(0, sparsity)  # is it a number in [0, 1)?
        if abs(float(sparsity) - (1 - pattern.n / pattern.m)) > 1e-9:
            expected = f"{1 - pattern.n / pattern.m:g} for {pattern.describe()}"
            raise ValueError(f"Projection: sparsity: expected {expected}, got {sparsity}")
        values = list(scores.values())
        for s in values:
            pattern.unit_shape(s.shape)
        if type(pattern) is not NM:  # a pattern with a selection of its own
            ranked, invalid = self._ranked(values, key)
            words = [ops.pack_mask(pattern.select(s)) for s in ranked]
        elif pattern.transposable:
            words, invalid = ops.transposable_nm_mask(values, key=key, nan=self.nan)
        else:
            words, invalid = ops.nm_mask(values, pattern.n, pattern.m, key=key, nan=self.nan)
        masks = {name: Mask(w, tuple(s.shape)) for (name, s), w in zip(scores.items(), words, strict=True)}
        return Projected(Masks(masks), invalid)

    def _ranked(self, values: list[Tensor], key: Key) -> tuple[list[Tensor], Tensor]:
        """Values to be ranked as they are, in which NaN means never, and whether NaN makes the masks invalid."""
        ranked = [rank_values(v, key, self.nan) for v in values]
        missing = torch.stack([torch.isnan(v).any() for v in values]).any()
        return ranked, missing if self.nan == "error" else torch.zeros_like(missing)


def _groups(pattern: Pattern) -> Groups | None:
    """What the fused ops call the units of the pattern; None for a pattern of someone else's making."""
    if type(pattern) is Block:
        return pattern.h, pattern.w
    return {Filter: "filter", Channel: "channel"}.get(type(pattern))  # pyright: ignore[reportReturnType]


def _check_scores(scores: Any) -> None:
    if not isinstance(scores, Mapping):
        raise TypeError(
            f"Projection: scores: expected a mapping of layer names to tensors, got {type(scores).__name__}"
        )
    if not scores:
        raise ValueError("Projection: scores: expected at least one layer, got none")
    for name, value in scores.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"Projection: scores[{name!r}]: expected a floating point tensor, got {got}")
