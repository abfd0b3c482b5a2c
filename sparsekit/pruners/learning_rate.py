# SPDX-License-Identifier: Apache-2.0
"""Learning-rate curves: fraction of a phase done -> factor of the base learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

Curve = Callable[[float], float]
CURVES: dict[str, Curve] = {
    "constant": lambda t: 1.0,
    "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
    "linear": lambda t: 1.0 - t,
    # BiP's step curve: x0.1 from half of the phase on, x0.01 from three quarters on.
    "step": lambda t: 1.0 if t < 0.5 else 0.1 if t < 0.75 else 0.01,
}


def as_curve(function: str, argument: str, curve: str | Curve) -> Curve:
    """A curve by name or as it is; raises ValueError naming the known ones."""
    if callable(curve):
        return curve
    if curve not in CURVES:
        raise ValueError(f"{function}: {argument}: expected a callable or one of {', '.join(CURVES)}, got {curve!r}")
    return CURVES[curve]


def as_curves(function: str, **curves: str | Curve) -> dict[str, Curve]:
    """``as_curve`` of several arguments by name."""
    return {argument: as_curve(function, argument, curve) for argument, curve in curves.items()}


def curve_text(curve: Curve) -> str:
    """A curve as part of checkpoints: its name, or that of the function with its values at k/16, never an address."""
    known = next((name for name, own in CURVES.items() if own is curve), None)
    if known is not None:
        return known
    name = getattr(curve, "__qualname__", type(curve).__name__)
    # Six digits, as libraries of mathematics differ in the last one.
    return f"{name}: {', '.join(f'{float(curve(k / 16)):.6g}' for k in range(16))}"


class LearningRate:
    """Sets the learning rate of every parameter group to its base value times the curve."""

    def __init__(self, optimizer: torch.optim.Optimizer, curve: Curve) -> None:
        self._optimizer, self._curve = optimizer, curve
        self._base = [float(group["lr"]) for group in optimizer.param_groups]

    def set(self, fraction: float) -> None:
        """fraction: of the phase done, in [0, 1)."""
        factor = self._curve(fraction)
        for group, base in zip(self._optimizer.param_groups, self._base, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(base * factor)
            else:
                group["lr"] = base * factor
