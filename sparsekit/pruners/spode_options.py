# SPDX-License-Identifier: Apache-2.0
"""Options of SpODE that are rarely changed, and the checks of all its arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sparsekit.coupled import CoupledFilters
from sparsekit.patterns import Channel, Filter, Pattern, Unstructured
from sparsekit.pruners import flow
from sparsekit.pruners.checks import checked_sparsity
from sparsekit.pruners.polarisers import POLARISERS

SEARCHES = ("none", "auto", "autor")
MASK_OPTIONS = ("one", "mask", "sign")
RECALIBRATIONS = ("average", "released", "released_reset")
REALISED = 0.9
"""Share of the density asked for that a step of a search has to realise."""


@dataclass(frozen=True)
class SpODEOptions:
    """How the flow is discretised and read.

    step_schedule: how the density goes from its start to its target: "exp" (geometric; the released scripts), "lin",
        "invexp" (small steps first), or "hess": (G - k)/(steps left * |grad E|), which reads a number from the device
        in every step and leaves what it has not removed by then to the last projection.
    radius_schedule: "fix", "invexp" (rises to 4), or "hess" (1 + 3 |grad E|, at least radius; only with step_schedule
        "hess").
    reproject: rescale the gates after every step so that G is exactly the density planned. This moves no ranking.
        False is the bare Euler step: G lags behind the plan as ``flow.drift`` says, density and thresholds follow G
        itself, read from the device in every step. Of binary masks that keep a share k, the G of "l2" is sqrt(k): a run
        that begins with partial masks takes itself to be that dense after its first step and prunes too little, until
        its last projection. The released code does so from the second round of its iterative mode on.
    batchnorm: during the flow, "train" leaves BatchNorm as it is (in train mode its running statistics move), "frozen"
        keeps the running statistics, "eval" normalises with them.
    score_momentum: mu of S <- |m * theta| + mu S, in [0, 1); S ranks the last projection, |m * theta| all others.
    radius_search: "none", or a search in every step, "auto" or "autor", see ``spode_search``; seven forward passes more a
        step, counted in ``cost.forwards``. The metrics then show the radius taken. E of a trial uses the same batch; what
        a loss draws at random differs between trials.
    mask_option: what becomes of gates that are kept: "one" (they are 1), or, in the released code, "mask" (m stays a
        factor) and "sign" (its sign does). Here the factor goes into theta at the end, so that the masks remain masks.
    recalibration: of BatchNorm at the end: "average" over ``recalibrate`` batches; the released code has one batch in
        train mode with the momentum of the layers, after a reset ("released_reset", its way for single weights) or without
        one ("released", for channels); ``recalibrate`` 0 still means none.
    ratio, eps: lower quantile and steepness of the sigmoid polarisers, see ``polarise``.
    """

    step_schedule: str = "exp"
    radius_schedule: str = "fix"
    reproject: bool = True
    batchnorm: str = "train"
    score_momentum: float = 0.0
    radius_search: str = "none"
    mask_option: str = "one"
    recalibration: str = "average"
    ratio: float = 0.9
    eps: float = 0.9


_CHOICES: dict[str, tuple[str, ...]] = {
    "energy": flow.ENERGIES,
    "polariser": POLARISERS,
    "step_schedule": flow.STEP_SCHEDULES,
    "radius_schedule": flow.RADIUS_SCHEDULES,
    "batchnorm": ("train", "eval", "frozen"),
    "radius_search": SEARCHES,
    "mask_option": MASK_OPTIONS,
    "recalibration": RECALIBRATIONS,
}


def checked_arguments(options: SpODEOptions, radius: Any, energy: Any, polariser: Any, pattern: Pattern) -> None:
    """Raise an error that names the argument unless all are in range and fit together."""
    if not isinstance(options, SpODEOptions):
        raise TypeError(f"SpODE: options: expected SpODEOptions, got {type(options).__name__}")
    for argument, choices in _CHOICES.items():
        value = {"energy": energy, "polariser": polariser}.get(argument, getattr(options, argument, None))
        if value not in choices:
            raise ValueError(f"SpODE: {argument}: expected one of {', '.join(choices)}, got {value!r}")
    _check_number("radius", radius, 1.0, math.inf, "a finite number >= 1", closed=True)
    _check_number("score_momentum", options.score_momentum, 0.0, 1.0, "a number in [0, 1)", closed=True)
    _check_number("ratio", options.ratio, 0.0, 1.0, "a number in (0, 1)")
    _check_number("eps", options.eps, 0.5, 1.0, "a number in (0.5, 1)")
    if not isinstance(options.reproject, bool):
        raise TypeError(f"SpODE: reproject: expected a bool, got {options.reproject!r}")
    if options.radius_schedule == "hess" and options.step_schedule != "hess":
        raise ValueError(
            f"SpODE: radius_schedule: expected 'hess' only with step_schedule='hess', got {options.step_schedule!r}"
        )
    if options.radius_schedule == "invexp" and radius > flow.MAX_RADIUS:
        raise ValueError(
            f"SpODE: radius: expected at most {flow.MAX_RADIUS:g} for a radius that rises to it, got {radius!r}"
        )
    if not isinstance(pattern, (Unstructured, Filter, Channel, CoupledFilters)):
        expected = "the pattern Unstructured, Filter, Channel or CoupledFilters"
        raise ValueError(f"SpODE: projection: expected {expected}, got {pattern!r}")


def _check_number(argument: str, value: Any, low: float, high: float, expected: str, closed: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"SpODE: {argument}: expected {expected}, got {value!r}")
    if not (low < value < high or (closed and value == low)):
        raise ValueError(f"SpODE: {argument}: expected {expected}, got {value!r}")


def node_sparsity(sparsity: float) -> float:
    """Fraction of channels to remove in each layer so that about ``sparsity`` of the weights go.

    The paper's structured rule: if every layer keeps the share sqrt(k) of its input channels and, through the next
    layer, of its output channels, it keeps k of its weights. Use it as
    ``SpODE(model, loss, node_sparsity(0.72), projection=Projection("channel", "uniform"), ...)``.

    Args:
        sparsity: fraction of weights, in [0, 1).
    """
    return 1.0 - math.sqrt(1.0 - checked_sparsity("node_sparsity", sparsity))
