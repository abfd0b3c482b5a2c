# SPDX-License-Identifier: Apache-2.0
"""How the pruner of each method of a comparison is built from a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.allocation import ERK, Uniform
from sparsekit.benchmarks.recipe import Recipe
from sparsekit.mask import Mask
from sparsekit.nn import masks, set_masks
from sparsekit.projection import Projection
from sparsekit.pruners import DPF, GMP, IMP, OMP, BiP, BiPOptions, IMPOptions, OneShotMagnitude, RandomPruning, SpODE
from sparsekit.pruners.base import BasePruner, Loss
from sparsekit.schedules import Cubic


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
        values = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay, "nesterov": True}
        return torch.optim.SGD(parameters, lr=lr, fused=recipe.graphs or None, **values)  # pyright: ignore[reportArgumentType]

    return build


def _trained(kind: Callable[..., BasePruner], start: Start, **own: Any) -> BasePruner:
    """A pruner that trains the weights with the recipe's optimizer; ``own`` adds to what all of these get, or replaces it."""
    shared = {"optimizer": make_sgd(start.recipe), "projection": projection_of(start.recipe)}
    return kind(start.model, start.loss, start.sparsity, **(shared | own))


def imp(rewind: str) -> Callable[[Start], BasePruner]:
    """IMP with the recipe's phase per round."""

    def build(start: Start) -> BasePruner:
        state = start.init if rewind == "init" else None
        options = IMPOptions(rate=start.recipe.imp_rate)
        return _trained(IMP, start, steps_per_round=start.steps, rewind=rewind, rewind_state=state, options=options)

    return build


def budget_epochs(recipe: Recipe) -> int:
    """Epochs that budgeted IMP has in all."""
    return recipe.budget_epochs or 2 * recipe.epochs


def imp_budget(start: Start) -> BasePruner:
    """IMP with a fixed total of retraining."""
    budget = budget_epochs(start.recipe) * start.steps_per_epoch
    return _trained(IMP, start, budget=budget, options=IMPOptions(rate=start.recipe.imp_rate))


def omp(start: Start) -> BasePruner:
    """OMP, rewound to the weights before training."""
    return _trained(OMP, start, steps=start.steps, rewind_state=start.init)


def one_shot(start: Start) -> BasePruner:
    """One-shot magnitude pruning with the recipe's phase of fine-tuning."""
    return _trained(OneShotMagnitude, start, steps=start.steps)


def dense(start: Start) -> BasePruner:
    """One phase more of dense training."""
    if start.sparsity:
        raise ValueError(f"method: dense: expected sparsity 0, got {start.sparsity}")
    return one_shot(start)


def bip(
    cubic: bool = False, released: bool = False, gamma: float | None = None, alpha: float = 1.0, **options: Any
) -> Callable[[Start], BasePruner]:
    """BiP: with a ramp or as the released code does, another gamma, ``alpha`` times the learning rate; BiPOptions."""

    def build(start: Start) -> BasePruner:
        recipe = start.recipe
        ramp = Cubic(initial=0.0, final=start.sparsity, start=0, end=max(1, int(0.6 * start.steps)))
        return BiP(
            start.model,
            start.loss,
            start.sparsity,
            steps=start.steps,
            lower=make_sgd(replace(recipe, lr=alpha * recipe.lr))(list(start.model.parameters())),
            upper_lr=recipe.upper_lr,
            gamma=1e4 if released else gamma or recipe.gamma,
            schedule=ramp if cubic else None,
            projection=projection_of(recipe),
            options=BiPOptions(variant="released" if released else "paper", **options),
        )

    return build


@torch.no_grad()
def shuffled(start: Start, seed: int) -> None:
    """Draw every layer's mask anew with as many ones: what a method chose beyond the densities of layers is gone."""
    generator = torch.Generator().manual_seed(seed)
    new = {}
    for name, mask in masks(start.model).items():
        bits = mask.dense().cpu().flatten()
        new[name] = Mask.from_dense(bits[torch.randperm(len(bits), generator=generator)].reshape(mask.shape))
    set_masks(start.model, new)


@torch.no_grad()
def reinitialised(start: Start, seed: int) -> None:
    """Return all weights and BatchNorm statistics to what they were before training; the masks stay."""
    for name, value in start.model.state_dict(keep_vars=True).items():
        if name in start.init:
            value.copy_(start.init[name])


def ramped(kind: type[GMP] | type[DPF]) -> Callable[[Start], BasePruner]:
    """GMP or DPF over one phase."""
    return lambda start: _trained(kind, start, steps=start.steps)


def random_erk(start: Start) -> BasePruner:
    """Random masks by ERK, trained from the weights before training."""
    own = {"steps": start.steps, "rewind_state": start.init, "projection": Projection(allocation=ERK())}
    return _trained(RandomPruning, start, **own)


def spode(start: Start) -> BasePruner:
    """SpODE with the recipe's steps and radius."""
    return SpODE(
        start.model,
        start.loss,
        start.sparsity,
        steps=start.recipe.ode_steps,
        radius=start.recipe.radius,
        projection=projection_of(start.recipe),
    )
