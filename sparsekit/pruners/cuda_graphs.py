# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs as ``capture`` uses them: one stream and one memory pool for all pieces of work of a pruner."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class CudaGraph:
    """One captured piece of work, on a stream and in a memory pool that all pieces of a pruner share."""

    def __init__(self, stream: torch.cuda.Stream, pool: Any) -> None:
        self._graph, self._stream, self._pool = torch.cuda.CUDAGraph(), stream, pool

    def capture(self, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Record ``work``; returns where its results will be."""
        with torch.cuda.graph(self._graph, pool=self._pool, stream=self._stream):
            return work()

    def replay(self) -> None:
        """Do the work once more."""
        self._graph.replay()


class CudaGraphs:
    """Where a pruner's graphs are captured; eager iterations run on the same stream, as autograd remembers streams."""

    def __init__(self, device: torch.device) -> None:
        with torch.cuda.device(device):
            self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def eagerly(self, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """``work()`` as always."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            found = work()
        current.wait_stream(self._stream)
        return found

    def clock(self) -> float:
        """Seconds, after everything queued on the device is done."""
        torch.cuda.synchronize(self._stream.device)
        return time.perf_counter()

    def new(self) -> CudaGraph:
        """A graph to be captured."""
        return CudaGraph(self._stream, self._pool)
