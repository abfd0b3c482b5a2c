# SPDX-License-Identifier: Apache-2.0
"""SNIP: pruning by the sensitivity of the loss to each connection (Lee, Ajanthan and Torr, ICLR 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from sparsekit.gradients import Loss
from sparsekit.projection import Projection
from sparsekit.pruners.learning_rate import Curve
from sparsekit.pruners.optimizer_state import OptimizerFactory
from sparsekit.pruners.scored import CriterionPruning


class SNIP(CriterionPruning):
    """Keeps the largest |theta * h|, h = dl/dz at z = m * theta: what the loss changes by, to first order, without a weight.

    A filter or channel has the score of a gate on all of it, |sum of theta * h|.

    Args:
        model, loss, sparsity, optimizer, steps, rewind_state, curve, projection: see ``CriterionPruning``.
        batches: of each round, in memory at once; h is summed over them before the absolute value is taken. 1 is the paper's
            one mini-batch; the released code of SpODE (PSO) sums over the whole training set.
        rounds: 1 is the paper's; more score again what is left, each time on new batches.
        batchnorm: while scoring, "train" normalises with the batch; "eval" with the running statistics.

    Metrics: round (1), flips and regrown (0), and after the first step the loss.

    Raises:
        ValueError, TypeError: see ``CriterionPruning``.

    Source: the paper's connection sensitivity, whose division by the sum of all scores changes no order. The paper prunes
    biases too, scores at a first draw of the initial weights and trains a second one: here biases stay, and both are the
    same weights. Pruned theta: moved by weight decay alone; it is never used.
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
        batches: int = 1,
        rounds: int = 1,
        batchnorm: str = "train",
        curve: str | Curve = "cosine",
        projection: Projection | None = None,
    ) -> None:
        trained: dict[str, Any] = {"optimizer": optimizer, "steps": steps, "curve": curve, "rewind_state": rewind_state}
        scored: dict[str, Any] = {
            "batches": batches,
            "rounds": rounds,
            "batchnorm": batchnorm,
            "projection": projection,
        }
        super().__init__(model, loss, sparsity, "snip", **trained, **scored)
