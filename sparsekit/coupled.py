# SPDX-License-Identifier: Apache-2.0
"""Filters of several layers that are kept or removed together, because what follows needs the same channels of all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from sparsekit import ops
from sparsekit.mask import Mask
from sparsekit.ops import replicas
from sparsekit.patterns import Filter, Key, Pattern, Units

T = TypeVar("T")


@dataclass(frozen=True)
class FilterGroup:
    """Units with members in the same layers.

    name: of the group, by which an allocation addresses it. members: layer name -> for each unit its filters in it, [n, k].
    """

    name: str
    members: tuple[tuple[str, tuple[tuple[int, ...], ...]], ...]
    _places: dict[torch.device, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.members[0][1])

    def places(self, device: torch.device) -> dict[str, Tensor]:
        """The members as int64 [n, k] by layer; made once for each device, as every projection asks."""
        if device not in self._places:
            self._places[device] = {layer: torch.tensor(rows, device=device) for layer, rows in self.members}
        return self._places[device]

    def weights(self, shapes: Mapping[str, Sequence[int]]) -> int:
        """Weights of one unit."""
        return sum(len(rows[0]) * Filter().unit_size(shapes[layer]) for layer, rows in self.members)


@dataclass(frozen=True, repr=False)
class CoupledFilters(Pattern):
    """A unit is a channel with all filters that produce it; ``sk.coupled_filters(model, example_inputs)`` finds them.

    Filters whose outputs are added, and those of a grouped or depthwise convolution, come and go together, so that every
    masked channel can be removed (``sk.compact``). The score of a unit is the square root of the sum of the squares of all
    its scores (key "magnitude"), or their sum ("value").

    groups: units with members in the same layers. An allocation sees groups in place of layers: their names, and
        (units, weights per unit) as shape. So "uniform" keeps kept_count(units, sparsity) of each group, "global"
        kept_count(all units, sparsity) of all. Filters that are in no unit, as those of the classifier, are always kept
        and do not count. layers: the shapes of all masked layers of the model.

    Layers have the names of the plain network. Those that ``torch.compile`` gives them, around it all or a part, are known.
    """

    groups: tuple[FilterGroup, ...]
    layers: tuple[tuple[str, tuple[int, ...]], ...]

    def __repr__(self) -> str:
        # Part of checkpoints, so it has to tell different couplings apart.
        said = json.dumps([[[g.name, g.members] for g in self.groups], self.layers])
        digest = hashlib.sha256(said.encode()).hexdigest()[:16]
        units = sum(map(len, self.groups))
        return f"CoupledFilters({units} units in {len(self.groups)} groups of {len(self.layers)} layers, {digest})"

    def unit_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return Filter().unit_shape(shape)

    def units_of(self, x: Tensor) -> Units:
        return Filter().units_of(x)

    def describe(self) -> str:
        return "coupled filters"

    def group_shapes(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        """What an allocation sees: group name -> (units, weights per unit). ValueError if the layers are others."""
        own = _by_plain_name(shapes)
        self._check(own)
        return {group.name: (len(group), group.weights(own)) for group in self.groups}

    def group_scores(self, scores: Mapping[str, Tensor], key: Key) -> list[Tensor]:
        """One score per unit of each group, to be ranked by value.

        Args:
            scores: layer name -> floats of the weight's shape; plain tensors.
        """
        plain = _by_plain_name(scores)
        of_filters = {n: ops.group_scores(s, "filter", p=2.0, key=key).double() for n, s in plain.items()}
        result = []
        for group in self.groups:
            total = torch.zeros(len(group), dtype=torch.float64, device=next(iter(of_filters.values())).device)
            for layer, places in group.places(total.device).items():
                # Column by column: an order that no device changes.
                for column in places.unbind(1):
                    part = of_filters[layer][column]
                    total = total + (part if key == "value" else part * part)
            result.append(total if key == "value" else total.sqrt())
        return result

    def masks(self, kept: Sequence[Tensor], scores: Mapping[str, Tensor]) -> dict[str, Mask]:
        """Masks of all layers from decisions on units: bool or words, one vector for each group."""
        units = [
            k if k.dtype == torch.bool else ops.unpack_mask(k, (len(g),))
            for k, g in zip(kept, self.groups, strict=True)
        ]
        filters = self.of_filters(units, scores, True)
        shapes = {name: tuple(s.shape) for name, s in scores.items()}
        return {n: Mask(ops.expand_units(ops.pack_mask(f), shapes[n], "filter"), shapes[n]) for n, f in filters.items()}

    def kept_units(self, filters: Mapping[str, Tensor]) -> list[Tensor]:
        """Bool per unit of each group: is any of its filters kept? filters: layer name -> bool per filter."""
        found, plain = [], _by_plain_name(filters)
        for group in self.groups:
            device = next(iter(plain.values())).device
            parts = [plain[layer][places].any(1) for layer, places in group.places(device).items()]
            found.append(torch.stack(parts).any(0))
        return found

    def of_filters(self, values: Sequence[Tensor], scores: Mapping[str, Tensor], fill: float) -> dict[str, Tensor]:
        """The values of units, one vector for each group, at their filters: a vector by layer; ``fill`` at the others."""
        like = values[0] if values else torch.empty(0, dtype=torch.bool)
        filters = {n: torch.full(s.shape[:1], fill, dtype=like.dtype, device=s.device) for n, s in scores.items()}
        plain = _by_plain_name(filters)
        for group, units in zip(self.groups, values, strict=True):
            for layer, places in group.places(units.device).items():
                plain[layer][places] = units[:, None].expand(places.shape)
        return filters

    def _check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        given, own = {name: tuple(shape) for name, shape in shapes.items()}, dict(self.layers)
        if given != own:
            wrong = next(name for name in {**own, **given} if own.get(name) != given.get(name))
            expected = "the layers of the model that coupled_filters was called with"
            raise ValueError(f"CoupledFilters: scores: expected {expected}, got a difference in {wrong!r}")


def _by_plain_name(values: Mapping[str, T]) -> dict[str, T]:
    return {replicas.plain_name(name): value for name, value in values.items()}
