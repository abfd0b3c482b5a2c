# SPDX-License-Identifier: Apache-2.0
"""Phases: what a pruner that goes in rounds is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparsekit.pruners.learning_rate import Curve


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one optimizer.

    steps: training steps, >= 0.
    curve: learning-rate curve; step i runs at curve((behind + i) / (behind + steps)). None where nothing is trained: the
        steps only recalibrate, open the phase with scores that take batches, or learn scores.
    sparsity: fraction removed when the phase opens; None leaves the masks.
    rewind: name of the state that the model returns to after that; None leaves the weights.
    behind: steps of the curve that count as done when the phase opens.
    recalibrate: instead of training, its one step estimates the BatchNorm statistics from that many batches.
    """

    steps: int
    curve: Curve | None
    sparsity: float | None = None
    rewind: str | None = None
    behind: int = 0
    recalibrate: int = 0

    @property
    def trains(self) -> bool:
        """Does it need an optimizer?"""
        return self.steps > 0 and self.curve is not None


def beginning(rewind_state: Mapping[str, Any] | None) -> tuple[str | None, dict[str, Mapping[str, Any]]]:
    """``rewind`` of a first phase and the states of its run, for a state to train from; None trains what the model has."""
    return (None, {}) if rewind_state is None else ("init", {"init": rewind_state})
