# SPDX-License-Identifier: Apache-2.0
"""Pruners in rounds with training in between, all at the same rates, and as SpODE's code has them; a line for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from sparsekit.benchmarks.builders import Start, make_sgd, projection_of
from sparsekit.benchmarks.curves import curve_of
from sparsekit.benchmarks.families.criteria import SYNFLOW_ROUNDS, Batches, all_data, of_grasp, one_batch
from sparsekit.benchmarks.method import Method
from sparsekit.benchmarks.recipe import Recipe
from sparsekit.pruners import SNIP, GraSP, Iterative, OneShotMagnitude, SpODE, SpODEOptions, SynFlow
from sparsekit.pruners.base import BasePruner

ROUNDS = 10
ROUND_SHARE = 5 / 140
"""Of all training steps, those of a round: 10 rounds of 5 epochs and 90 more at the end (Mo et al., ICML 2023, code)."""

Rates = tuple[float, float]
RELEASED, RELEASED_SPODE = (0.01, 1.0), (1.0, 0.3)
"""Factors of the recipe's rate, in the rounds and at the end: what SpODE's code gives the others, and itself, of 1e-2."""

Inner = Callable[[Start, nn.Module, float], BasePruner]
"""(start, model, sparsity of the round) -> the round's pruner, which accepts partial masks."""


def training_steps(recipe: Recipe, per_epoch: int) -> tuple[int, int]:
    """Training steps of a round and of the last training: one phase of the recipe in all, but one step each at least."""
    total = recipe.epochs * per_epoch
    each = max(1, int(total * ROUND_SHARE))
    return each, max(1, total - ROUNDS * each)


def iterative(inner: Inner, rates: Rates | None = None) -> Callable[[Start], BasePruner]:
    """Any pruner in rounds; the last training has rate and curve of fine-tuning.

    rates: factors of the recipe's rate, in place of its rates of the rounds and of the fine-tuning; None leaves them.
    """

    def build(start: Start) -> BasePruner:
        each, last = training_steps(start.recipe, start.steps_per_epoch)
        parts = start.recipe, start.recipe.finetune_part()
        own = [part.lr for part in parts] if rates is None else [rate * start.recipe.lr for rate in rates]
        of_rounds, of_last = (make_sgd(replace(part, lr=lr)) for part, lr in zip(parts, own, strict=True))
        return Iterative(
            start.model,
            start.loss,
            start.sparsity,
            pruner=lambda model, sparsity: inner(start, model, sparsity),
            optimizer=of_rounds,
            rounds=ROUNDS,
            steps_per_round=each,
            final_steps=last,
            final_optimizer=of_last,
            curve=curve_of(parts[0].curve),
            final_curve=curve_of(parts[1].curve),
        )

    return build


def entry(
    inner: Inner,
    inner_steps: Callable[[Recipe], int],
    summary: str,
    scored: Callable[[Recipe, int], int] | None = None,
    rates: Rates | None = None,
) -> Method:
    """A method of rounds.

    inner_steps: steps of the pruner of a round. scored: (recipe, images of an epoch) -> images that go through the network in
        these steps, as often as they do; by default a batch of the recipe's size in each. rates: see ``iterative``.
    """

    def steps(recipe: Recipe, sparsity: float, per_epoch: int) -> int:
        each, last = training_steps(recipe, per_epoch)
        return ROUNDS * (inner_steps(recipe) + each) + last

    def passes(recipe: Recipe, sparsity: float, images: int) -> float:
        each, last = training_steps(recipe, images // recipe.batch_size)
        of_pruners = scored(recipe, images) if scored else inner_steps(recipe) * recipe.batch_size
        return ((ROUNDS * each + last) * recipe.batch_size + ROUNDS * of_pruners) / images

    return Method(iterative(inner, rates), passes, steps, summary=summary)


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
    return SpODE(
        model,
        start.loss,
        sparsity,
        steps=euler_steps(recipe),
        radius=recipe.radius,
        polariser=recipe.polariser,
        projection=projection_of(recipe),
        recalibrate=0,
        options=SpODEOptions(score_momentum=recipe.score_momentum),
    )


def on_data(kind: type[SNIP] | type[GraSP], batches: Batches) -> Inner:
    """SNIP or GraSP on the next batches, among the weights that are left."""

    def build(start: Start, model: nn.Module, sparsity: float) -> BasePruner:
        drawn = batches(start.recipe, start.images)
        return kind(model, start.loss, sparsity, batches=drawn, projection=projection_of(start.recipe))

    return build


def synflow(**options: Any) -> Inner:
    """SynFlow among the weights that are left, in as many rounds over all as in one shot; options: of ``sk.SynFlow``."""

    def build(start: Start, model: nn.Module, sparsity: float) -> BasePruner:
        projection = projection_of(start.recipe)
        return SynFlow(model, start.loss, sparsity, rounds=SYNFLOW_ROUNDS // ROUNDS, projection=projection, **options)

    return build


def one_step(recipe: Recipe) -> int:
    """A criterion scores and prunes in one step."""
    return 1


def passing(times: int, batches: Batches) -> Callable[[Recipe, int], int]:
    """Images that a criterion sees when it goes ``times`` through its batches."""
    return lambda recipe, images: times * batches(recipe, images) * recipe.batch_size


def of_synflow(recipe: Recipe, images: int) -> int:
    """One image in each of its rounds."""
    return SYNFLOW_ROUNDS // ROUNDS


def no_steps(recipe: Recipe) -> int:
    """Magnitude is done when it is made."""
    return 0


_EQUAL, _UNEQUAL = "in 10 short rounds, then training", "in rounds, at the unequal rates of SpODE's code"

ITERATIVE: dict[str, Method] = {
    "iter-magnitude": entry(magnitude, no_steps, f"magnitude pruning {_EQUAL}"),
    "iter-spode": entry(spode, euler_steps, f"SpODE {_EQUAL}"),
    "iter-snip": entry(on_data(SNIP, one_batch), one_step, f"SNIP {_EQUAL}"),
    "iter-grasp": entry(on_data(GraSP, of_grasp), one_step, f"GraSP {_EQUAL}", passing(3, of_grasp)),
    "iter-synflow": entry(synflow(), one_step, f"SynFlow {_EQUAL}", of_synflow),
    "iter-magnitude-released": entry(magnitude, no_steps, f"magnitude pruning {_UNEQUAL}", rates=RELEASED),
    "iter-spode-released": entry(spode, euler_steps, f"SpODE {_UNEQUAL}", rates=RELEASED_SPODE),
    "iter-snip-released": entry(
        on_data(SNIP, all_data), one_step, f"SNIP on all data {_UNEQUAL}", passing(1, all_data), RELEASED
    ),
    "iter-grasp-released": entry(
        on_data(GraSP, all_data), one_step, f"GraSP on all data {_UNEQUAL}", passing(3, all_data), RELEASED
    ),
    "iter-synflow-released": entry(
        synflow(batchnorm="train", double=False),
        one_step,
        f"SynFlow in train mode {_UNEQUAL}",
        of_synflow,
        RELEASED,
    ),
}
