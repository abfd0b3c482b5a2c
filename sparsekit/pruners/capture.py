# SPDX-License-Identifier: Apache-2.0
"""captured: what a pruner has a device do in each step, as replayed CUDA graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from sparsekit.pruners.base import BasePruner
from sparsekit.pruners.bip import BiP
from sparsekit.pruners.cuda_graphs import CudaGraphs
from sparsekit.pruners.metrics import Metrics
from sparsekit.pruners.rounds import RoundPruner
from sparsekit.pruners.spode import SpODE

WARM_UP = 3
"""Times that a kind of work runs as always before its first capture: buffers of optimizers, proofs of kernels, workspaces."""

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
"""Types of what is no tensor in a batch: their repr tells all of them apart."""


Work = Callable[[list[Any]], dict[str, Tensor]]
"""Batches -> results; nothing but what a device does."""


class _Piece:
    """One captured piece of work: its batches and results keep their places in memory."""

    def __init__(self, graph: Any, drawn: list[Any]) -> None:
        leaves, self._structure = tree_flatten(drawn)
        self._batch = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._graph = graph
        self.values: dict[str, Tensor] = {}

    def capture(self, work: Work) -> None:
        """Record the work; nothing of it happens yet."""
        drawn = tree_unflatten(self._batch, self._structure)
        self.values = self._graph.capture(lambda: work(drawn))

    def run(self, drawn: list[Any]) -> dict[str, Tensor]:
        """The work on these batches."""
        for own, given in zip(self._batch, tree_flatten(drawn)[0], strict=True):
            if isinstance(own, Tensor):
                own.copy_(given, non_blocking=True)
        self._graph.replay()
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


class Replays:
    """Pieces of work that are captured as CUDA graphs and replayed, one for each kind, detail and kind of batch.

    device: where the work is done. mode: anything else that a graph fixes, looked up each time.
    on_capture: called with the seconds that a capture took, in which nothing of the work happens.

    Attributes:
        capture_seconds: of all captures so far.
    """

    def __init__(
        self,
        device: torch.device,
        mode: Callable[[], Any] = lambda: None,
        on_capture: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._graphs, self._mode = CudaGraphs(device), mode
        self.capture_seconds, self._on_capture = 0.0, on_capture
        self.clear()

    def clear(self) -> None:
        """Forget all captures, as when what they write to has moved."""
        self.pieces: dict[Any, _Piece] = {}
        self._eager = Counter[str]()

    def run(self, kind: str, detail: Any, drawn: list[Any], work: Work) -> dict[str, Tensor]:
        """``work(drawn)``: the first few of a kind as always, then by replay."""
        signature = _signature(drawn)
        if self._eager[kind] < WARM_UP:
            self._eager[kind] += 1
            return self._graphs.eagerly(lambda: work(drawn))
        key = kind, detail, self._mode(), signature
        if key not in self.pieces:
            begin, piece = self._graphs.clock(), self._new(drawn)
            piece.capture(work)
            self.pieces[key] = piece
            self._add(self._graphs.clock() - begin)
        return self.pieces[key].run(drawn)

    def _add(self, seconds: float) -> None:
        self.capture_seconds += seconds
        self._on_capture(seconds)

    def _new(self, drawn: list[Any]) -> _Piece:
        return _Piece(self._graphs.new(), drawn)


class _PrunersPiece(_Piece):
    """Work of a pruner, whose counters and flags it keeps as the work itself would."""

    def __init__(self, graph: Any, drawn: list[Any], pruner: BasePruner) -> None:
        super().__init__(graph, drawn)
        self._pruner = pruner
        self._problems: dict[str, Tensor] = {}
        self._passes = self._samples = 0

    def capture(self, work: Work) -> None:
        pruner, cost = self._pruner, self._pruner.cost
        before, earlier = (cost.passes, cost.samples), pruner._problems
        pruner._problems = {}
        try:
            super().capture(work)
            self._problems = pruner._problems
        finally:
            pruner._problems = earlier
        self._passes, self._samples = cost.passes - before[0], cost.samples - before[1]
        cost.passes, cost.samples = before

    def run(self, drawn: list[Any]) -> dict[str, Tensor]:
        found, pruner = super().run(drawn), self._pruner
        pruner.cost.passes += self._passes
        pruner.cost.samples += self._samples
        for message, flag in self._problems.items():
            earlier = pruner._problems.get(message)
            # A copy: the flag's own memory is written again by the next replay.
            pruner._problems[message] = flag.clone() if earlier is None else earlier | flag
        return found


class _PrunersReplays(Replays):
    def __init__(self, device: torch.device, pruner: BasePruner, on_capture: Callable[[float], None]) -> None:
        self._pruner = pruner
        super().__init__(device, lambda: pruner.model.training, on_capture)

    def _new(self, drawn: list[Any]) -> _Piece:
        return _PrunersPiece(self._graphs.new(), drawn, self._pruner)


class Captured:
    """A pruner whose passes are replayed as CUDA graphs; ``step``, ``fit``, ``masks``, ``done`` as the pruner's.

    The first passes of a kind run as always. From then on one graph is captured for each kind of pass (BiP's two levels
    with and without upper step, a round of IMP, the descent of SpODE), each learning rate of BiP's scores and each kind of
    batch, and replayed with new batches: choose an ``upper_curve`` of few values (the default has three). Masks are
    projected outside the graphs. Problems on the device name the step of the capture, not their own. The loss has to do
    the same work every time and must not wait for the device. State is the pruner's: save and load that.
    """

    def __init__(self, pruner: BasePruner, on_capture: Callable[[float], None] = lambda seconds: None) -> None:
        if not isinstance(pruner, (BiP, SpODE, RoundPruner)):
            raise TypeError(f"captured: pruner: expected one that trains in one go, got {type(pruner).__name__}")
        device = self._device(pruner)
        if device.type != "cuda":
            raise ValueError(f"captured: pruner: expected a model on a CUDA device, got one on {device}")
        if pruner.ranks.group is not None:
            raise ValueError("captured: pruner: expected a model of one process, got one that several processes share")
        self.pruner, self._replays = pruner, _PrunersReplays(device, pruner, on_capture)
        self._check_optimizer()

    def _device(self, pruner: BasePruner) -> torch.device:
        return next(iter(pruner.weights.values())).device

    def _check_optimizer(self) -> None:
        pruner = self.pruner
        optimizer = pruner.lower if isinstance(pruner, BiP) else None
        if isinstance(pruner, RoundPruner):
            optimizer = pruner.first_optimizer()
        if optimizer is not None:
            check_capturable("captured: pruner", optimizer)

    def __getattr__(self, name: str) -> Any:
        if name == "pruner":  # on the way to a copy, which has nothing yet
            raise AttributeError(name)
        return getattr(self.pruner, name)

    @property
    def capture_seconds(self) -> float:
        """Seconds that the captures have taken so far; they are no part of the work."""
        return self._replays.capture_seconds

    def step(self, batches: Iterator[Any]) -> Metrics:
        """As the pruner's step; after the first few by replay."""
        pruner = self.pruner
        pruner._replays = self._replays
        try:
            return pruner.step(batches)
        finally:
            pruner._replays = None

    def fit(self, *arguments: Any, **options: Any) -> Any:
        """As the pruner's fit."""
        return type(self.pruner).fit(self, *arguments, **options)  # pyright: ignore[reportArgumentType]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As the pruner's; captures are made anew, because loaded optimizers keep their state elsewhere."""
        self.pruner.load_state_dict(state)
        self._replays.clear()


def check_capturable(where: str, optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError, which begins with ``where``, unless its steps can be captured and still follow a learning rate."""
    for group in optimizer.param_groups:
        if not (isinstance(group["lr"], Tensor) and (group.get("fused") or group.get("capturable"))):
            raise ValueError(
                f"{where}: expected an optimizer whose learning rate is a tensor that its steps read on the device, such as "
                "SGD(..., lr=torch.tensor(0.01, device='cuda'), fused=True) or Adam(..., capturable=True), got another"
            )


def captured(pruner: BasePruner, on_capture: Callable[[float], None] = lambda seconds: None) -> Captured:
    """``pruner`` with its passes captured in CUDA graphs and replayed: the host launches one graph instead of hundreds of
    kernels.

    Args:
        pruner: any pruner of this package but Gradual and Iterative, on a CUDA device; the learning rate of the optimizers
            of its weights is a tensor there and their steps are fused or capturable.
        on_capture: called with the seconds of each capture, as soon as it is done.

    Raises:
        ValueError, TypeError: another pruner, device or optimizer.
    """
    return Captured(pruner, on_capture)
