# SPDX-License-Identifier: Apache-2.0
"""WoodFisher, in rounds along a ramp and in one shot."""

from __future__ import annotations

from typing import Any

from sparsekit.benchmarks.builders import Start, trained_with
from sparsekit.benchmarks.method import Method, phase_steps
from sparsekit.benchmarks.recipe import Recipe
from sparsekit.pruners import WoodFisher
from sparsekit.pruners.base import BasePruner
from sparsekit.pruners.ramp import as_ramp

# The source prunes every 5th of 100 epochs up to the 40th.
RAMP, PERIOD = 0.4, 0.05
# Its prunings have at most so many gradients, from an eighth of an epoch of ImageNet. Each is the mean of 400 images there
# and of a batch of the recipe here. Of small data sets an eighth would be two gradients.
MOST, SHARE, LEAST = 400, 0.125, 4


def fisher_batches(share: float, per_epoch: int) -> int:
    """Gradients of a pruning that has a share of an epoch for them."""
    return min(MOST, max(LEAST, round(share * per_epoch)))


def ramp_of(steps: int) -> dict[str, Any]:
    """Arguments for a gradual run of so many steps."""
    return {"ramp": RAMP, "every": max(1, round(PERIOD * steps))}


def prunings(steps: int) -> int:
    """How many of so many steps begin with a pruning."""
    plan = as_ramp("woodfisher", 0.0, "constant", steps, ramp_of(steps)["every"], RAMP, beyond=False)
    return sum(plan.target(step) is not None for step in range(plan.end + 1))


def gradual(start: Start) -> BasePruner:
    """WoodFisher along a cubic ramp over one phase, from the dense network."""
    count = fisher_batches(SHARE, start.steps_per_epoch)
    return trained_with(WoodFisher, start, steps=start.steps, fisher_batches=count, **ramp_of(start.steps))


def one_shot(start: Start) -> BasePruner:
    """WoodFisher in one shot, by a whole epoch of gradients, with the recipe's phase of fine-tuning."""
    count = fisher_batches(1, start.steps_per_epoch)
    return trained_with(WoodFisher, start, steps=start.steps, fisher_batches=count, ramp=0)


def gradual_epochs(recipe: Recipe, sparsity: float, images: int) -> float:
    """Cost of the phase and of all gradients."""
    per_epoch = images // recipe.batch_size
    gradients = prunings(recipe.epochs * per_epoch) * fisher_batches(SHARE, per_epoch)
    return recipe.epochs + gradients / per_epoch


def one_shot_epochs(recipe: Recipe, sparsity: float, images: int) -> float:
    """Cost of the phase and of the gradients before it."""
    per_epoch = images // recipe.batch_size
    return recipe.epochs + fisher_batches(1, per_epoch) / per_epoch


SECOND_ORDER: dict[str, Method] = {
    "woodfisher": Method(gradual, gradual_epochs, phase_steps, summary="WoodFisher along a cubic ramp in one run"),
    "woodfisher-oneshot": Method(one_shot, one_shot_epochs, phase_steps, summary="WoodFisher in one shot, fine-tuned"),
}
