# SPDX-License-Identifier: Apache-2.0
"""What makes a run outlive its process: a checkpoint now and then, one when the user interrupts, and going on from it."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsekit.checkpoint import load_checkpoint, save_checkpoint
from sparsekit.pruners.base import BasePruner
from sparsekit.tensor_file import remove_partial

EVERY = 60.0


class Interrupted(KeyboardInterrupt):
    """A signal has ended the run; ``number`` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class TimeIsUp(Exception):
    """The time that the user granted has passed; what was begun is kept."""


class Stop:
    """Turns SIGINT and SIGTERM into a wish that a run grants after its step; a second one ends it at once.

    number: the signal that has come, else 0. deadline: time.perf_counter() at which work ends likewise.
    """

    def __init__(self) -> None:
        self.number = 0
        self.waiting = False
        self.deadline = math.inf

    @property
    def wanted(self) -> bool:
        """Is it time to end?"""
        return bool(self.number) or time.perf_counter() >= self.deadline

    def look(self) -> None:
        """Raise Interrupted or TimeIsUp if it is time to end."""
        if self.number:
            raise Interrupted(self.number)
        if self.wanted:
            raise TimeIsUp

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within it signals come here; only the main thread can have them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        again, self.number = bool(self.number), number
        if again or not self.waiting:
            raise Interrupted(number)


class Keeper:
    """The checkpoint of one stretch of work.

    Args:
        file: where it lies; it is removed when the work is done.
        identity: plain values that say what the work is; a checkpoint of other work is refused.
        every: seconds between checkpoints; 0 makes one after every step.
        stop: tells that the user wants an end.
    """

    def __init__(self, file: Path, identity: Mapping[str, Any], every: float, stop: Stop) -> None:
        self.file, self.stop = file, stop
        self._identity, self._every = dict(identity), every
        self._last = time.perf_counter()
        self.seconds = 0.0

    def begun(self) -> dict[str, Any]:
        """Plain values of the checkpoint, and the states of its objects; empty if there is none.

        Raises:
            ValueError: it is damaged, or of other work.
        """
        remove_partial(self.file)
        if not self.file.exists():
            return {}
        values = load_checkpoint(self.file, rng=False)
        if values.pop("identity", None) != self._identity:
            raise ValueError(f"out: expected the checkpoint of this run, got another in {self.file}; remove it")
        return values

    def restore(
        self,
        model: nn.Module,
        pruner: BasePruner | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Take over the states of the checkpoint; learning rates, which curves scale, keep their base values."""
        rates = [group["lr"] for group in optimizer.param_groups] if optimizer else []
        load_checkpoint(self.file, model=model, pruner=pruner, optimizer=optimizer)
        for group, rate in zip(optimizer.param_groups if optimizer else (), rates, strict=True):
            group["lr"] = rate

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within it a signal waits for the end of the step."""
        self.stop.waiting, self._last = True, time.perf_counter()
        try:
            yield
        finally:
            self.stop.waiting = False

    def offer(self, state: Callable[[], dict[str, Any]]) -> None:
        """After a step: write a checkpoint if it is time. Raises what Stop.look raises, with a checkpoint."""
        now = time.perf_counter()
        if (wanted := self.stop.wanted) or now - self._last >= self._every:
            save_checkpoint(self.file, identity=self._identity, **state())
            self._last = time.perf_counter()
            self.seconds += self._last - now
        if wanted:
            self.stop.look()

    def remove(self) -> None:
        """The work is done, and its result is safe."""
        self.file.unlink(missing_ok=True)
        remove_partial(self.file)


class Watch:
    """Seconds of work on a device, over all its lives and without the time that checkpoints and captures took.

    before, captures: seconds of earlier lives, of the work and of capturing graphs.
    """

    def __init__(self, clock: Callable[[], float], keeper: Keeper, before: float = 0.0, captures: float = 0.0) -> None:
        self._clock, self._keeper = clock, keeper
        self._zero = clock() - keeper.seconds - before
        self.captures = captures

    def on_capture(self, seconds: float) -> None:
        """So long took a capture, in which nothing of the work was done."""
        self.captures += seconds
        self._zero += seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens within, such as an evaluation, does not count."""
        begin = self._clock()
        try:
            yield
        finally:
            self._zero += self._clock() - begin

    @property
    def seconds(self) -> float:
        """So far."""
        return self._clock() - self._keeper.seconds - self._zero

    def state(self) -> dict[str, float]:
        """What a checkpoint holds of it."""
        return {"seconds": self.seconds, "captures": self.captures}
