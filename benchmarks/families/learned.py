# SPDX-License-Identifier: Apache-2.0
"""Hydra, movement pruning and ProbMask, whose masks are learned.

Their sources learn for thousands of steps, a recipe for perhaps a hundred. What moves the scores is enlarged accordingly:

- Hydra's scores move by the sum of their learning rates: 0.1 over 20 epochs of 391 steps in the source, here 0.1 * 6000 / steps
  where there are fewer. On digits that is 5, which of 0.1, 1, 5, 6, 10 and 100 was best on validation images. Momentum 0.9,
  weight decay 1e-4 and cosine are the source's, fine-tuning is the recipe's phase, as of every method.
- Adam moves a probability of ProbMask by about its rate, whatever the gradient, and 6e-3 is meant for 59,000 steps. With 0.2
  nearly all probabilities of a run on digits end at 0 or 1, with 0.06 a third of the kept ones does not pass one half. As it
  learns from scratch, learning lasts 2 phases and stands for the dense training of the others. Samples, norm, ramp and
  temperatures are the source's; its 20 epochs of fine-tuning at a hundredth of the rate are the recipe's phase.
- Movement pruning ends its ramp at half of the run, and its scores settle along a cosine, as the weights do by default: one
  schedule serves both in its source's code. Its scores are ranked over all layers, as those of the other methods of a
  comparison are.
"""

from __future__ import annotations

from collections.abc import Callable

from sparsekit.allocation import Uniform
from sparsekit.benchmarks.builders import Start, projection_of, trained_with
from sparsekit.benchmarks.method import Method, phase_epochs, phase_steps
from sparsekit.projection import Projection
from sparsekit.pruners import Hydra, Movement, ProbMask
from sparsekit.pruners.base import BasePruner

# Learning rate of Hydra's scores, and the steps below which it is enlarged.
HYDRA = (0.1, 6000)
# Phases of ProbMask's learning, and the learning rate of its probabilities.
PHASES, PROBMASK_RATE = 2, 0.2


def layerwise(start: Start) -> Projection:
    """Every layer alike, as Hydra's source has it."""
    return Projection(allocation=Uniform()) if start.recipe.structure == "unstructured" else projection_of(start.recipe)


def alike(start: Start) -> Projection:
    """What the other methods of the comparison have."""
    return projection_of(start.recipe)


def hydra(projection: Callable[[Start], Projection]) -> Callable[[Start], BasePruner]:
    """Hydra's learning of scores over one phase."""

    def build(start: Start) -> BasePruner:
        rate, steps = HYDRA
        own = {"score_lr": rate * max(1.0, steps / start.steps), "projection": projection(start)}
        return Hydra(start.model, start.loss, start.sparsity, steps=start.steps, **own)

    return build


def movement(start: Start) -> BasePruner:
    """Movement pruning over one phase."""
    own = {"ramp": 0.5, "score_curve": "cosine", "projection": projection_of(start.recipe)}
    return trained_with(Movement, start, steps=start.steps, **own)


def probmask(start: Start) -> BasePruner:
    """ProbMask's learning, from the weights before training."""
    own = {"rewind_state": start.init, "score_lr": PROBMASK_RATE}
    return trained_with(ProbMask, start, steps=PHASES * start.steps, **own)


LEARNED: dict[str, Method] = {
    "hydra": Method(
        hydra(layerwise),
        phase_epochs(2),
        phase_steps,
        finetune=True,
        summary="learned scores layer by layer, then fine-tuning",
    ),
    "hydra-global": Method(
        hydra(alike),
        phase_epochs(2),
        phase_steps,
        finetune=True,
        summary="learned scores over all layers, as BiP compares with, then fine-tuning",
    ),
    "movement": Method(movement, phase_epochs(1), phase_steps, summary="movement pruning in one run"),
    "probmask": Method(
        probmask,
        phase_epochs(2 * PHASES + 1),
        lambda recipe, sparsity, per_epoch: PHASES * recipe.epochs * per_epoch,
        finetune=True,
        pretrained=False,
        structured=False,
        summary="masks drawn with learned probabilities, from init, then fine-tuning",
    ),
}
