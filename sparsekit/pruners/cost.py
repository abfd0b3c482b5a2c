# SPDX-License-Identifier: Apache-2.0
"""What a pruner has spent: steps, forward+backward passes, samples, and the time that selecting masks took."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sparsekit.pruners.checks import check_keys, checked_count


def first_of(batch: Any) -> Any:
    """What a batch begins with, inside tuples, lists and mappings: a tensor as a rule."""
    first = batch
    while isinstance(first, (tuple, list, Mapping)) and first:
        first = next(iter(first.values())) if isinstance(first, Mapping) else first[0]
    return first


def batch_size(batch: Any) -> int:
    """Samples in a batch: dim 0 of its first tensor; 0 where that cannot be told."""
    first = first_of(batch)
    return int(first.shape[0]) if isinstance(first, Tensor) and first.ndim else 0


class Cost:
    """Counters of one run.

    steps: iterations of the pruner. passes: forward+backward pairs. samples: summed over the passes. forwards: samples that
    were seen by a forward pass alone, as SpODE's search for a radius does.
    """

    def __init__(self, device: torch.device) -> None:
        self.steps = 0
        self.passes = 0
        self.samples = 0
        self.forwards = 0
        self._device = device
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []

    def count_pass(self, samples: int) -> None:
        """Count one forward+backward pass."""
        self.passes += 1
        self.samples += samples

    def count_forward(self, samples: int) -> None:
        """Count one forward pass without a backward pass."""
        self.forwards += samples

    def absorb(self, other: Cost) -> None:
        """Move what another has counted here, but for its steps; waits for nothing."""
        self.passes, self.samples = self.passes + other.passes, self.samples + other.samples
        self._seconds, self._events = self._seconds + other._seconds, [*self._events, *other._events]
        self.forwards += other.forwards
        other.passes = other.samples = other.forwards = 0
        other._seconds, other._events = 0.0, []

    @contextmanager
    def selection(self) -> Iterator[None]:
        """Time what happens within as mask selection: on a GPU by events, without waiting; not within a graph capture."""
        if self._device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            yield
        elif self._device.type == "cuda":
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            stop.record()
            self._events.append((start, stop))
            self._fold(wait=False)
        else:
            begin = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - begin

    def _fold(self, wait: bool) -> None:
        while self._events and (wait or self._events[0][1].query()):
            start, stop = self._events.pop(0)
            stop.synchronize()
            self._seconds += start.elapsed_time(stop) / 1000

    @property
    def selection_seconds(self) -> float:
        """Seconds spent selecting masks so far; waits for the device."""
        self._fold(wait=True)
        return self._seconds

    def state_dict(self) -> dict[str, float]:
        """Counters as plain numbers."""
        seconds = self.selection_seconds
        counters = {"steps": self.steps, "passes": self.passes, "samples": self.samples, "forwards": self.forwards}
        return {**counters, "selection_seconds": seconds}

    @staticmethod
    def check_state(where: str, state: Any) -> None:
        """Raise ValueError or TypeError, which begins with ``where``, if ``state`` is none of these."""
        check_keys(where, state, ("steps", "passes", "samples", "selection_seconds"))
        for name in ("steps", "passes", "samples", "forwards"):
            checked_count(where, name, state.get(name, 0), 0)
        if not isinstance(state["selection_seconds"], (int, float)):
            raise ValueError(f"{where}: selection_seconds: expected a number, got {state['selection_seconds']!r}")

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take over counters."""
        self.steps, self.passes, self.samples = (int(state[k]) for k in ("steps", "passes", "samples"))
        self.forwards = int(state.get("forwards", 0))  # older states have none
        self._seconds, self._events = float(state["selection_seconds"]), []
