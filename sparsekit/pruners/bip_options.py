# SPDX-License-Identifier: Apache-2.0
"""Options of BiP beyond the paper's algorithm, each by name, none of them a default."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from sparsekit.modes import kept_modes
from sparsekit.nn import frozen_batchnorm
from sparsekit.patterns import Key
from sparsekit.pruners.checks import checked_count


@dataclass(frozen=True)
class BiPOptions:
    """What the paper leaves open, and named departures from it.

    key: rank scores by "magnitude" |s|, starting from theta (default), or by signed "value", starting from |theta|.
    lower_steps: lower steps (and batches) of an iteration, >= 1.
    upper_every: r >= 1: only iterations r, 2r, ... and the last take the upper step and project; the others take the lower
        steps alone. Steps, curves and schedule go on counting all iterations. 1 is the paper's.
    passes: 2 (paper: two batches, the upper one at the new theta) or 1 (one dense h serves both levels).
    upper_batches: n >= 1: with two passes, the upper step takes h as the mean over n batches, each of which costs a pass, as
        if its batch were n times as large (but for BatchNorm, which normalises each by itself). 1 is the paper's.
    start: of separate scores, "magnitude" (theta) or "masks": the model's present masks, which have to be as sparse as the
        schedule begins, are the first ones; scores differ from theta only where these differ from those of magnitude. To go on
        with a saved run, make the pruner with full masks or with those of its start, then load both states.
    scores: "separate" (paper) or "tied": s is theta itself, moved by both levels.
    upper_momentum, upper_weight_decay: of the SGD on the scores.
    upper_batchnorm: in the upper pass, "frozen" normalises with the batch but keeps the running statistics (default),
        "train" updates them a second time as the released code does, "eval" normalises with the running statistics.
        One pass serves both levels as any training does, so with passes=1 this is without effect.
    variant: "paper", or "released" for the score update of the authors' code: scores tied to theta, the square of the
        score gradient as implicit term, weight decay at both levels, statistics updated in both passes, counts floored.
        Left out: its third pass, which repeats the second one at the same weights, its upper steps on BatchNorm's affine
        parameters, and momentum left over from a frozen phase. Use gamma=1e4 for its lr2=1e-4.
    """

    key: Key = "magnitude"
    lower_steps: int = 1
    upper_every: int = 1
    passes: int = 2
    upper_batches: int = 1
    start: str = "magnitude"
    scores: str = "separate"
    upper_momentum: float = 0.9
    upper_weight_decay: float = 0.0
    upper_batchnorm: str = "frozen"
    variant: str = "paper"

    @property
    def tied(self) -> bool:
        """Are the scores theta itself?"""
        return self.scores == "tied"


_CHOICES: dict[str, tuple[Any, ...]] = {
    "key": ("magnitude", "value"),
    "passes": (1, 2),
    "start": ("magnitude", "masks"),
    "scores": ("separate", "tied"),
    "upper_batchnorm": ("frozen", "train", "eval"),
    "variant": ("paper", "released"),
}


_OF_RELEASED = (("key", "magnitude"), ("start", "magnitude"), ("upper_every", 1), ("upper_batches", 1))


def checked_lower(lower: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer, or an error unless it trains all of the masked weights."""
    held = {id(p) for group in lower.param_groups for p in group["params"]}
    for name, weight in weights.items():
        if id(weight) not in held or not weight.requires_grad:
            raise ValueError(f"BiP: lower: expected an optimizer over every masked weight, got one without `{name}`")
    return lower


def checked_options(options: BiPOptions, upper_lr: float, gamma: float, lower: torch.optim.Optimizer) -> BiPOptions:
    """The options with what their variant implies, or an error that names the argument."""
    for argument, choices in _CHOICES.items():
        if getattr(options, argument) not in choices:
            expected = ", ".join(map(str, choices))
            raise ValueError(f"BiP: {argument}: expected one of {expected}, got {getattr(options, argument)!r}")
    checked_count("BiP", "lower_steps", options.lower_steps)
    checked_count("BiP", "upper_every", options.upper_every)
    checked_count("BiP", "upper_batches", options.upper_batches)
    for argument in ("lower_steps", "upper_batches"):
        if options.passes == 1 and (got := getattr(options, argument)) != 1:
            raise ValueError(f"BiP: {argument}: expected 1 with passes=1, got {got}")
    if not (isinstance(gamma, (int, float)) and gamma > 0):
        raise ValueError(f"BiP: gamma: expected a number > 0 or inf, got {gamma!r}")
    if not (isinstance(upper_lr, (int, float)) and upper_lr >= 0 and math.isfinite(upper_lr)):
        raise ValueError(f"BiP: upper_lr: expected a finite number >= 0, got {upper_lr!r}")
    if not isinstance(lower, torch.optim.Optimizer):
        raise TypeError(
            f"BiP: lower: expected a torch optimizer over the model's parameters, got {type(lower).__name__}"
        )
    if options.variant == "released":
        for argument, expected in _OF_RELEASED:
            if (got := getattr(options, argument)) != expected:
                raise ValueError(f"BiP: {argument}: expected {expected} for variant='released', got {got!r}")
        decay = float(lower.param_groups[0].get("weight_decay", 0.0))
        return replace(options, scores="tied", upper_batchnorm="train", upper_weight_decay=decay)
    for argument in ("key", "start"):
        if options.tied and (got := getattr(options, argument)) != "magnitude":
            raise ValueError(f"BiP: {argument}: expected magnitude with scores='tied', got {got!r}")
    return options


@contextmanager
def batchnorm_policy(model: nn.Module, policy: str) -> Iterator[None]:
    """Run the upper pass under ``policy``; modes and statistics flags are as before afterwards."""
    if policy == "train":
        yield
    elif policy == "frozen":
        with frozen_batchnorm(model):
            yield
    else:
        with kept_modes(model):
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
            yield
