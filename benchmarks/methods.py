# SPDX-License-Identifier: Apache-2.0
"""The methods that a comparison can run: how each is built from a recipe, and what it will cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.allocation import Uniform
from sparsekit.benchmarks.recipe import Recipe
from sparsekit.projection import Projection
from sparsekit.pruners import IMP, OMP, BiP, BiPOptions, IMPOptions, OneShotMagnitude, SpODE
from sparsekit.pruners.base import BasePruner, Loss
from sparsekit.schedules import Cubic, imp_ladder


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


@dataclass(frozen=True)
class Method:
    """A method by its name.

    build: makes the pruner. finetune: is the pruner followed by fine-tuning for ``recipe.epochs``?
    passes: (recipe, sparsity, images of an epoch) -> cost of a run in dense-equivalent epochs, fine-tuning included.
    steps: (recipe, sparsity, steps of an epoch) -> pruner steps of a run, fine-tuning excluded.
    structured: can it prune filters and channels?
    """

    build: Callable[[Start], BasePruner]
    passes: Callable[[Recipe, float, int], float]
    steps: Callable[[Recipe, float, int], int]
    finetune: bool = False
    ode_batches: bool = False
    structured: bool = True
    summary: str = ""


def projection_of(recipe: Recipe) -> Projection:
    """What masks look like: explicit for every method, so that all of a comparison count alike.

    Filters and channels are counted layer by layer, as in the papers, and at least one of each layer stays.
    """
    return Projection() if recipe.structure == "unstructured" else Projection(recipe.structure, Uniform(min_keep=1))  # pyright: ignore


def make_sgd(recipe: Recipe) -> Callable[[list[nn.Parameter]], torch.optim.SGD]:
    """Factory of the optimizer that every phase uses."""

    def build(parameters: list[nn.Parameter]) -> torch.optim.SGD:
        return torch.optim.SGD(
            parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True
        )

    return build


def _imp(rewind: str) -> Callable[[Start], BasePruner]:
    def build(start: Start) -> BasePruner:
        return IMP(
            start.model,
            start.loss,
            start.sparsity,
            optimizer=make_sgd(start.recipe),
            steps_per_round=start.steps,
            rewind=rewind,
            rewind_state=start.init if rewind == "init" else None,
            projection=projection_of(start.recipe),
            options=IMPOptions(rate=start.recipe.imp_rate),
        )

    return build


def _budget(recipe: Recipe) -> int:
    return recipe.budget_epochs or 2 * recipe.epochs


def _imp_budget(start: Start) -> BasePruner:
    budget = _budget(start.recipe) * start.steps_per_epoch
    return IMP(
        start.model,
        start.loss,
        start.sparsity,
        optimizer=make_sgd(start.recipe),
        budget=budget,
        projection=projection_of(start.recipe),
        options=IMPOptions(rate=start.recipe.imp_rate),
    )


def _omp(start: Start) -> BasePruner:
    return OMP(
        start.model,
        start.loss,
        start.sparsity,
        optimizer=make_sgd(start.recipe),
        steps=start.steps,
        rewind_state=start.init,
        projection=projection_of(start.recipe),
    )


def _one_shot(start: Start) -> BasePruner:
    return OneShotMagnitude(
        start.model,
        start.loss,
        start.sparsity,
        optimizer=make_sgd(start.recipe),
        steps=start.steps,
        projection=projection_of(start.recipe),
    )


def _bip(cubic: bool = False, released: bool = False, **options: Any) -> Callable[[Start], BasePruner]:
    def build(start: Start) -> BasePruner:
        recipe = start.recipe
        ramp = Cubic(initial=0.0, final=start.sparsity, start=0, end=max(1, int(0.6 * start.steps)))
        return BiP(
            start.model,
            start.loss,
            start.sparsity,
            steps=start.steps,
            lower=make_sgd(recipe)(list(start.model.parameters())),
            upper_lr=recipe.upper_lr,
            gamma=1e4 if released else recipe.gamma,
            schedule=ramp if cubic else None,
            projection=projection_of(recipe),
            options=BiPOptions(variant="released" if released else "paper", **options),
        )

    return build


def _spode(start: Start) -> BasePruner:
    return SpODE(
        start.model,
        start.loss,
        start.sparsity,
        steps=start.recipe.ode_steps,
        radius=start.recipe.radius,
        projection=projection_of(start.recipe),
    )


def _rounds(recipe: Recipe, sparsity: float) -> int:
    return len(imp_ladder(sparsity, recipe.imp_rate))


def _phase_epochs(factor: float) -> Callable[[Recipe, float, int], float]:
    return lambda recipe, sparsity, images: factor * recipe.epochs


def _phase_steps(recipe: Recipe, sparsity: float, per_epoch: int) -> int:
    return recipe.epochs * per_epoch


_IMP_COST: dict[str, Any] = {
    "passes": lambda recipe, sparsity, images: _rounds(recipe, sparsity) * recipe.epochs,
    "steps": lambda recipe, sparsity, per_epoch: _rounds(recipe, sparsity) * recipe.epochs * per_epoch,
}

METHODS: dict[str, Method] = {
    "imp": Method(_imp("lr"), **_IMP_COST, summary="iterative magnitude pruning, learning-rate rewinding"),
    "imp-lth": Method(_imp("init"), **_IMP_COST, summary="iterative magnitude pruning, weights rewound to init"),
    "imp-finetune": Method(_imp("none"), **_IMP_COST, summary="iterative magnitude pruning, no rewinding"),
    "imp-budget": Method(
        _imp_budget,
        lambda recipe, sparsity, images: _budget(recipe),
        lambda recipe, sparsity, per_epoch: _budget(recipe) * per_epoch,
        summary="IMP with a fixed total of retraining, linear learning rate in each round",
    ),
    "omp": Method(_omp, _phase_epochs(1), _phase_steps, summary="one-shot magnitude, retrained from init"),
    "oneshot": Method(_one_shot, _phase_epochs(1), _phase_steps, summary="one-shot magnitude, fine-tuned"),
    "bip": Method(_bip(), _phase_epochs(2), _phase_steps, summary="bi-level pruning as in the paper"),
    "bip-cubic": Method(_bip(cubic=True), _phase_epochs(2), _phase_steps, summary="BiP with a cubic sparsity ramp"),
    "bip-1pass": Method(
        _bip(cubic=True, passes=1, scores="tied"),
        _phase_epochs(1),
        _phase_steps,
        summary="BiP in one pass with tied scores and a cubic ramp",
    ),
    "bip-released": Method(
        _bip(released=True),
        _phase_epochs(2),
        _phase_steps,
        structured=False,
        summary="BiP as the released code does",
    ),
    "bip-finetune": Method(
        _bip(), _phase_epochs(3), _phase_steps, finetune=True, summary="BiP as in the paper, then fine-tuning"
    ),
    "spode": Method(
        _spode,
        lambda recipe, sparsity, images: recipe.ode_steps * min(recipe.ode_batch, images) / images + recipe.epochs,
        lambda recipe, sparsity, per_epoch: recipe.ode_steps,
        finetune=True,
        ode_batches=True,
        summary="sparsity-indexed ODE, then fine-tuning",
    ),
}


def as_method(name: str) -> Method:
    """The method called ``name``; raises ValueError listing the known ones."""
    if name not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]


def check_method(name: str, recipe: Recipe) -> None:
    """Raise ValueError for a method that is unknown, or that cannot prune what the recipe prunes together."""
    if not as_method(name).structured and recipe.structure != "unstructured":
        raise ValueError(f"structure: expected unstructured for {name}, got {recipe.structure!r}")
