# SPDX-License-Identifier: Apache-2.0
"""What one run of a comparison has cost, added up over its phases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sparsekit.pruners.base import BasePruner


@dataclass
class Spent:
    """Cost of a run, phase by phase. captures, warm_up: seconds outside of the clock, part of none of the others."""

    seconds: float = 0.0
    steps: int = 0
    passes: int = 0
    samples: int = 0
    iterated: float = 0.0
    selection: float = 0.0
    captures: float = 0.0
    warm_up: float = 0.0

    def add_pruner(self, pruner: BasePruner, seconds: float, captures: float = 0.0) -> None:
        cost = pruner.cost
        self.captures += captures
        self.seconds += seconds
        self.steps += cost.steps
        self.passes += cost.passes
        self.samples += cost.samples
        # Samples that the steps would have used with one pass each.
        self.iterated += cost.samples * cost.steps / cost.passes if cost.passes else 0.0
        self.selection += cost.selection_seconds

    def plus(self, pruner: BasePruner, seconds: float, captures: float = 0.0) -> Spent:
        """What it would be with a pruner that is at work added."""
        total = replace(self)
        total.add_pruner(pruner, seconds, captures)
        return total

    def add_training(self, steps: int, batch_size: int, seconds: float, captures: float = 0.0) -> None:
        self.captures += captures
        self.seconds += seconds
        self.steps += steps
        self.passes += steps
        self.samples += steps * batch_size
        self.iterated += steps * batch_size

    def row(self, images: int, flops: float) -> dict[str, Any]:
        """The "cost" of a row: images of an epoch, and the operations that one image takes forward and backward."""
        busy = self.seconds - self.selection
        return {
            "steps": self.steps,
            "epochs": self.iterated / images,
            "passes": self.passes,
            "dense_epochs": self.samples / images,
            "passes_per_step": self.samples / self.iterated if self.iterated else 0.0,
            "seconds": self.seconds,
            "selection_seconds": self.selection,
            "seconds_per_pass": busy / self.passes if self.passes else 0.0,
            "selection_factor": self.seconds / busy if busy else 1.0,
            "flops": self.samples * flops,
            "capture_seconds": self.captures,
            "warm_up_seconds": self.warm_up,
        }
