# SPDX-License-Identifier: Apache-2.0
"""Channels of a network, each with everything that it passes through."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from sparsekit.channel_rules import CONVOLUTIONS, Traced, is_depthwise, obstacle
from sparsekit.channel_trace import Index, trace


@dataclass
class Channel:
    """One channel wherever it goes, as (layer, index).

    outputs: filters that produce it. depthwise: filters of depthwise convolutions on its way. inputs: of layers that read
    it. through: of BatchNorm and PReLU on its way. before, behind: of paddings that put zeros into it; index in their output.
    obstacle: why it cannot be removed whatever the weights are, or "".
    """

    outputs: list[tuple[str, int]] = field(default_factory=list)
    depthwise: list[tuple[str, int]] = field(default_factory=list)
    inputs: list[tuple[str, int]] = field(default_factory=list)
    through: list[tuple[str, int]] = field(default_factory=list)
    before: list[tuple[str, int]] = field(default_factory=list)
    behind: list[tuple[str, int]] = field(default_factory=list)
    obstacle: str = ""

    @property
    def filters(self) -> list[tuple[str, int]]:
        """All filters that have to be masked together."""
        return [*self.outputs, *self.depthwise]


def channels_of(function: str, plain: nn.Module, inputs: Sequence[Tensor]) -> list[Channel]:
    """All channels that a layer of the network produces, in the order of its layers.

    Args:
        function, plain, inputs: as of ``trace``, whose errors it raises.
    """
    graph, traced = trace(function, plain, inputs)
    sets, order = _Sets(), {module: i for i, module in enumerate(traced.names)}
    layers = sorted((n for m, n in graph.module2node.items() if m in order), key=lambda n: order[n.module])
    for node in layers:
        pruner = graph.get_pruner_of_module(node.module)
        width = pruner.get_out_channels(node.module)
        missing = [i for i in range(width or 0) if (node, True, i) not in sets.parent]
        if missing and node.type.name in ("CONV", "LINEAR", "DEPTHWISE_CONV"):
            _join_reached(graph, sets, _reached(node, pruner.prune_out_channels, missing))
        if type(node.module) in CONVOLUTIONS and node.module.groups > 1 and not is_depthwise(node.module):
            _join_groups(sets, node)
    found: dict[Any, Channel] = {}
    obstacles = {(n, side): obstacle(n, side, traced) for n in graph.module2node.values() for side in (True, False)}
    for place in sorted(sets.parent, key=lambda p: (order.get(p[0].module, len(order)), not p[1], p[2])):
        channel = found.setdefault(sets.root(place), Channel())
        channel.obstacle = channel.obstacle or obstacles[place[:2]] or _out_of_range(graph, place, traced)
        for kind, name, index in _written(place, traced):
            getattr(channel, kind).append((name, index))
    return [channel for channel in found.values() if channel.filters]


def _reached(node: Any, act: Any, indices: Sequence[int]) -> dict[tuple[Any, Any], set[Index]]:
    """(node, what is done to it) -> indices there that have to go with ``indices`` of a first node."""
    first = [Index(i, i) for i in indices]
    found: dict[tuple[Any, Any], set[Index]] = {(node, act): set(first)}
    stack: list[tuple[Any, Any, list[Index]]] = [(node, act, first)]
    while stack:
        node, act, here = stack.pop()
        for dep in node.dependencies:
            if not dep.is_triggered_by(act):
                continue
            there: Sequence[Any] = here
            for mapping in dep.index_mapping:
                there = there if mapping is None else mapping(there)
            known = found.setdefault((dep.target, dep.handler), set())
            fresh = [i for i in (Index(i.idx, i.root_idx) for i in there) if i not in known]
            known.update(fresh)
            if fresh:
                stack.append((dep.target, dep.handler, fresh))
    return found


class _Sets:
    """Disjoint sets of places, a place being (node, is it an output?, index)."""

    def __init__(self) -> None:
        self.parent: dict[Any, Any] = {}

    def root(self, place: Any) -> Any:
        self.parent.setdefault(place, place)
        while self.parent[place] != place:
            self.parent[place] = self.parent[self.parent[place]]
            place = self.parent[place]
        return place

    def join(self, places: Sequence[Any]) -> None:
        for place in places:
            self.parent[self.root(place)] = self.root(places[0])


def _out_of_range(graph: Any, place: Any, traced: Traced) -> str:
    """An obstacle where Torch-Pruning takes another dimension for channels, and so counts beyond those of a layer."""
    node, output, index = place
    pruner = graph.get_pruner_of_module(node.module)
    width = (pruner.get_out_channels if output else pruner.get_in_channels)(node.module)
    if node.module not in traced.names or width is None or 0 <= index < width:
        return ""
    return f"it is lost at `{traced.names[node.module]}`: Torch-Pruning cannot follow it there"


def _join_reached(graph: Any, sets: _Sets, reached: dict[tuple[Any, Any], set[Index]]) -> None:
    together: dict[int | None, list[Any]] = defaultdict(list)
    for (node, act), indices in reached.items():
        output = act == graph.get_pruner_of_module(node.module).prune_out_channels
        for index in sorted(indices, key=lambda i: i.idx):
            together[index.root_idx].append((node, output, index.idx))
    for places in together.values():
        sets.join(places)


def _join_groups(sets: _Sets, node: Any) -> None:
    """The groups of a convolution stay of one size, so what is at one place of a group goes with that of all others."""
    groups = node.module.groups
    for output, width in ((True, node.module.out_channels), (False, node.module.in_channels)):
        for i in range(width // groups):
            sets.join([(node, output, i + g * (width // groups)) for g in range(groups)])


def _written(place: Any, traced: Traced) -> Iterator[tuple[str, str, int]]:
    """(attribute of Channel, layer, index) for a place that is in a layer."""
    node, output, index = place
    if node.module not in traced.names:
        return
    if pad := traced.pads.get(traced.names[node.module]):
        if pad.before <= index < pad.before + pad.channels:
            return
        kind = "before" if index < pad.before else "behind"
    elif is_depthwise(node.module):
        kind = "depthwise"
    elif node.type.name in ("CONV", "LINEAR"):
        kind = "outputs" if output else "inputs"
    else:
        kind = "through"
    yield kind, traced.names[node.module], index
