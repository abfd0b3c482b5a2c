# SPDX-License-Identifier: Apache-2.0
"""What every method of a comparison is built from; how each one is, is in ``families``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.allocation import Uniform
from sparsekit.benchmarks.curves import curve_of
from sparsekit.benchmarks.recipe import Recipe
from sparsekit.projection import Projection
from sparsekit.pruners.base import BasePruner, Loss


@dataclass(frozen=True)
class Start:
    """Where a method starts from.

    model: sparsified, holding the dense weights. init: state_dict before the dense training. steps_per_epoch: batches of
    the recipe's size in one epoch. images: training images.
    """

    model: nn.Module
    loss: Loss
    init: Mapping[str, Tensor]
    sparsity: float
    recipe: Recipe
    steps_per_epoch: int
    images: int

    @property
    def steps(self) -> int:
        """Steps of one retraining phase."""
        return self.recipe.epochs * self.steps_per_epoch


def projection_of(recipe: Recipe) -> Projection:
    """What masks look like: explicit for every method, so that all of a comparison count alike.

    Filters and channels are counted layer by layer, as in the papers, and at least one of each layer stays.
    """
    return Projection() if recipe.structure == "unstructured" else Projection(recipe.structure, Uniform(min_keep=1))  # pyright: ignore


def make_sgd(recipe: Recipe) -> Callable[[list[nn.Parameter]], torch.optim.SGD]:
    """Factory of the optimizer that every phase uses; with graphs one that they can replay."""

    def build(parameters: list[nn.Parameter]) -> torch.optim.SGD:
        lr = torch.tensor(recipe.lr, device=recipe.device) if recipe.graphs else recipe.lr
        values = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay, "nesterov": recipe.nesterov}
        return torch.optim.SGD(parameters, lr=lr, fused=recipe.graphs or None, **values)  # pyright: ignore[reportArgumentType]

    return build


def for_finetuning(start: Start) -> Start:
    """The same start with the learning rate and the curve that fine-tuning has."""
    return replace(start, recipe=start.recipe.finetune_part())


def trained_with(kind: Callable[..., BasePruner], start: Start, **own: Any) -> BasePruner:
    """A pruner that trains the weights with the recipe's optimizer; ``own`` adds to what all of these get, or replaces it."""
    shared: dict[str, Any] = {"optimizer": make_sgd(start.recipe), "projection": projection_of(start.recipe)}
    if start.recipe.curve != "cosine":
        if "curve" not in inspect.signature(kind).parameters:
            raise ValueError(f"curve: expected cosine for {kind.__name__}, got {start.recipe.curve!r}")
        shared["curve"] = curve_of(start.recipe.curve)
    return kind(start.model, start.loss, start.sparsity, **(shared | own))
