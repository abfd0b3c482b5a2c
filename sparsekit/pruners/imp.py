# SPDX-License-Identifier: Apache-2.0
"""IMP: iterative magnitude pruning (Frankle & Carbin, ICLR 2019), with its ways of going on after each pruning.

Round n = 1, 2, ...: keep the largest |theta| among what is left, (1 - rate)^n of all weights (the last round cuts
exactly to the target), then continue from

    "init"    the weights before training, learning-rate curve from its start (the lottery ticket)
    "early"   the weights after k training steps, curve from step k (Frankle et al., ICML 2020)
    "lr"      the trained weights, curve from its start (learning-rate rewinding, Renda et al., ICLR 2020)
    "none"    the trained weights at a small constant learning rate (fine-tuning)

and with a budget from the trained weights, the learning rate falling linearly to zero in every round (budgeted IMP,
Zimmer et al., ICLR 2023).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from sparsekit.gradients import Loss
from sparsekit.patterns import NM
from sparsekit.projection import Projection
from sparsekit.pruners.checks import checked_count, checked_sparsity
from sparsekit.pruners.learning_rate import CURVES, Curve, as_curve
from sparsekit.pruners.optimizer_state import OptimizerFactory
from sparsekit.pruners.phases import Phase
from sparsekit.pruners.rounds import RoundPruner
from sparsekit.schedules import imp_ladder

REWINDS = ("init", "early", "lr", "none")


@dataclass(frozen=True)
class IMPOptions:
    """What is rarely changed.

    rate: fraction of the remaining weights (or units) removed per round, in (0, 1).
    rewind_step: for rewind="early", training steps behind the state that is rewound to. With dense steps of its own IMP
        captures that state after so many of them, >= 1; otherwise it is how old the given state is, >= 0. Each round's
        curve resumes at this step.
    finetune_factor: for rewind="none", constant factor of the base learning rate, > 0.
    """

    rate: float = 0.2
    rewind_step: int = 0
    finetune_factor: float = 0.01


class IMP(RoundPruner):
    """Iterative magnitude pruning; a step trains on one batch, and the first one of a round prunes and rewinds first.

    Args:
        model: sparsified, masks full; pretrained if ``dense_steps`` is 0, else as initialised.
        loss: (model, batch) -> scalar.
        sparsity: final fraction removed, in [0, 1); with 0 there is one round, which prunes nothing.
        optimizer: list of trainable parameters -> fresh optimizer, called for every round (the dense one included).
        steps_per_round: training steps after each pruning.
        budget: in its place, training steps over all rounds, split evenly (later rounds get what is left over); the
            weights stay and the learning rate falls linearly to 0 in each round, whatever ``curve``.
        rewind: "init", "early", "lr" or "none" as above; by default "init", with a budget "lr" (and no other).
        rewind_state: for "init" and "early" without dense steps, state_dict of the plain or sparsified model to return
            to, with BatchNorm statistics; its masks are ignored. With dense steps IMP captures it itself.
        dense_steps: steps of dense training before the first pruning (round 0).
        curve: learning-rate curve of dense training and of the rounds ("constant", "cosine", "linear", "step" or
            callable).
        projection: pattern and allocation; global and unstructured by default.
        options: see IMPOptions.

    Attributes:
        ladder: sparsity of each round.

    Metrics: loss, round (0 = dense), flips and regrown (mask entries that changed or came back; regrown is always 0).

    Raises:
        ValueError, TypeError: arguments out of range, of a wrong kind, or contradictory; nothing to prune.

    Without dense steps the first pruning happens here, so that the masks hold before the first step. Pruned theta:
    rewound like the rest with "init" and "early", then moved by weight decay alone; it is never used or ranked again.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        sparsity: float,
        *,
        optimizer: OptimizerFactory,
        steps_per_round: int | None = None,
        budget: int | None = None,
        rewind: str | None = None,
        rewind_state: Mapping[str, Any] | None = None,
        dense_steps: int = 0,
        curve: str | Curve = "cosine",
        projection: Projection | None = None,
        options: IMPOptions | None = None,
    ) -> None:
        options = options or IMPOptions()
        self.ladder = _checked_ladder(sparsity, options.rate, projection)
        self.rewind = _checked_rewind(rewind, budget)
        _check_states(self.rewind, rewind_state, checked_count("IMP", "dense_steps", dense_steps, 0), options)
        dense_curve = as_curve("IMP", "curve", curve)
        round_curve = CURVES["linear"] if budget is not None else self._round_curve(dense_curve, options)
        target = self.rewind if self.rewind in ("init", "early") else None
        phases = [
            Phase(steps, round_curve, rung, target, options.rewind_step)
            for steps, rung in zip(_round_steps(len(self.ladder), steps_per_round, budget), self.ladder, strict=True)
        ]
        dense = [Phase(dense_steps, dense_curve)] if dense_steps else []
        states = {target: rewind_state} if target and not dense else {}
        captures = {options.rewind_step: target} if target and dense else {}
        super().__init__(model, loss, sparsity, projection, (*dense, *phases), optimizer, states, captures)

    def _round_curve(self, curve: Curve, options: IMPOptions) -> Curve:
        factor = options.finetune_factor
        return (lambda _: factor) if self.rewind == "none" else curve


