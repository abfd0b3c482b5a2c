# SPDX-License-Identifier: Apache-2.0
"""Epochs of the training engine: dense, masked, and BiP's, with data, projection and all.

python -m sparsekit.benchmarks.bench_epoch --device cuda --out rows.jsonl

A call is one epoch of 45,000 CIFAR-sized images on a GPU (bf16, channels last, graphs), five batches of it on a CPU; "steps"
in the row says which. A BiP epoch should cost at most 2.15 dense ones, and its projections ("selection") at most 2 % of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from sparsekit.benchmarks.bench_rows import bench_rows, main
from sparsekit.benchmarks.builders import make_sgd
from sparsekit.benchmarks.data import Data
from sparsekit.benchmarks.networks import build_network
from sparsekit.benchmarks.recipe import Recipe, recipe_for
from sparsekit.benchmarks.timing import compare_times
from sparsekit.benchmarks.training import LOSSES, step_of
from sparsekit.nn import sparsify
from sparsekit.pruners import BiP, BiPOptions, OneShotMagnitude
from sparsekit.pruners.base import BasePruner
from sparsekit.pruners.capture import captured

SPARSITY = 0.945
IMAGES = {"cuda": 45_000, "cpu": 5 * 128}
NETWORKS = {"cuda": ("resnet20", "resnet18"), "cpu": ("resnet20",)}
# More steps than any timing takes.
ENDLESS = 10**9


def _recipe(network: str, device: str) -> Recipe:
    fast = {"precision": "bf16", "channels_last": True, "graphs": True} if device == "cuda" else {}
    return recipe_for("cifar10", network=network, device=device, **fast)


def _data(recipe: Recipe) -> Data:
    """Images of noise: what they show does not change the time."""
    count, generator = IMAGES[recipe.device], torch.Generator().manual_seed(0)
    x = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    y = torch.randint(10, (count,), generator=generator)
    parts = {
        f"{kind}_{split}": t[: None if split == "train" else 1] for kind, t in (("x", x), ("y", y)) for split in SPLITS
    }
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.29)
    names = tuple(map(str, range(10)))
    data = Data("noise", mean=mean, std=std, class_names=names, augment="crop-flip", **parts)  # pyright: ignore
    return Data.to(data, recipe.device)


SPLITS = ("train", "val", "test")


def _network(recipe: Recipe) -> nn.Module:
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    model = build_network(recipe.network, classes=10, channels=3, image_size=32, seed=0)
    return model.to(recipe.device, memory_format=layout)  # pyright: ignore[reportCallIssue]


def _masked(recipe: Recipe) -> nn.Module:
    model = _network(recipe)
    sparsify(model)
    return model


def _bip(recipe: Recipe, **options: Any) -> BasePruner:
    model = _masked(recipe)
    lower = make_sgd(recipe)(list(model.parameters()))
    found = BiPOptions(**options)
    return BiP(model, LOSSES[recipe.precision], SPARSITY, steps=ENDLESS, lower=lower, options=found)


def _pruners(recipe: Recipe) -> dict[str, BasePruner]:
    loss, factory = LOSSES[recipe.precision], make_sgd(recipe)
    return {
        "masked": OneShotMagnitude(_masked(recipe), loss, SPARSITY, optimizer=factory, steps=ENDLESS),
        "BiP": _bip(recipe),
        "BiP, one pass, tied": _bip(recipe, passes=1, scores="tied"),
    }


def _epoch(take: Callable[[Any], Any], batches: Iterator[Any], steps: int) -> Callable[[], None]:
    def epoch() -> None:
        for _ in range(steps):
            take(batches)

    return epoch


def _rows(recipe: Recipe, repeats: int) -> Iterator[dict[str, Any]]:
    data = _data(recipe)
    steps = len(data.y_train) // recipe.batch_size

    def batches() -> Iterator[Any]:
        return data.batches("train", batch_size=recipe.batch_size, seed=0)

    model = _network(recipe)
    dense = step_of(model, make_sgd(recipe)(list(model.parameters())), LOSSES[recipe.precision], recipe.graphs)
    pruners = _pruners(recipe)
    work = {"dense": _epoch(lambda given: dense(next(given)), batches(), steps)}
    for name, pruner in pruners.items():
        runner = captured(pruner) if recipe.graphs else pruner
        work[name] = _epoch(runner.step, batches(), steps)
    timings = compare_times(
        work, baseline="dense", repeats=repeats, warmup=1, check=None, device=recipe.device, flush=False
    )
    share = {
        name: p.cost.selection_seconds / p.cost.steps * steps / timings[name].median for name, p in pruners.items()
    }
    facts = {"steps": steps, "batch_size": recipe.batch_size, "precision": recipe.precision, "selection_share": share}
    yield from bench_rows("epoch", recipe.network, timings, **facts)


def run(repeats: int, device: str = "cpu") -> Iterator[dict[str, Any]]:
    """Rows of every network on ``device`` ("cpu" or "cuda"); at most 5 rounds, as an epoch is long."""
    for network in NETWORKS[device]:
        yield from _rows(_recipe(network, device), min(repeats, 5))


if __name__ == "__main__":
    main(__doc__ or "", run)
