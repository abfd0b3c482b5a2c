# SPDX-License-Identifier: Apache-2.0
"""A CUDA graph on a CPU: the operations of one pass are recorded and repeated on the same memory, by nobody but the device.

What Python decided while recording is decided for good, numbers that it handed over are constants, and whatever would make
the host wait is an error, as in a capture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITING = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default}
WAITING |= {torch.ops.aten.is_nonzero.default, torch.ops.aten.masked_select.default}


def storages(values: Any) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in tree_leaves(values) if isinstance(t, Tensor)}


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple, dict, Any]] = []
        self.inside: set[int] = set()
        self.before: dict[int, tuple[Any, Any]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function in WAITING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.inside | set(self.before):
                    self.before[storage.data_ptr()] = storage, storage.clone()
        found = function(*args, **(kwargs or {}))
        self.inside |= storages(found) - set(self.before)
        self.operations.append((function, args, kwargs or {}, found))
        return found


class Graph:
    """As cuda_graphs.CudaGraph."""

    def __init__(self) -> None:
        self.recorder = Recorder()

    def capture(self, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        with self.recorder:
            values = work()
        # A capture does nothing yet: what lay in memory before it is put back.
        for storage, content in self.recorder.before.values():
            storage.copy_(content)
        return values

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, found in self.recorder.operations:
            again = function(*args, **kwargs)
            # What is new memory each time has one place in a graph.
            for place, value in zip(tree_leaves(found), tree_leaves(again), strict=True):
                if isinstance(value, Tensor) and not storages(value) & storages((args, kwargs, found)):
                    place.detach().copy_(value)


class Graphs:
    """As cuda_graphs.CudaGraphs, with a clock that goes on by one each time it is read."""

    def __init__(self, device: torch.device) -> None:
        self.made: list[Graph] = []
        self.time = 0.0

    def clock(self) -> float:
        self.time += 1.0
        return self.time

    def eagerly(self, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        return work()

    def new(self) -> Graph:
        self.made.append(Graph())
        return self.made[-1]
