# SPDX-License-Identifier: Apache-2.0
"""Magnitude pruning in one shot, in rounds and along a ramp, random masks, and no pruning at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparsekit.allocation import ERK, Allocation
from sparsekit.benchmarks.builders import Start, for_finetuning, trained_with
from sparsekit.benchmarks.method import Method, phase_epochs, phase_steps
from sparsekit.benchmarks.recipe import Recipe
from sparsekit.projection import Projection
from sparsekit.pruners import DPF, GMP, IMP, OMP, IMPOptions, OneShotMagnitude, RandomPruning
from sparsekit.pruners.base import BasePruner
from sparsekit.schedules import imp_ladder


def imp(rewind: str) -> Callable[[Start], BasePruner]:
    """IMP with the recipe's phase per round."""

    def build(start: Start) -> BasePruner:
        state = start.init if rewind == "init" else None
        options = IMPOptions(rate=start.recipe.imp_rate)
        return trained_with(IMP, start, steps_per_round=start.steps, rewind=rewind, rewind_state=state, options=options)

    return build


def budget_epochs(recipe: Recipe) -> int:
    """Epochs that budgeted IMP has in all."""
    return recipe.budget_epochs or 2 * recipe.epochs


def imp_budget(start: Start) -> BasePruner:
    """IMP with a fixed total of retraining."""
    budget = budget_epochs(start.recipe) * start.steps_per_epoch
    return trained_with(IMP, start, budget=budget, options=IMPOptions(rate=start.recipe.imp_rate))


def omp(start: Start) -> BasePruner:
    """OMP, rewound to the weights before training."""
    return trained_with(OMP, start, steps=start.steps, rewind_state=start.init)


def one_shot(start: Start) -> BasePruner:
    """One-shot magnitude pruning with the recipe's phase of fine-tuning."""
    return trained_with(OneShotMagnitude, for_finetuning(start), steps=start.steps)


def dense(start: Start) -> BasePruner:
    """One phase more of dense training."""
    if start.sparsity:
        raise ValueError(f"method: dense: expected sparsity 0, got {start.sparsity}")
    return trained_with(OneShotMagnitude, start, steps=start.steps)


def ramped(kind: type[GMP] | type[DPF]) -> Callable[[Start], BasePruner]:
    """GMP or DPF over one phase."""
    return lambda start: trained_with(kind, start, steps=start.steps)


def random_masks(allocation: Allocation | None = None) -> Callable[[Start], BasePruner]:
    """Random masks, trained from the weights before training; without allocation they are counted as the recipe says."""

    def build(start: Start) -> BasePruner:
        own: dict[str, Any] = {} if allocation is None else {"projection": Projection(allocation=allocation)}
        return trained_with(RandomPruning, start, steps=start.steps, rewind_state=start.init, **own)

    return build


def _rounds(recipe: Recipe, sparsity: float) -> int:
    return len(imp_ladder(sparsity, recipe.imp_rate))


_IMP_COST: dict[str, Any] = {
    "passes": lambda recipe, sparsity, images: _rounds(recipe, sparsity) * recipe.epochs,
    "steps": lambda recipe, sparsity, per_epoch: _rounds(recipe, sparsity) * recipe.epochs * per_epoch,
    "chained": True,
}

MAGNITUDE: dict[str, Method] = {
    "imp": Method(imp("lr"), **_IMP_COST, summary="iterative magnitude pruning, learning-rate rewinding"),
    "imp-lth": Method(imp("init"), **_IMP_COST, summary="iterative magnitude pruning, weights rewound to init"),
    "imp-finetune": Method(imp("none"), **_IMP_COST, summary="iterative magnitude pruning, no rewinding"),
    "imp-budget": Method(
        imp_budget,
        lambda recipe, sparsity, images: budget_epochs(recipe),
        lambda recipe, sparsity, per_epoch: budget_epochs(recipe) * per_epoch,
        summary="IMP with a fixed total of retraining, linear learning rate in each round",
    ),
    "dense": Method(
        dense,
        phase_epochs(1),
        phase_steps,
        summary="no pruning: as many more epochs, to tell what training alone brings",
    ),
    "omp": Method(omp, phase_epochs(1), phase_steps, summary="one-shot magnitude, retrained from init"),
    "oneshot": Method(one_shot, phase_epochs(1), phase_steps, summary="one-shot magnitude, fine-tuned"),
    "gmp": Method(ramped(GMP), phase_epochs(1), phase_steps, summary="gradual magnitude pruning in one run"),
    "dpf": Method(ramped(DPF), phase_epochs(1), phase_steps, summary="dynamic pruning with feedback, cubic ramp"),
    "random": Method(
        random_masks(),
        phase_epochs(1),
        phase_steps,
        pretrained=False,
        summary="random masks over all layers, trained from init",
    ),
    "random-erk": Method(
        random_masks(ERK()),
        phase_epochs(1),
        phase_steps,
        pretrained=False,
        structured=False,
        summary="random masks by ERK, trained from init",
    ),
}
