# SPDX-License-Identifier: Apache-2.0
"""What channel surgery found and did, layer by layer, and what it bought."""

from __future__ import annotations

import importlib
import io
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.modes import kept_modes


@dataclass(frozen=True)
class Side:
    """Channels on one side of a layer.

    asked: without any weight of this layer. removable: whose removal changes nothing, here asked for or not. removed: those
    of them that were removed.
    """

    total: int
    asked: int
    removable: int
    removed: int


@dataclass(frozen=True)
class LayerCut:
    """One layer with filters. stays: why -> how many of its asked filters and inputs are still there."""

    name: str
    kind: str
    outputs: Side
    inputs: Side
    stays: dict[str, int]


@dataclass(frozen=True)
class Latency:
    """Medians of interleaved calls, in seconds."""

    before: float
    after: float
    repeats: int


@dataclass(frozen=True)
class CompactReport:
    """What ``compact`` did.

    layers: every layer with filters, in the order of the model. parameters, flops: before and after; the latter of one
    forward pass of the example inputs (torch.utils.flop_counter). silenced: BatchNorm -> channels whose affine was set to
    zero. difference: the largest between the outputs of both, relative to the largest output (at least 1).
    """

    layers: tuple[LayerCut, ...]
    parameters: tuple[int, int]
    flops: tuple[int, int]
    silenced: dict[str, int]
    difference: float
    models: tuple[nn.Module, nn.Module] = field(repr=False, compare=False)
    inputs: Sequence[Tensor] = field(repr=False, compare=False)

    def latency(self, repeats: int = 20, warmup: int = 3) -> Latency:
        """Time a forward pass of the example inputs in eval mode, the masked (dense) model and the small one in turn.

        Args:
            repeats: rounds that count, >= 1. warmup: rounds before them, >= 0.
        """
        for name, value, least in (("repeats", repeats, 1), ("warmup", warmup, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"CompactReport.latency: {name}: expected an integer >= {least}, got {value!r}")
        found: list[list[float]] = [[], []]
        for turn in range(warmup + repeats):
            for model, seconds in zip(self.models, found, strict=True):
                taken = _timed(model, self.inputs)
                if turn >= warmup:
                    seconds.append(taken)
        return Latency(statistics.median(found[0]), statistics.median(found[1]), repeats)

    def to_dict(self) -> dict[str, Any]:
        """The report as values of JSON."""
        names = ("layers", "parameters", "flops", "silenced", "difference")
        plain = {name: getattr(self, name) for name in names}
        return plain | {"layers": [asdict(layer) for layer in self.layers]} | {
            name: list(plain[name]) for name in ("parameters", "flops")
        }  # fmt: skip

    def table(self) -> Any:
        """A rich Table with one row for each layer."""
        columns = ("layer", "filters", "asked", "removable", "removed", "inputs", "asked", "removed", "stays")
        table = importlib.import_module("rich.table").Table(*columns)
        for layer in self.layers:
            out, into = layer.outputs, layer.inputs
            numbers = (out.total, out.asked, out.removable, out.removed, into.total, into.asked, into.removed)
            stays = "; ".join(f"{n}: {why}" for why, n in layer.stays.items())
            # As text, for names and reasons have brackets that rich would read as its own.
            text = importlib.import_module("rich.text").Text
            table.add_row(text(layer.name), *map(str, numbers), text(stays))
        return table

    def __str__(self) -> str:
        console = importlib.import_module("rich.console").Console(file=io.StringIO(), width=140)
        console.print(self.table())
        lines = [console.file.getvalue().rstrip()]
        for name, (before, after) in (("parameters", self.parameters), ("FLOPs", self.flops)):
            part = f" ({after / before:.1%} stay)" if before else ""
            lines.append(f"{name}: {before:,} -> {after:,}{part}")
        if self.silenced:
            lines.append(f"silenced: {sum(self.silenced.values())} channels of {len(self.silenced)} BatchNorm layers")
        return "\n".join(lines)


def _timed(model: nn.Module, inputs: Sequence[Tensor]) -> float:
    with kept_modes(model), torch.no_grad():
        model.eval()
        _wait(inputs)
        start = time.perf_counter()
        model(*inputs)
        _wait(inputs)
        return time.perf_counter() - start


def _wait(inputs: Sequence[Tensor]) -> None:
    if inputs[0].is_cuda:
        torch.cuda.synchronize(inputs[0].device)
