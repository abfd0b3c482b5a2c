# SPDX-License-Identifier: Apache-2.0
"""captured: the iterations of BiP as replayed CUDA graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from sparsekit.pruners.bip import BiP
from sparsekit.pruners.protocol import Metrics

WARM_UP = 3
"""Iterations of a kind, with or without upper step, that run as always before its first capture: buffers of optimizers,
proofs of kernels, workspaces."""

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
"""Types of what is no tensor in a batch: their repr tells all of them apart."""


class _CudaGraph:
    """One captured piece of work, on a stream and in a memory pool that all pieces of a pruner share."""

    def __init__(self, stream: torch.cuda.Stream, pool: Any) -> None:
        self._graph, self._stream, self._pool = torch.cuda.CUDAGraph(), stream, pool

    def capture(self, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        with torch.cuda.graph(self._graph, pool=self._pool, stream=self._stream):
            return work()

    def replay(self) -> None:
        self._graph.replay()


class _CudaGraphs:
    """Where a pruner's graphs are captured; eager iterations run on the same stream, as autograd remembers streams."""

    def __init__(self, device: torch.device) -> None:
        with torch.cuda.device(device):
            self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def eagerly(self, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            found = work()
        current.wait_stream(self._stream)
        return found

    def new(self) -> _CudaGraph:
        return _CudaGraph(self._stream, self._pool)


class _Iteration:
    """One captured iteration: its batches and results keep their places in memory."""

    def __init__(self, graph: Any, drawn: list[Any]) -> None:
        leaves, self._structure = tree_flatten(drawn)
        self._batch = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._graph = graph
        self.values: dict[str, Tensor] = {}
        self.problems: dict[str, Tensor] = {}
        self.passes = self.samples = 0

    def capture(self, pruner: BiP, target: float | None) -> None:
        """Record the iteration; nothing of it happens yet, and the pruner counts it once."""
        before, earlier = (pruner.cost.passes, pruner.cost.samples), pruner._problems
        pruner._problems = {}
        drawn = tree_unflatten(self._batch, self._structure)
        try:
            self.values = self._graph.capture(lambda: pruner._iterate(drawn, target))
            self.problems = pruner._problems
        finally:
            pruner._problems = earlier
        self.passes, self.samples = pruner.cost.passes - before[0], pruner.cost.samples - before[1]
        pruner.cost.passes, pruner.cost.samples = before

    def run(self, pruner: BiP, drawn: list[Any]) -> dict[str, Tensor]:
        """The iteration on these batches."""
        for own, given in zip(self._batch, tree_flatten(drawn)[0], strict=True):
            if isinstance(own, Tensor):
                own.copy_(given, non_blocking=True)
        self._graph.replay()
        pruner.cost.passes, pruner.cost.samples = pruner.cost.passes + self.passes, pruner.cost.samples + self.samples
        for message, flag in self.problems.items():
            earlier = pruner._problems.get(message)
            # A copy: the flag's own memory is written again by the next replay.
            pruner._problems[message] = flag.clone() if earlier is None else earlier | flag
        return {name: value.clone() for name, value in self.values.items()}


def _signature(drawn: list[Any]) -> tuple[Any, ...]:
    """What the batches of one graph share."""
    leaves, structure = tree_flatten(drawn)
    for leaf in leaves:
        # The graph would go on with the contents of the first one.
        if not isinstance(leaf, (Tensor, *PLAIN)):
            expected = "tensors and plain values in tuples, lists and dicts"
            raise TypeError(f"captured: batches: expected {expected}, got {type(leaf).__name__}")
    facts = tuple((tuple(x.shape), x.dtype, x.stride()) if isinstance(x, Tensor) else repr(x) for x in leaves)
    return structure, facts


class Captured:
    """A BiP run whose iterations are replayed as CUDA graphs; ``step``, ``fit``, ``masks``, ``done`` as the pruner's.

    The first iterations run as always. From then on one graph is captured for each learning rate of the scores, target
    sparsity and kind of batch, and replayed with new batches: choose an ``upper_curve`` of few values (the default has
    three). Problems on the device name the step of the capture, not their own; ``cost`` does not time selections. The
    loss has to do the same work every time and must not wait for the device. State is the pruner's: save and load that.
    """

    def __init__(self, pruner: BiP) -> None:
        if not isinstance(pruner, BiP):
            raise TypeError(f"captured: pruner: expected a BiP, got {type(pruner).__name__}")
        device = self._device(pruner)
        if device.type != "cuda":
            raise ValueError(f"captured: pruner: expected a model on a CUDA device, got one on {device}")
        self._check_lower(pruner.lower)
        if pruner.ranks.group is not None:
            raise ValueError("captured: pruner: expected a model of one process, got one that several processes share")
        self.pruner, self._graphs = pruner, _CudaGraphs(device)
        self._iterations: dict[Any, _Iteration] = {}
        self._eager = Counter[bool]()

    def _device(self, pruner: BiP) -> torch.device:
        return next(iter(pruner.weights.values())).device

    @staticmethod
    def _check_lower(lower: torch.optim.Optimizer) -> None:
        for group in lower.param_groups:
            if not (isinstance(group["lr"], Tensor) and (group.get("fused") or group.get("capturable"))):
                raise ValueError(
                    "captured: pruner: expected a lower optimizer whose learning rate is a tensor that its steps read on "
                    "the device, such as SGD(..., lr=torch.tensor(0.01, device='cuda'), fused=True) or "
                    "Adam(..., capturable=True), got another"
                )

    def __getattr__(self, name: str) -> Any:
        if name == "pruner":  # on the way to a copy, which has nothing yet
            raise AttributeError(name)
        return getattr(self.pruner, name)

    def step(self, batches: Iterator[Any]) -> Metrics:
        """As BiP.step; after the first few by replay."""
        return self.pruner._stepped(lambda: self._advance(batches))

    def fit(self, *arguments: Any, **options: Any) -> Any:
        """As BiP.fit."""
        return type(self.pruner).fit(self, *arguments, **options)  # pyright: ignore[reportArgumentType]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As BiP.load_state_dict; captures are made anew, because loaded optimizers keep their state elsewhere."""
        self.pruner.load_state_dict(state)
        self._iterations, self._eager = {}, Counter()

    def _advance(self, batches: Iterator[Any]) -> dict[str, Tensor]:
        pruner = self.pruner
        drawn, target = pruner._prepare(batches)
        signature = _signature(drawn)
        upper = target is not None
        if self._eager[upper] < WARM_UP:
            self._eager[upper] += 1
            return self._graphs.eagerly(lambda: pruner._iterate(drawn, target))
        (group,) = pruner.upper.param_groups
        # Without an upper step the learning rate of the scores plays no part.
        key = group["lr"] if upper else None, target, pruner.model.training, signature
        if key not in self._iterations:
            found = _Iteration(self._graphs.new(), drawn)
            found.capture(pruner, target)
            self._iterations[key] = found
        return self._iterations[key].run(pruner, drawn)


def captured(pruner: BiP) -> Captured:
    """``pruner`` with its iterations captured in CUDA graphs and replayed: the host launches one graph instead of hundreds of
    kernels.

    Args:
        pruner: BiP on a CUDA device; the learning rate of ``lower`` is a tensor there and its steps are fused or capturable.

    Raises:
        ValueError, TypeError: another pruner, device or optimizer.
    """
    return Captured(pruner)
