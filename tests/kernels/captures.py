# SPDX-License-Identifier: Apache-2.0
"""A step captured in a CUDA graph, which must follow what its inputs become."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def check_replay(step: Callable[[], list[Tensor]], change: Callable[[], object]) -> None:
    """``step`` neither waits for the device nor, once captured, gives anything else after ``change`` than it does eagerly."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        with torch.cuda.graph(graph):
            captured = step()
        change()
        graph.replay()
        expected = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
