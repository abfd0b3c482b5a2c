# SPDX-License-Identifier: Apache-2.0
"""Clocks and interleaved rounds of the timing protocol: perf_counter on a CPU, events and graph replay on a GPU."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

import torch

Function = Callable[[], Any]

MIN_FLUSH_BYTES = 256 * 2**20


class Clock(Protocol):
    """Times blocks of at most `max_calls` calls; all times are seconds per call."""

    max_calls: int

    def prepare(self, function: Function, warmup: int) -> Function:
        """Warms up and returns what is to be timed."""
        ...

    def measure(self, function: Function, calls: int) -> float:
        """Mean time of a prepared function over a block of calls."""
        ...

    def measure_eager(self, function: Function, calls: int, measured: float) -> float:
        """Wall time of an unprepared function; `measured` is what `measure` has just said about it."""
        ...


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """The collector would hit one function and spare another."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _wall_time(function: Function, calls: int) -> float:
    with _no_garbage_collection():
        start = perf_counter()
        for _ in range(calls):
            function()
        return (perf_counter() - start) / calls


class CpuClock:
    """perf_counter around the block."""

    max_calls = 100_000

    def prepare(self, function: Function, warmup: int) -> Function:
        """Warms up."""
        for _ in range(warmup):
            function()
        return function

    def measure(self, function: Function, calls: int) -> float:
        """Wall time."""
        return _wall_time(function, calls)

    def measure_eager(self, function: Function, calls: int, measured: float) -> float:
        """The measured time itself: on a CPU every call is eager."""
        del function, calls
        return measured


class CudaClock:
    """Device events around each call, with the L2 cache flushed in between.

    Args:
        device: a CUDA device.
        graph: time the replay of a captured graph instead of eager calls.
        flush: overwrite a buffer larger than the L2 cache before each call. Its run time also hides the launch latency
            of the timed call.
    """

    max_calls = 1000

    def __init__(self, device: torch.device, *, graph: bool, flush: bool) -> None:
        if not torch.cuda.is_available():
            raise ValueError(f"compare_times: device: expected an available device, got {device}")
        self.device = device
        self.graph = graph
        self.buffer: torch.Tensor | None = None
        if flush:
            cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
            self.buffer = torch.empty(max(MIN_FLUSH_BYTES, 4 * cache), dtype=torch.uint8, device=device)

    def prepare(self, function: Function, warmup: int) -> Function:
        """Warms up, and captures the function if `graph`."""
        with torch.cuda.device(self.device):
            if self.graph:
                return _capture(function, warmup)
            for _ in range(warmup):
                function()
            torch.cuda.synchronize()
            return function

    def measure(self, function: Function, calls: int) -> float:
        """Mean of the times between the events."""
        with torch.cuda.device(self.device), _no_garbage_collection():
            starts = [torch.cuda.Event(enable_timing=True) for _ in range(calls)]
            ends = [torch.cuda.Event(enable_timing=True) for _ in range(calls)]
            for start, end in zip(starts, ends, strict=True):
                if self.buffer is not None:
                    self.buffer.zero_()
                start.record()
                function()
                end.record()
            torch.cuda.synchronize()
        milliseconds = [start.elapsed_time(end) for start, end in zip(starts, ends, strict=True)]
        return sum(milliseconds) / calls / 1000

    def measure_eager(self, function: Function, calls: int, measured: float) -> float:
        """Wall time of back-to-back calls, up to the end of the last one on the device."""
        del measured
        with torch.cuda.device(self.device), _no_garbage_collection():
            torch.cuda.synchronize()
            start = perf_counter()
            for _ in range(calls):
                function()
            torch.cuda.synchronize()
            return (perf_counter() - start) / calls


def _capture(function: Function, warmup: int) -> Function:
    """The replay of the function as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Lazy set-up (cuBLAS handles, autotuning) must be over before capture, which is why 0 calls are not enough.
        for _ in range(max(warmup, 3)):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


@dataclass
class Rounds:
    """Times of one function, in seconds per call.

    calls: calls in a round. measured: the clock's time of each round. eager: wall time of eager calls beside it.
    """

    calls: int
    measured: list[float] = field(default_factory=list)
    eager: list[float] = field(default_factory=list)


def make_clock(device: torch.device, *, graph: bool = False, flush: bool = True) -> Clock:
    """The clock of a CPU or CUDA device."""
    if device.type == "cpu":
        if graph:
            raise ValueError("compare_times: graph: expected False on a CPU, got True")
        return CpuClock()
    if device.type == "cuda":
        return CudaClock(device, graph=graph, flush=flush)
    raise ValueError(f"compare_times: device: expected cpu or cuda, got {device}")


def interleave(
    functions: Mapping[str, Function], clock: Clock, *, repeats: int, warmup: int, min_block_s: float
) -> dict[str, Rounds]:
    """Rounds in which every function has one block of calls; each round starts with the next function."""
    prepared = {name: clock.prepare(function, warmup) for name, function in functions.items()}
    found = {name: Rounds(calls_lasting(function, clock, min_block_s)) for name, function in prepared.items()}
    names = list(functions)
    for number in range(repeats):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            rounds = found[name]
            seconds = clock.measure(prepared[name], rounds.calls)
            rounds.measured.append(seconds)
            rounds.eager.append(clock.measure_eager(functions[name], rounds.calls, seconds))
    return found


def calls_lasting(function: Function, clock: Clock, seconds: float) -> int:
    """Number of calls that last so many seconds together."""
    calls = 1
    while calls < clock.max_calls:
        each = clock.measure(function, calls)
        if each * calls >= seconds:
            break
        wanted = math.ceil(1.1 * seconds / each) if each > 0 else clock.max_calls
        calls = min(clock.max_calls, 10 * calls, max(calls + 1, wanted))
    return calls


def ratios(reference: Sequence[float], own: Sequence[float]) -> list[float]:
    """How many times faster than the reference, round by round."""
    return [other / mine if mine > 0 else math.inf for other, mine in zip(reference, own, strict=True)]


def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """20 % quantile, median and 80 % quantile of at least one number."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return fifths[0], statistics.median(values), fifths[3]
