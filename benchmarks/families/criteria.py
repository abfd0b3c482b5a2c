# SPDX-License-Identifier: Apache-2.0
"""Pruning by a criterion in one shot: SNIP, GraSP and SynFlow, and whatever ``sk.criterion`` registers.

From initialisation, as their papers do; and from the trained weights with scores over all of the training data, as the
comparison of SpODE (PSO) does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparsekit.benchmarks.builders import Start, trained_with
from sparsekit.benchmarks.method import Method
from sparsekit.benchmarks.recipe import Recipe
from sparsekit.pruners import SNIP, Criterion, CriterionPruning, GraSP, SynFlow
from sparsekit.pruners.base import BasePruner

# Samples that GraSP's authors score CIFAR-10 with, ten of each class; here they are the next ones, in whole batches.
GRASP_SAMPLES = 100
# As many as the iterative mode has.
GRASP_ROUNDS = 10
# Of SynFlow's paper; each is one pass of one sample.
SYNFLOW_ROUNDS = 100

Batches = Callable[[Recipe, int], int]


def one_batch(recipe: Recipe, images: int) -> int:
    """SNIP's mini-batch."""
    return 1


def of_grasp(recipe: Recipe, images: int) -> int:
    """As many batches as have at least GraSP's samples."""
    return -(-GRASP_SAMPLES // recipe.batch_size)


def all_data(recipe: Recipe, images: int) -> int:
    """One epoch."""
    return images // recipe.batch_size


def scored(kind: Callable[..., BasePruner], pretrained: bool, batches: Batches | None, **own: Any) -> Any:
    """The pruner ``kind`` at the trained or at the initial weights, then the recipe's phase of training from these."""

    def build(start: Start) -> BasePruner:
        images = start.steps_per_epoch * start.recipe.batch_size
        options = own if batches is None else own | {"batches": batches(start.recipe, images)}
        state = None if pretrained else start.init
        return trained_with(kind, start, steps=start.steps, rewind_state=state, **options)

    return build


def _cost(batches: Batches, passes: int) -> Callable[[Recipe, float, int], float]:
    """One phase, and ``passes`` over each of the batches of the scores."""

    def epochs(recipe: Recipe, sparsity: float, images: int) -> float:
        return recipe.epochs + passes * batches(recipe, images) * recipe.batch_size / images

    return epochs


def _synflow_cost(recipe: Recipe, sparsity: float, images: int) -> float:
    return recipe.epochs + SYNFLOW_ROUNDS / images


def _steps(recipe: Recipe, sparsity: float, per_epoch: int) -> int:
    return 1 + recipe.epochs * per_epoch


def criterion_method(criterion: Criterion, pretrained: bool = False) -> Method:
    """A criterion of the user as a method; it is taken to go once, forward and backward, through each of its batches.

    Args:
        pretrained: score and train the trained weights; else the initial ones.
    """
    rounds = 1 if criterion.shared else criterion.rounds

    def batches(recipe: Recipe, images: int) -> int:
        return rounds * criterion.batches

    return Method(
        scored(CriterionPruning, pretrained, None, criterion=criterion),
        _cost(batches, 1),
        _steps,
        pretrained=pretrained,
        summary=f"the criterion {criterion.name}, {'fine-tuned' if pretrained else 'trained from init'}",
    )


_INIT: dict[str, Any] = {"steps": _steps, "pretrained": False}
_TRAINED: dict[str, Any] = {"steps": _steps}

CRITERION_METHODS: dict[str, Method] = {
    "snip": Method(
        scored(SNIP, False, one_batch),
        _cost(one_batch, 1),
        **_INIT,
        summary="connection sensitivity on one batch, trained from init",
    ),
    "grasp": Method(
        scored(GraSP, False, of_grasp),
        _cost(of_grasp, 3),
        **_INIT,
        summary="gradient flow after pruning, trained from init",
    ),
    "grasp-rounds": Method(
        scored(GraSP, False, of_grasp, rounds=GRASP_ROUNDS),
        _cost(of_grasp, 3 * GRASP_ROUNDS),
        **_INIT,
        summary="gradient flow in 10 rounds of scores, trained from init",
    ),
    "synflow": Method(
        scored(SynFlow, False, None, rounds=SYNFLOW_ROUNDS),
        _synflow_cost,
        **_INIT,
        summary="synaptic flow in 100 rounds without data, trained from init",
    ),
    "snip-pretrained": Method(
        scored(SNIP, True, all_data),
        _cost(all_data, 1),
        **_TRAINED,
        summary="connection sensitivity of the trained weights on all data, fine-tuned",
    ),
    "grasp-pretrained": Method(
        scored(GraSP, True, all_data),
        _cost(all_data, 3),
        **_TRAINED,
        summary="gradient flow of the trained weights on all data, fine-tuned",
    ),
    "synflow-pretrained": Method(
        scored(SynFlow, True, None, rounds=SYNFLOW_ROUNDS),
        _synflow_cost,
        **_TRAINED,
        summary="synaptic flow of the trained weights in 100 rounds, fine-tuned",
    ),
    "synflow-released": Method(
        scored(SynFlow, True, None, rounds=SYNFLOW_ROUNDS, batchnorm="train", double=False),
        _synflow_cost,
        **_TRAINED,
        summary="synaptic flow as SpODE's code scores it, in train mode, fine-tuned",
    ),
}
