# SPDX-License-Identifier: Apache-2.0
"""RandomPruning: masks drawn at random, the baseline that every criterion has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sparsekit.allocation import ERK, Global
from sparsekit.gradients import Loss
from sparsekit.patterns import NM, Key, Unstructured
from sparsekit.projection import Projection
from sparsekit.pruners.checks import checked_count
from sparsekit.pruners.learning_rate import Curve, as_curve
from sparsekit.pruners.optimizer_state import OptimizerFactory
from sparsekit.pruners.phases import Phase, beginning
from sparsekit.pruners.rounds import RoundPruner
from sparsekit.pruners.scoring import random_scores


class RandomPruning(RoundPruner):
    """Random masks in exact numbers per layer, drawn once, then training through them.

    Args:
        model: sparsified, masks full.
        loss: (model, batch) -> scalar.
        sparsity: fraction removed, in [0, 1).
        optimizer: list of trainable parameters -> fresh optimizer; needed when there are ``steps``.
        steps: training steps, each on one batch; with 0 the run is done once the model is pruned.
        rewind_state: state_dict of the plain or sparsified model to train from, usually as initialised; None trains the
            weights that the model has.
        seed: of the masks, >= 0; the same masks on every device and every process.
        curve: learning-rate curve ("constant", "cosine", "linear", "step" or callable).
        projection: pattern and allocation; by default unstructured and ERK. "uniform" and "global" (one draw over all
            layers, for single weights only, as units of several sizes could not be drawn alike) serve too. Without group.

    Metrics: loss, round (1), flips and regrown (0: the pruning comes before the first step).

    Raises:
        ValueError, TypeError: arguments out of range, of a wrong kind, or contradictory; nothing to prune.

    A float64 score is drawn for each weight from a CPU generator of its own, so that no other random number changes, and
    the largest are kept: all sets of the right size are equally likely. Sources: the random baselines of Frankle et al.,
    "Pruning neural networks at initialization", ICLR 2021; ERK as ``sparsekit.ERK`` says. Pruned theta: moved by weight
    decay alone; it is never used.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        sparsity: float,
        *,
        optimizer: OptimizerFactory | None = None,
        steps: int = 0,
        rewind_state: Mapping[str, Any] | None = None,
        seed: int = 0,
        curve: str | Curve = "cosine",
        projection: Projection | None = None,
    ) -> None:
        checked_count("RandomPruning", "steps", steps, 0)
        self.seed = checked_count("RandomPruning", "seed", seed, 0)
        if projection is None:
            projection = Projection(allocation=ERK())
        if isinstance(projection, Projection):
            _check_projection(projection)
        rewind, states = beginning(rewind_state)
        phase = Phase(steps, as_curve("RandomPruning", "curve", curve), sparsity, rewind)
        super().__init__(model, loss, sparsity, projection, (phase,), optimizer, states)

    def _scores(self) -> tuple[dict[str, Tensor], Key]:
        self.ranks.alike("arguments", lambda: None, seed=self.seed)
        return random_scores(self.weights, self.seed), "magnitude"

    def _config(self) -> dict[str, Any]:
        return super()._config() | {"seed": self.seed}


def _check_projection(projection: Projection) -> None:
    where = "RandomPruning: projection:"
    if projection.group is not None:
        raise ValueError(f"{where} expected no group, whose processes would draw the same numbers, got {projection!r}")
    if isinstance(projection.allocation, Global) and not isinstance(projection.pattern, (Unstructured, NM)):
        expected = f"an allocation per layer for {projection.pattern.describe()}"
        raise ValueError(f"{where} expected {expected}, got {projection.allocation!r}")
