# SPDX-License-Identifier: Apache-2.0
"""What channel surgery buys: forward passes of the masked, the zero-filled and the small dense model, in eval mode.

python -m sparsekit.benchmarks.bench_compact --out rows.jsonl

Filters are chosen by magnitude in untrained networks, so many of each layer: which of them go decides neither time nor size.
Layer by layer ("filter") they seldom agree where outputs are added; coupled masks do. BatchNorm behind them is silenced.
"""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.allocation import Uniform
from sparsekit.benchmarks.bench_rows import bench_rows, main
from sparsekit.benchmarks.masking import sparsify_for
from sparsekit.benchmarks.networks import build_network
from sparsekit.benchmarks.recipe import Recipe
from sparsekit.benchmarks.timing import compare_times
from sparsekit.compact import CompactReport, compact
from sparsekit.coupling import coupled_filters
from sparsekit.nn import masked_layers, set_masks, silence_batchnorm_
from sparsekit.projection import Projection

MASKED, ZEROS, SMALL = "masked model", "dense, zeros", "compact"
MASKS = ("filter", "coupled")
TOLERANCE = 1e-5
"""Of outputs, relative to the largest (at least 1)."""


@dataclass(frozen=True)
class Setting:
    """A network for ten classes, a batch of images of 32 pixels per side, and the share of the filters that is masked."""

    network: str
    batch: int
    sparsity: float
    masks: str
    size: int = 32

    @property
    def name(self) -> str:
        """network bBATCH SHARE MASKS."""
        return f"{self.network} b{self.batch} {100 * self.sparsity:g}% {self.masks}"


SETTINGS = tuple(
    Setting(network, batch, sparsity, masks)
    for network, batch in (("resnet20", 32), ("resnet18", 8), ("vgg16", 8))
    for sparsity in (0.5, 0.7)
    for masks in MASKS
)


def pruned(setting: Setting, device: str = "cpu") -> tuple[nn.Module, Tensor]:
    """The masked network in eval mode, BatchNorm silenced, and a batch."""
    options = {"classes": 10, "channels": 3, "image_size": setting.size, "seed": 0}
    model = build_network(setting.network, **options).to(device)
    x = torch.randn(setting.batch, 3, setting.size, setting.size, generator=torch.Generator().manual_seed(0)).to(device)
    sparsify_for(model, Recipe(structure="filter"))
    pattern: Any = "filter" if setting.masks == "filter" else coupled_filters(model, x[:2])
    projection = Projection(pattern, Uniform(min_keep=1) if setting.masks == "filter" else Uniform())
    weights = {name: layer.weight.detach() for name, layer in masked_layers(model).items()}
    set_masks(model, projection(weights, setting.sparsity).masks)
    silence_batchnorm_(model, x[:2])
    return model.eval(), x


def facts(report: CompactReport) -> dict[str, Any]:
    """Of the surgery: filters asked for and removed, parameters and FLOPs before and after, the largest difference."""
    outputs = [layer.outputs for layer in report.layers]
    counts = {"asked": sum(side.asked for side in outputs), "removed": sum(side.removed for side in outputs)}
    sizes = {"parameters": list(report.parameters), "flops": list(report.flops)}
    return {**counts, "filters": sum(side.total for side in outputs), **sizes, "difference": report.difference}


def _alike(name: str, own: Tensor, expected: Tensor) -> None:
    gap = float((own - expected).abs().max() / expected.abs().max().clamp(min=1))
    if not gap <= TOLERANCE:
        raise ValueError(f"bench_compact: {name}: expected outputs within {TOLERANCE:g}, got a difference of {gap:.2g}")


def _forward(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    return torch.no_grad()(lambda: model(x))


def run(repeats: int, device: str = "cpu", only: str = "*") -> Iterator[dict[str, Any]]:
    """Rows for every setting that matches the glob, with the facts of its surgery.

    Raises:
        ValueError: nothing matches; Torch-Pruning is missing; outputs differ.
    """
    chosen = [setting for setting in SETTINGS if fnmatch.fnmatch(setting.name, only)]
    if not chosen:
        raise ValueError(f"bench_compact: only: expected a glob on {SETTINGS[0].name!r} and the like, got {only!r}")
    for setting in chosen:
        model, x = pruned(setting, device)
        small, report = compact(model, x[:2])
        models = {MASKED: model, ZEROS: report.models[0].eval(), SMALL: small.eval()}
        passes = {name: _forward(own, x) for name, own in models.items()}
        timings = compare_times(passes, baseline=MASKED, repeats=repeats, device=device, check=_alike)
        yield from bench_rows(
            "compact", setting.name, timings, network=setting.network, **_of(setting), **facts(report)
        )


def _of(setting: Setting) -> dict[str, Any]:
    return {name: getattr(setting, name) for name in ("batch", "size", "sparsity", "masks")}


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="*", help="glob on names of settings, such as 'resnet20 *'")


if __name__ == "__main__":
    main(__doc__ or "", run, _options)
