# SPDX-License-Identifier: Apache-2.0
"""The methods that a comparison can run: how each is built, and what it will cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparsekit.benchmarks.builders import (
    Start,
    bip,
    budget_epochs,
    dense,
    imp,
    imp_budget,
    make_sgd,
    omp,
    one_shot,
    projection_of,
    ramped,
    random_erk,
    reinitialised,
    shuffled,
    spode,
)
from sparsekit.benchmarks.recipe import Recipe, split_name
from sparsekit.pruners import DPF, GMP
from sparsekit.pruners.base import BasePruner
from sparsekit.schedules import imp_ladder

__all__ = ["METHODS", "Method", "Start", "as_method", "make_sgd", "projection_of"]


@dataclass(frozen=True)
class Method:
    """A method by its name.

    build: makes the pruner. finetune: is the pruner followed by fine-tuning for ``recipe.epochs``?
    then: makes a second pruner, of ``recipe.epochs`` too, which takes over the masks of the first in place of fine-tuning.
    between: (start, seed) -> changes masks or weights before what follows.
    passes: (recipe, sparsity, images of an epoch) -> cost of a run in dense-equivalent epochs, whatever follows included.
    steps: (recipe, sparsity, steps of an epoch) -> steps of the first pruner.
    pretrained: does it need the dense network? structured: can it prune filters and channels?
    chained: does a run do, on its way, exactly what runs at lower rungs do?
    """

    build: Callable[[Start], BasePruner]
    passes: Callable[[Recipe, float, int], float]
    steps: Callable[[Recipe, float, int], int]
    finetune: bool = False
    between: Callable[[Start, int], None] | None = None
    then: Callable[[Start], BasePruner] | None = None
    ode_batches: bool = False
    pretrained: bool = True
    structured: bool = True
    chained: bool = False
    summary: str = ""

    @property
    def follows(self) -> bool:
        """Does something follow the pruner, so that what is pruned can be evaluated before?"""
        return self.finetune or self.then is not None


def _rounds(recipe: Recipe, sparsity: float) -> int:
    return len(imp_ladder(sparsity, recipe.imp_rate))


def _phase_epochs(factor: float) -> Callable[[Recipe, float, int], float]:
    return lambda recipe, sparsity, images: factor * recipe.epochs


def _phase_steps(recipe: Recipe, sparsity: float, per_epoch: int) -> int:
    return recipe.epochs * per_epoch


def _ode_epochs(recipe: Recipe, images: int) -> float:
    return recipe.ode_steps * min(recipe.ode_batch, images) / images


_IMP_COST: dict[str, Any] = {
    "passes": lambda recipe, sparsity, images: _rounds(recipe, sparsity) * recipe.epochs,
    "steps": lambda recipe, sparsity, per_epoch: _rounds(recipe, sparsity) * recipe.epochs * per_epoch,
    "chained": True,
}

METHODS: dict[str, Method] = {
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
        _phase_epochs(1),
        _phase_steps,
        summary="no pruning: as many more epochs, to tell what training alone brings",
    ),
    "omp": Method(omp, _phase_epochs(1), _phase_steps, summary="one-shot magnitude, retrained from init"),
    "oneshot": Method(one_shot, _phase_epochs(1), _phase_steps, summary="one-shot magnitude, fine-tuned"),
    "bip": Method(bip(), _phase_epochs(2), _phase_steps, summary="bi-level pruning as in the paper"),
    "bip-cubic": Method(bip(cubic=True), _phase_epochs(2), _phase_steps, summary="BiP with a cubic sparsity ramp"),
    "bip-1pass": Method(
        bip(cubic=True, passes=1, scores="tied"),
        _phase_epochs(1),
        _phase_steps,
        summary="BiP in one pass with tied scores and a cubic ramp",
    ),
    "bip-released": Method(
        bip(released=True),
        _phase_epochs(2),
        _phase_steps,
        structured=False,
        summary="BiP as the released code does",
    ),
    "bip-finetune": Method(
        bip(), _phase_epochs(3), _phase_steps, finetune=True, summary="BiP as in the paper, then fine-tuning"
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
    "gmp": Method(ramped(GMP), _phase_epochs(1), _phase_steps, summary="gradual magnitude pruning in one run"),
    "dpf": Method(ramped(DPF), _phase_epochs(1), _phase_steps, summary="dynamic pruning with feedback, cubic ramp"),
    "random-erk": Method(
        random_erk,
        _phase_epochs(1),
        _phase_steps,
        pretrained=False,
        structured=False,
        summary="random masks by ERK, trained from init",
    ),
}


_TWO: dict[str, Any] = {"passes": _phase_epochs(2), "steps": _phase_steps}
_ONE: dict[str, Any] = {"passes": _phase_epochs(1), "steps": _phase_steps}
_TUNED: dict[str, Any] = {"passes": _phase_epochs(3), "steps": _phase_steps, "finetune": True}

ABLATIONS: dict[str, Method] = {
    "bip-shuffled": Method(
        bip(),
        **_TUNED,
        between=shuffled,
        structured=False,
        summary="BiP, masks shuffled in every layer, then fine-tuning",
    ),
    "bip-reinit": Method(
        bip(), **_TUNED, between=reinitialised, summary="BiP, weights back to initialisation, then training"
    ),
    "bip-inf": Method(bip(gamma=math.inf), **_TWO, summary="BiP without the implicit gradient"),
    "bip-gamma0.1": Method(bip(gamma=0.1), **_TWO, summary="BiP, gamma 0.1"),
    "bip-gamma10": Method(bip(gamma=10.0), **_TWO, summary="BiP, gamma 10"),
    "bip-alpha0.1": Method(bip(alpha=0.1), **_TWO, summary="BiP, a tenth of the lower learning rate"),
    "bip-value": Method(bip(key="value"), **_TWO, summary="BiP, signed scores"),
    "bip-r4": Method(
        bip(upper_every=4),
        lambda recipe, sparsity, images: 1.25 * recipe.epochs,
        _phase_steps,
        summary="BiP, upper step every 4th iteration",
    ),
    "bip-train-bn": Method(
        bip(upper_batchnorm="train"), **_TWO, summary="BiP, upper passes move the BatchNorm statistics too"
    ),
    "bip-1pass-separate": Method(
        bip(cubic=True, passes=1), **_ONE, summary="BiP in one pass, separate scores, cubic ramp"
    ),
    "bip-1pass-inf": Method(
        bip(cubic=True, passes=1, scores="tied", gamma=math.inf), **_ONE, summary="BiP in one pass, tied, no h*h term"
    ),
    "bip-1pass-constant": Method(
        bip(passes=1, scores="tied"), **_ONE, summary="BiP in one pass, tied, constant sparsity"
    ),
    "bip-1pass-r4": Method(
        bip(cubic=True, passes=1, scores="tied", upper_every=4),
        **_ONE,
        summary="BiP in one pass, tied, upper step every 4th iteration",
    ),
}
METHODS |= ABLATIONS


def as_method(name: str) -> Method:
    """The method called ``name``, without regard to a budget; raises ValueError listing the known ones."""
    own, _ = split_name(name)
    if own not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[own]


def check_method(name: str, recipe: Recipe) -> None:
    """Raise ValueError for a method that is unknown, or that cannot prune what the recipe prunes together."""
    if not as_method(name).structured and recipe.structure != "unstructured":
        raise ValueError(f"structure: expected unstructured for {name}, got {recipe.structure!r}")
