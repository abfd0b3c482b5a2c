# SPDX-License-Identifier: Apache-2.0
"""Projection: scores -> masks with an exact budget, for a pattern and an allocation over the layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from sparsekit import ops
from sparsekit.allocation import Allocation, Budget, Global, Uniform, as_allocation, kept_count
from sparsekit.coupled import CoupledFilters
from sparsekit.mask import Masks
from sparsekit.ops import agreement, shards
from sparsekit.ops.masks import KEYS, NAN_POLICIES, choose
from sparsekit.patterns import NM, Filter, Key, Pattern, Unstructured, as_pattern
from sparsekit.unit_masks import (
    check_scores,
    check_warm,
    is_ours,
    masks_of_units,
    nm_masks,
    ranked_values,
    unit_counts,
    unit_scores,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


T = TypeVar("T")


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
    group: processes that hold different layers, or different parts of layers, of one model and project together: the
        budget is one of them all, and each gets the masks of its own scores. Allocations: global and uniform, without
        ``min_keep``. With uniform, layers are what a process holds under one name. None: this process alone.

    Ties go to the lowest (layer, flat index), with a group to the lowest (rank, layer, flat index); budgets count pattern
    units, kept_count(units, sparsity) of them. Scores that are DTensors are projected together without a group.
    """

    pattern: Pattern = Unstructured()
    allocation: Allocation = Global()
    nan: str = "error"
    group: ProcessGroup | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", as_pattern(self.pattern))
        object.__setattr__(self, "allocation", as_allocation(self.allocation))
        choose("Projection", "nan", self.nan, NAN_POLICIES)
        if isinstance(self.pattern, NM) and self.allocation not in (Global(), Uniform()):
            expected = f"global or uniform, as {self.pattern.describe()} fixes the budget of every layer"
            raise ValueError(f"Projection: allocation: expected {expected}, got {self.allocation!r}")
        if self.group is not None:
            agreement.check_group("Projection", self.group)
            if isinstance(self.pattern, CoupledFilters):
                raise ValueError(f"Projection: group: expected None for {self.pattern!r}, got a group")
            # The others depend on the layers of all processes, of which each knows its own.
            if type(self.allocation) not in (Global, Uniform) or self.allocation.min_keep:
                expected = "global or uniform without min_keep for a group"
                raise ValueError(f"Projection: allocation: expected {expected}, got {self.allocation!r}")

    def __repr__(self) -> str:
        # Part of checkpoints: it names what decides the masks, never an address.
        together = "" if self.group is None else f", group={self.group.size()} ranks"
        return f"Projection(pattern={self.pattern!r}, allocation={self.allocation!r}, nan={self.nan!r}{together})"

    def budget(self, shapes: Mapping[str, tuple[int, ...]], sparsity: float) -> Budget:
        """Units to keep: an int over all layers, or an int for each. Not with a group, which would have to be asked."""
        if self.group is not None:
            raise ValueError("Projection: group: expected None where a budget is needed beforehand, got a group")
        return self._budget(shapes, sparsity)

    def _budget(self, shapes: Mapping[str, tuple[int, ...]], sparsity: float) -> Budget:
        units = unit_counts(self.pattern, shapes)
        if isinstance(self.pattern, CoupledFilters):
            shapes = self.pattern.group_shapes(shapes)
        return self.allocation(shapes, units, sparsity)

    @torch.no_grad()
    def __call__(
        self, scores: Mapping[str, Tensor], sparsity: float, key: Key = "magnitude", warm: Tensor | None = None
    ) -> Projected:
        """Masks that keep the best-scored units. All processes of the group, or of the mesh of DTensors, have to call.

        Args:
            scores: layer name -> float tensor of the weight's shape, one device; higher means keep. With a group none is
                allowed. Either all or none are DTensors (replicated or Shard(0) on one 1-D mesh, of one dtype); then
                budgets and ties are those of the whole tensors, and the masks' words are spread as the scores.
            sparsity: fraction of units removed, in [0, 1).
            key: rank single weights by "magnitude" or "value"; units by the norm or the sum of theirs.
            warm: what ``warm_start`` made, kept from call to call over similar scores: it saves time and is overwritten.

        Raises:
            ValueError: no scores, a sparsity out of range, an allocation that does not fit the layers, a pattern whose
                units are torn by the shards. TypeError: scores of another kind. With several processes all raise alike.
        """
        if self.group is not None or (isinstance(scores, Mapping) and any(map(shards.is_spread, scores.values()))):
            budget, group = self._agreed(scores, sparsity, key, warm)
        else:
            budget, group = self._planned(scores, sparsity, key, warm), None
        if isinstance(self.pattern, NM):
            return self._fixed(self.pattern, scores, key, group)
        values = list(scores.values())
        if not isinstance(self.pattern, Unstructured):
            values = self._by_pattern(group, lambda: unit_scores(self.pattern, scores, key))
            key = "value"
        floor = self.allocation.min_keep if isinstance(budget, int) else 0
        if floor:
            return self._with_floor(scores, values, budget, key, floor)  # pyright: ignore[reportArgumentType]
        chosen, invalid = self._select(values, budget, key, group, warm)
        return self._by_pattern(group, lambda: self._projected(scores, chosen, invalid))

    def _by_pattern(self, group: ProcessGroup | None, call: Callable[[], T]) -> T:
        """What ``call`` returns; the error of a pattern of someone else's making is raised on all processes."""
        together = None if is_ours(self.pattern) else group
        return agreement.alike("Projection: pattern", together, call, lambda _: {})

    def _planned(self, scores: Mapping[str, Tensor], sparsity: float, key: Key, warm: Tensor | None) -> Budget:
        """The budget of these scores, once they and the other arguments are known to be right."""
        check_scores(scores, self.group is not None)
        choose("Projection", "key", key, KEYS)
        shapes = {name: tuple(s.shape) for name, s in scores.items()}
        if isinstance(self.pattern, NM):
            unit_counts(self.pattern, shapes)
            self._check_fixed(self.pattern, sparsity)
            return 0
        budget = self._budget(shapes, sparsity)
        check_warm(warm, 1 if isinstance(budget, int) else len(budget), scores)
        return budget

    def _agreed(
        self, scores: Mapping[str, Tensor], sparsity: float, key: Key, warm: Tensor | None
    ) -> tuple[Budget, ProcessGroup]:
        """The budget of the scores of all processes and their group, or the error of one of them on all."""
        group = self.group
        if group is None:
            group = agreement.check_group("Projection", shards.group_of(scores.values()))
        problem, units, budget = None, 0, 0
        try:
            budget = self._planned(scores, sparsity, key, warm)
            self._check_spread(scores, budget)
            units = sum(unit_counts(self.pattern, {name: tuple(s.shape) for name, s in scores.items()}).values())
        except Exception as error:  # whatever it is, the others have to learn of it
            problem = error
        facts = {"projection": self, "sparsity": sparsity, "key": key, "units": units}
        stated = agreement.agree("Projection", group, problem, facts)
        for name in ("projection", "sparsity", "key"):
            agreement.same("Projection", stated, name)
        if self.group is not None and isinstance(budget, int):
            units = sum(int(facts["units"]) for facts in stated)
            budget = self.allocation({"all": (units,)}, {"all": units}, sparsity)
        return budget, group

    def _check_spread(self, scores: Mapping[str, Any], budget: Budget) -> None:
        shards.check_scores([f"Projection: scores[{name!r}]" for name in scores], list(scores.values()), self.group)
        spread = [s for s in scores.values() if shards.is_spread(s)]
        torn = not all(map(shards.is_replicated, spread))
        if torn and type(self.pattern) not in (Unstructured, Filter, NM):
            expected = "unstructured, filter or n:m for scores under Shard(0)"
            raise ValueError(f"Projection: pattern: expected {expected}, got {self.pattern!r}")
        if spread and isinstance(self.pattern, CoupledFilters):
            raise ValueError(f"Projection: scores: expected plain tensors for {self.pattern!r}, got DTensors")
        if isinstance(self.pattern, NM):
            for s in spread:
                self.pattern.unit_shape(tuple(shards.part(s).shape))
        if spread and isinstance(budget, int) and self.allocation.min_keep:
            raise ValueError(f"Projection: allocation: expected min_keep 0 for DTensors, got {self.allocation!r}")

    def warm_start(self, layers: int, device: torch.device) -> Tensor:
        """State for ``warm`` that knows nothing yet, for scores of so many layers on a device."""
        # Whether an allocation of someone else's making ranks all layers together shows only when it is called.
        rows = len(self.pattern.groups) if isinstance(self.pattern, CoupledFilters) else layers
        return ops.warm_start(1 if isinstance(self.allocation, Global) else max(rows, 1), device)

    def _select(
        self, values: list[Tensor], budget: Budget, key: Key, group: ProcessGroup | None, warm: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        """Masks of the best units, as words, or as bool where they are a shard's, and whether NaN makes them invalid."""
        # Units of a shard may be a vector, whose words would be one row that cannot be sharded.
        as_bool = any(map(shards.is_spread, values)) and not isinstance(self.pattern, Unstructured)
        options = {"key": key, "nan": self.nan, "out": "bool" if as_bool else "words"}
        if isinstance(budget, int):
            if group is None:
                return ops.topk_mask(values, budget, warm=None if warm is None else warm[:1], **options)
            return ops.dist_topk_mask(values, budget, group=self.group, **options)
        kept = list(budget.values())
        warm = None if warm is None else warm[: len(kept)]
        if group is None or self.group is not None:
            masks, invalid = ops.topk_mask(values, kept, scope="tensor", warm=warm, **options)
            return masks, invalid if group is None else ops.any_rank(invalid, group)
        parts = [ops.dist_topk_mask([v], n, **options) for v, n in zip(values, kept, strict=True)]
        return [part.masks[0] for part in parts], torch.stack([part.invalid for part in parts]).any()

    def _projected(self, scores: Mapping[str, Tensor], chosen: list[Tensor], invalid: Tensor) -> Projected:
        return Projected(Masks(masks_of_units(self.pattern, chosen, scores)), invalid)

    def _with_floor(
        self, scores: Mapping[str, Tensor], values: list[Tensor], kept: int, key: Key, floor: int
    ) -> Projected:
        """Global selection with at least ``floor`` units in each layer: their best ones first, then the best of the rest."""
        values, invalid = ranked_values(values, key, self.nan)
        # Units that are NaN cannot fill a floor; without counting them (for "keep" none is left) the total would fall short.
        able = [int((~torch.isnan(v)).sum()) if self.nan == "drop" else v.numel() for v in values]
        floors = [min(floor, n) for n in able]
        if sum(floors) > kept:
            raise ValueError(f"Projection: min_keep: expected at most {kept} units in all, got {sum(floors)}")
        secured = ops.topk_mask(values, floors, key="value", scope="tensor", nan="drop", out="bool").masks
        # NaN with the policy "drop" is never chosen, so the secured ones do not compete a second time.
        rest = [v.masked_fill(s, torch.nan) for v, s in zip(values, secured, strict=True)]
        others = ops.topk_mask(rest, kept - sum(floors), key="value", nan="drop", out="bool").masks
        chosen = [s | o for s, o in zip(secured, others, strict=True)]
        return self._projected(scores, chosen, invalid)

    def _check_fixed(self, pattern: NM, sparsity: float) -> None:
        """N:M fixes its own budget; any other sparsity is a contradiction."""
        kept_count(0, sparsity)  # is it a number in [0, 1)?
        if abs(float(sparsity) - (1 - pattern.n / pattern.m)) > 1e-9:
            expected = f"{1 - pattern.n / pattern.m:g} for {pattern.describe()}"
            raise ValueError(f"Projection: sparsity: expected {expected}, got {sparsity}")

    def _fixed(self, pattern: NM, scores: Mapping[str, Tensor], key: Key, group: ProcessGroup | None) -> Projected:
        masks, invalid = self._by_pattern(group, lambda: nm_masks(pattern, list(scores.values()), key, self.nan))
        named = Masks(dict(zip(scores, masks, strict=True)))
        return Projected(named, invalid if group is None else ops.any_rank(invalid, group))