def _checked_ladder(sparsity: float, rate: float, projection: Projection | None) -> tuple[float, ...]:
    ladder = imp_ladder(checked_sparsity("IMP", sparsity), rate) or (0.0,)
    if projection is not None and isinstance(projection.pattern, NM) and len(ladder) > 1:
        raise ValueError(f"IMP: projection: expected a pattern of any sparsity, got {projection.pattern}; use OMP")
    return ladder


def _checked_rewind(rewind: str | None, budget: int | None) -> str:
    if rewind is None:
        return "init" if budget is None else "lr"
    if rewind not in REWINDS:
        raise ValueError(f"IMP: rewind: expected one of {', '.join(REWINDS)}, got {rewind!r}")
    if budget is not None and rewind != "lr":
        raise ValueError(f"IMP: rewind: expected lr with a budget, got {rewind!r}")
    return rewind


def _check_states(rewind: str, state: Mapping[str, Any] | None, dense_steps: int, options: IMPOptions) -> None:
    """Is there exactly one source for what the rewind needs?"""
    restores = rewind in ("init", "early")
    if restores and not dense_steps and state is None:
        raise ValueError(f"IMP: rewind_state: expected a state dict for rewind={rewind!r}, or dense_steps, got neither")
    if state is not None and (dense_steps or not restores):
        reason = "with dense_steps" if restores else f"with rewind={rewind!r}"
        raise ValueError(f"IMP: rewind_state: expected None {reason}, got a state")
    step = checked_count("IMP", "rewind_step", options.rewind_step, 0)
    if rewind != "early" and step:
        raise ValueError(f"IMP: rewind_step: expected 0 with rewind={rewind!r}, got {step}")
    if rewind == "early" and dense_steps and not 1 <= step <= dense_steps:
        raise ValueError(f"IMP: rewind_step: expected an int in [1, {dense_steps}] (dense_steps), got {step}")
    factor = options.finetune_factor
    if not (isinstance(factor, (int, float)) and math.isfinite(factor) and factor > 0):
        raise ValueError(f"IMP: finetune_factor: expected a finite number > 0, got {factor!r}")


def _round_steps(rounds: int, steps_per_round: int | None, budget: int | None) -> list[int]:
    """Training steps of each round; a budget's remainder goes to the last rounds, one step each."""
    if (steps_per_round is None) == (budget is None):
        got = "neither" if budget is None else "both"
        raise ValueError(f"IMP: steps_per_round: expected either it or budget, got {got}")
    if budget is None:
        return [checked_count("IMP", "steps_per_round", steps_per_round)] * rounds
    least, extra = divmod(checked_count("IMP", "budget", budget, rounds), rounds)
    return [least + (n >= rounds - extra) for n in range(rounds)]
