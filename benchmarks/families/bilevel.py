# SPDX-License-Identifier: Apache-2.0
"""BiP and SpODE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sparsekit.benchmarks.builders import Start, make_sgd, projection_of
from sparsekit.benchmarks.curves import curve_of
from sparsekit.benchmarks.method import Method, phase_epochs, phase_steps
from sparsekit.benchmarks.recipe import Recipe
from sparsekit.pruners import BiP, BiPOptions, SpODE, SpODEOptions
from sparsekit.pruners.base import BasePruner
from sparsekit.schedules import Cubic


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
            lower=make_sgd(replace(recipe, lr=alpha * (recipe.lower_lr or recipe.lr)))(list(start.model.parameters())),
            lower_curve=curve_of(recipe.curve),
            upper_lr=recipe.upper_lr,
            gamma=1e4 if released else gamma or recipe.gamma,
            schedule=ramp if cubic else None,
            projection=projection_of(recipe),
            options=BiPOptions(variant="released" if released else "paper", **options),
        )

    return build


def spode(start: Start) -> BasePruner:
    """SpODE with the recipe's steps and radius."""
    return SpODE(
        start.model,
        start.loss,
        start.sparsity,
        steps=start.recipe.ode_steps,
        radius=start.recipe.radius,
        polariser=start.recipe.polariser,
        options=SpODEOptions(score_momentum=start.recipe.score_momentum),
        projection=projection_of(start.recipe),
    )


def _ode_epochs(recipe: Recipe, images: int) -> float:
    return recipe.ode_steps * min(recipe.ode_batch, images) / images


BILEVEL: dict[str, Method] = {
    "bip": Method(bip(), phase_epochs(2), phase_steps, summary="bi-level pruning as in the paper"),
    "bip-cubic": Method(bip(cubic=True), phase_epochs(2), phase_steps, summary="BiP with a cubic sparsity ramp"),
    "bip-1pass": Method(
        bip(cubic=True, passes=1, scores="tied"),
        phase_epochs(1),
        phase_steps,
        summary="BiP in one pass with tied scores and a cubic ramp",
    ),
    "bip-released": Method(
        bip(released=True),
        phase_epochs(2),
        phase_steps,
        structured=False,
        summary="BiP as the released code does",
    ),
    "bip-finetune": Method(
        bip(), phase_epochs(3), phase_steps, finetune=True, summary="BiP as in the paper, then fine-tuning"
    ),
    "spode": Method(
        spode,
        lambda recipe, sparsity, images: _ode_epochs(recipe, images) + recipe.epochs,
        lambda recipe, sparsity, per_epoch: recipe.ode_steps,
        finetune=True,
        ode_batches=True,
        summary="sparsity-indexed ODE, then fine-tuning",
    ),
    "spode-bip": Method(
        spode,
        lambda recipe, sparsity, images: _ode_epochs(recipe, images) + 2 * recipe.epochs,
        lambda recipe, sparsity, per_epoch: recipe.ode_steps,
        then=bip(start="masks"),
        ode_batches=True,
        summary="sparsity-indexed ODE, then BiP from its masks",
    ),
}
