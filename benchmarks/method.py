# SPDX-License-Identifier: Apache-2.0
"""What a comparison knows of a method, whichever it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sparsekit.benchmarks.builders import Start
from sparsekit.benchmarks.recipe import Recipe
from sparsekit.pruners.base import BasePruner


@dataclass(frozen=True)
class Method:
    """A method by its name.

    build: makes the pruner. finetune: is the pruner followed by fine-tuning for ``recipe.epochs``?
    then: makes a second pruner, of ``recipe.epochs`` too, which takes over the masks of the first in place of fine-tuning.
    between: (start, seed) -> changes masks or weights before what follows.
    passes: (recipe, sparsity, images of an epoch) -> cost of a run in dense-equivalent epochs, whatever follows included.
    steps: (recipe, sparsity, steps of an epoch) -> steps of the first pruner.
    ode_batches: does the first pruner take batches of the recipe's ``ode_batch``?
    pretrained: does it need the dense network? structured: can it prune filters and channels?
    chained: does a run do, on its way, exactly what runs at lower rungs do? summary: one line for people.
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


def phase_epochs(factor: float) -> Callable[[Recipe, float, int], float]:
    """Cost of a run of one phase, ``factor`` dense-equivalent epochs for each of its own."""
    return lambda recipe, sparsity, images: factor * recipe.epochs


def phase_steps(recipe: Recipe, sparsity: float, per_epoch: int) -> int:
    """Steps of a pruner that takes one phase."""
    return recipe.epochs * per_epoch
