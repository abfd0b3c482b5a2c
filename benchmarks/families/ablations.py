# SPDX-License-Identifier: Apache-2.0
"""BiP with one thing changed at a time, and its tickets shuffled or re-initialised."""

from __future__ import annotations

import math
from typing import Any

import torch

from sparsekit import mask_variants
from sparsekit.benchmarks.builders import Start
from sparsekit.benchmarks.families.bilevel import bip
from sparsekit.benchmarks.method import Method, phase_epochs, phase_steps
from sparsekit.nn import masks, set_masks


def shuffled(start: Start, seed: int) -> None:
    """Draw every layer's mask anew with as many ones: what a method chose beyond the densities of layers is gone."""
    set_masks(start.model, mask_variants.shuffled(masks(start.model), seed))


@torch.no_grad()
def reinitialised(start: Start, seed: int) -> None:
    """Return all weights and BatchNorm statistics to what they were before training; the masks stay."""
    for name, value in start.model.state_dict(keep_vars=True).items():
        if name in start.init:
            value.copy_(start.init[name])


_TWO: dict[str, Any] = {"passes": phase_epochs(2), "steps": phase_steps}
_ONE: dict[str, Any] = {"passes": phase_epochs(1), "steps": phase_steps}
_TUNED: dict[str, Any] = {"passes": phase_epochs(3), "steps": phase_steps, "finetune": True}

ABLATIONS: dict[str, Method] = {
    "bip-shuffled": Method(
        bip(),
        **_TUNED,
        between=shuffled,
        structured=False,
        summary="BiP, masks shuffled in every layer, then fine-tuning",
    ),
    "bip-reinit": Method(
        bip(), **_TUNED, between=reinitialised, summary="BiP, weights back to initialisation, then training"
    ),
    "bip-inf": Method(bip(gamma=math.inf), **_TWO, summary="BiP without the implicit gradient"),
    "bip-gamma0.1": Method(bip(gamma=0.1), **_TWO, summary="BiP, gamma 0.1"),
    "bip-gamma10": Method(bip(gamma=10.0), **_TWO, summary="BiP, gamma 10"),
    "bip-alpha0.1": Method(bip(alpha=0.1), **_TWO, summary="BiP, a tenth of the lower learning rate"),
    "bip-value": Method(bip(key="value"), **_TWO, summary="BiP, signed scores"),
    "bip-r4": Method(
        bip(upper_every=4),
        lambda recipe, sparsity, images: 1.25 * recipe.epochs,
        phase_steps,
        summary="BiP, upper step every 4th iteration",
    ),
    "bip-upper4": Method(
        bip(upper_batches=4),
        passes=phase_epochs(5),
        steps=phase_steps,
        summary="BiP, upper step on four batches",
    ),
    "bip-train-bn": Method(
        bip(upper_batchnorm="train"), **_TWO, summary="BiP, upper passes move the BatchNorm statistics too"
    ),
    "bip-1pass-separate": Method(
        bip(cubic=True, passes=1), **_ONE, summary="BiP in one pass, separate scores, cubic ramp"
    ),
    "bip-1pass-inf": Method(
        bip(cubic=True, passes=1, scores="tied", gamma=math.inf), **_ONE, summary="BiP in one pass, tied, no h*h term"
    ),
    "bip-1pass-constant": Method(
        bip(passes=1, scores="tied"), **_ONE, summary="BiP in one pass, tied, constant sparsity"
    ),
    "bip-1pass-r4": Method(
        bip(cubic=True, passes=1, scores="tied", upper_every=4),
        **_ONE,
        summary="BiP in one pass, tied, upper step every 4th iteration",
    ),
}

SWEPT: dict[str, Method] = {
    "bip-alpha0.01": Method(bip(alpha=0.01), **_TWO, summary="BiP, a hundredth of the lower learning rate"),
}
"""Values that only the sweeps of ``ablation_curves`` add: a suite of all ablations keeps its runs."""
