# SPDX-License-Identifier: Apache-2.0
"""Pruners in rounds with training in between, all at the same rates: a line for each."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from sparsekit.benchmarks.builders import Start, make_sgd, projection_of
from sparsekit.benchmarks.families.criteria import SYNFLOW_ROUNDS, of_grasp
from sparsekit.benchmarks.method import Method
from sparsekit.benchmarks.recipe import Recipe
from sparsekit.pruners import SNIP, GraSP, Iterative, OneShotMagnitude, SpODE, SynFlow
from sparsekit.pruners.base import BasePruner

ROUNDS = 10
ROUND_SHARE = 5 / 140
"""Of all training steps, those of a round: 10 rounds of 5 epochs and 90 more at the end (Mo et al., ICML 2023, code)."""

Inner = Callable[[Start, nn.Module, float], BasePruner]
"""(start, model, sparsity of the round) -> the round's pruner, which accepts partial masks."""


def training_steps(recipe: Recipe, per_epoch: int) -> tuple[int, int]:
    """Training steps of a round and of the last training: one phase of the recipe in all, but one step each at least."""
    total = recipe.epochs * per_epoch
    each = max(1, int(total * ROUND_SHARE))
    return each, max(1, total - ROUNDS * each)


def iterative(inner: Inner) -> Callable[[Start], BasePruner]:
    """Any pruner in rounds; the rate of the rounds is that of the last training, the recipe's."""

    def build(start: Start) -> BasePruner:
        each, last = training_steps(start.recipe, start.steps_per_epoch)
        return Iterative(
            start.model,
            start.loss,
            start.sparsity,
            pruner=lambda model, sparsity: inner(start, model, sparsity),
            optimizer=make_sgd(start.recipe),
            rounds=ROUNDS,
            steps_per_round=each,
            final_steps=last,
        )

    return build


def entry(
    inner: Inner, inner_steps: Callable[[Recipe], int], summary: str, scored: Callable[[Recipe], int] | None = None
) -> Method:
    """A method of rounds.

    inner_steps: steps of the pruner of a round. scored: images that go through the network in these steps, as often as they
        do; by default a batch of the recipe's size in each.
    """

    def steps(recipe: Recipe, per_epoch: int) -> int:
        each, last = training_steps(recipe, per_epoch)
        return ROUNDS * (inner_steps(recipe) + each) + last

    def passes(recipe: Recipe, sparsity: float, images: int) -> float:
        each, last = training_steps(recipe, images // recipe.batch_size)
        of_pruners = scored(recipe) if scored else inner_steps(recipe) * recipe.batch_size
        return ((ROUNDS * each + last) * recipe.batch_size + ROUNDS * of_pruners) / images

    return Method(iterative(inner), passes, lambda recipe, sparsity, steps_: steps(recipe, steps_), summary=summary)


def magnitude(start: Start, model: nn.Module, sparsity: float) -> BasePruner:
    """The smallest weights of those that are left."""
    return OneShotMagnitude(model, start.loss, sparsity, projection=projection_of(start.recipe))


def euler_steps(recipe: Recipe) -> int:
    """Steps of SpODE in a round: as many in all as in one shot, so that they are of the same size.

    The source takes 100 in each round, an epoch of CIFAR-10 at its batch of 512.
    """
    return max(1, recipe.ode_steps // ROUNDS)


def spode(start: Start, model: nn.Module, sparsity: float) -> BasePruner:
    """SpODE from the present masks; the training after it sees to the BatchNorm statistics."""
    recipe = start.recipe
    own = {"steps": euler_steps(recipe), "radius": recipe.radius, "projection": projection_of(recipe)}
    return SpODE(model, start.loss, sparsity, recalibrate=0, **own)


def snip(start: Start, model: nn.Module, sparsity: float) -> BasePruner:
    """SNIP on the next batch, among the weights that are left."""
    return SNIP(model, start.loss, sparsity, projection=projection_of(start.recipe))


def grasp(start: Start, model: nn.Module, sparsity: float) -> BasePruner:
    """GraSP on its samples, among the weights that are left."""
    batches = of_grasp(start.recipe, start.images)
    return GraSP(model, start.loss, sparsity, batches=batches, projection=projection_of(start.recipe))


def synflow(start: Start, model: nn.Module, sparsity: float) -> BasePruner:
    """SynFlow among the weights that are left, in as many rounds over all as in one shot."""
    rounds = SYNFLOW_ROUNDS // ROUNDS
    return SynFlow(model, start.loss, sparsity, rounds=rounds, projection=projection_of(start.recipe))


def one_step(recipe: Recipe) -> int:
    """A criterion scores and prunes in one step."""
    return 1


ITERATIVE: dict[str, Method] = {
    "iter-magnitude": entry(magnitude, lambda recipe: 0, "magnitude pruning in 10 short rounds, then training"),
    "iter-spode": entry(spode, euler_steps, "SpODE in 10 short rounds, then training"),
    "iter-snip": entry(snip, one_step, "SNIP in 10 short rounds, then training"),
    "iter-grasp": entry(
        grasp,
        one_step,
        "GraSP in 10 short rounds, then training",
        lambda recipe: 3 * of_grasp(recipe, 0) * recipe.batch_size,
    ),
    "iter-synflow": entry(
        synflow, one_step, "SynFlow in 10 short rounds, then training", lambda recipe: SYNFLOW_ROUNDS // ROUNDS
    ),
}
