# SPDX-License-Identifier: Apache-2.0
"""Hydra, movement pruning and ProbMask, whose masks are learned."""

from __future__ import annotations

from collections.abc import Callable

from sparsekit.allocation import Uniform
from sparsekit.benchmarks.builders import Start, projection_of, trained_with
from sparsekit.benchmarks.method import Method, phase_epochs, phase_steps
from sparsekit.projection import Projection
from sparsekit.pruners import Hydra, Movement, ProbMask
from sparsekit.pruners.base import BasePruner


def layerwise(start: Start) -> Projection:
    """Every layer alike: what the sources of Hydra and movement pruning do."""
    return Projection(allocation=Uniform()) if start.recipe.structure == "unstructured" else projection_of(start.recipe)


def hydra(projection: Callable[[Start], Projection]) -> Callable[[Start], BasePruner]:
    return lambda start: Hydra(start.model, start.loss, start.sparsity, steps=start.steps, projection=projection(start))


def movement(start: Start) -> BasePruner:
    return trained_with(Movement, start, steps=start.steps, projection=layerwise(start))


def probmask(start: Start) -> BasePruner:
    return trained_with(ProbMask, start, steps=start.steps, rewind_state=start.init, score_lr=0.1)


LEARNED: dict[str, Method] = {
    "hydra": Method(
        hydra(layerwise),
        phase_epochs(2),
        phase_steps,
        finetune=True,
        summary="learned scores, layer by layer, then fine-tuning",
    ),
    "hydra-global": Method(
        hydra(lambda start: projection_of(start.recipe)),
        phase_epochs(2),
        phase_steps,
        finetune=True,
        summary="learned scores over all layers as in BiP's comparison, then fine-tuning",
    ),
    "movement": Method(movement, phase_epochs(1), phase_steps, summary="movement pruning in one run"),
    "probmask": Method(
        probmask,
        phase_epochs(3),
        phase_steps,
        finetune=True,
        pretrained=False,
        structured=False,
        summary="masks drawn with learned probabilities, trained from init, then fine-tuning",
    ),
}
