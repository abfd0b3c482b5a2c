# SPDX-License-Identifier: Apache-2.0
"""What the callbacks share: a pruner that steps along with somebody else's training, and its state."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sparsekit.loggers import Logger, checked_logger
from sparsekit.mask import Mask, Masks
from sparsekit.nn import check_ranks, masked_layers, masks, set_masks
from sparsekit.nn.access import kept_weights
from sparsekit.pruners.base import READ_EVERY, BasePruner
from sparsekit.pruners.protocol import Metrics, Pruner

MakePruner = Callable[[nn.Module], Pruner]


class Driver:
    """Steps a pruner once before each step of a training loop.

    Args:
        function: whose arguments these are, for errors.
        pruner: a pruner, or a function model -> pruner that is called when training starts (then the model is where it
            will be trained, and the optimizers exist).
        logger: takes the metrics of each step of the pruner; or None.
    """

    def __init__(self, function: str, pruner: Pruner | MakePruner, logger: Logger | None) -> None:
        if isinstance(pruner, type) or not (isinstance(pruner, Pruner) or callable(pruner)):
            raise TypeError(f"{function}: pruner: expected a pruner or a function model -> pruner, got {pruner!r}")
        self._function, self._given, self._logger = function, pruner, checked_logger(function, logger)
        self._pruner: Pruner | None = pruner if isinstance(pruner, Pruner) else None
        self._pending: Mapping[str, Any] | None = None
        self._batches: Iterator[Any] | None = None
        self._last = -1
        self._sparsity: Tensor | None = None
        self._model: nn.Module | None = None

    @property
    def pruner(self) -> Pruner:
        """The pruner; the training has to have started if it is made by a function."""
        if self._pruner is None:
            raise ValueError(f"{self._function}: pruner: expected a training that has started, got none yet")
        return self._pruner

    def begin(self, model: nn.Module) -> None:
        """Training starts: make the pruner, and take over the state of the run that is resumed, if one was loaded.

        Raises:
            ValueError: nothing is masked, the masks are not those of the resumed checkpoint, or the pruner trains and there
                are several processes.
        """
        if not masked_layers(model):
            raise ValueError(f"{self._function}: model: expected masked layers, got none; call sparsify first")
        self._last = -1
        state, self._pending = self._pending, None
        if state is not None and (found := masks(model).hash()) != state["masks"]:
            expected = f"the masks of the checkpoint ({state['masks'][:8]})"
            reason = "sparsify the model before the trainer loads it"
            raise ValueError(f"{self._function}: model: expected {expected}, got others ({found[:8]}); {reason}")
        if self._pruner is None:
            loaded = None
            if state is not None:
                # Some pruners prune or rewind when they are made, from full masks; a resumed run is past that.
                loaded = copy.deepcopy(model.state_dict())
                set_masks(
                    model, {name: Mask.full(mask.shape, mask.words.device) for name, mask in masks(model).items()}
                )
            self._pruner = self._given(model)  # pyright: ignore[reportCallIssue]
            if not isinstance(self._pruner, Pruner):
                raise TypeError(f"{self._function}: pruner: expected a function that makes one, got {self._pruner!r}")
            if loaded is not None:
                model.load_state_dict(loaded)
        self._check_processes()
        if state is not None:
            self.pruner.load_state_dict(state["pruner"])
        self._model = model

    def _check_processes(self) -> None:
        """Raise where several processes train the model and the pruner would let their weights part."""
        pruner, count = self.pruner, process_count()
        # A pruner of someone else's making says nothing of itself; check_ranks judges its masks.
        if count > 1 and isinstance(pruner, BasePruner) and pruner.trains and pruner.ranks.group is None:
            expected = f"one that trains nothing, such as Gradual, where {count} processes train"
            got = f"{pruner.name}, which would train in each of them alone"
            raise ValueError(f"{self._function}: pruner: expected {expected}, got {got}")

    def step(self, step: int, loader: Callable[[], Iterable[Any]]) -> Metrics:
        """Before training step ``step``; called several times for one step (accumulated gradients), it acts once.

        Args:
            loader: gives a re-iterable of batches, should the pruner want any.

        Returns:
            The pruner's metrics and "sparsity", on the device; empty if there was nothing to do.
        """
        if step == self._last or self.pruner.done:
            return Metrics({})
        self._last = step
        if self._batches is None:
            self._batches = _endless(self._function, loader)
        metrics = self.pruner.step(self._batches)
        if self._sparsity is None or "flips" in metrics:
            self._sparsity = sparsity(self.pruner.masks)
        values = Metrics({**metrics, "sparsity": self._sparsity}, metrics._problems)
        if step % READ_EVERY == 0 or self.pruner.done:
            values.read()  # raises what went wrong on a device
            if process_count() > 1:
                check_ranks(self._model, step=step)  # pyright: ignore[reportArgumentType]
        if self._logger is not None:
            self._logger.log(step, values)
        return values

    def end(self) -> None:
        """Training has ended: warn if the model has other masks than the pruner left, as when a trainer loads its best one."""
        if self._model is None or self._sparsity is None:
            return
        now, last = float(sparsity(masks(self._model))), float(self._sparsity)
        if now != last:
            found = f"the model ends with sparsity {now:.4f}, not the pruner's {last:.4f}"
            reason = "the trainer has loaded an earlier checkpoint, such as its best one"
            warnings.warn(f"{self._function}: model: {found}; {reason}", UserWarning, stacklevel=3)

    def state(self) -> dict[str, Any]:
        """What resumes the pruner; the masks themselves are part of the model's state. Empty before there is a pruner."""
        if self._pending is not None:  # saved again between loading and the start
            return dict(self._pending)
        if self._pruner is None:
            return {}
        return {"pruner": self.pruner.state_dict(), "masks": masks(self._model or self.pruner.model).hash()}

    def load(self, state: Mapping[str, Any]) -> None:
        """State to take over when training starts; an empty one, of a run that had not begun, changes nothing."""
        self._pending = state or None


def process_count() -> int:
    """Processes of the default group; 1 where there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sparsity(current: Masks) -> Tensor:
    """Fraction of the masked weights removed: a 0-d float64 tensor on the masks' device."""
    kept = kept_weights({name: mask.words for name, mask in current.items()}).sum()
    return 1 - kept.double() / max(current.numel, 1)


def own_pass(loader: Iterable[Any]) -> Iterator[Any]:
    """One pass over ``loader`` while somebody else is in the middle of another one.

    A loader whose workers persist has a single iterator, which starts anew for whoever asks; for this pass they do not persist.
    """
    base = getattr(loader, "base_dataloader", loader)  # of Accelerate's wrappers
    facts = vars(base) if isinstance(base, DataLoader) else {}
    persistent = facts.get("persistent_workers", False)
    try:
        if persistent:
            facts["persistent_workers"] = False  # an assignment to the attribute is refused
        batches = iter(loader)
        first = next(batches, batches)
    finally:
        if persistent:
            facts["persistent_workers"] = True
    if first is not batches:
        yield first
        yield from batches


def _endless(function: str, loader: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    while True:
        empty = True
        for batch in loader():
            empty = False
            yield batch
        if empty:
            raise ValueError(f"{function}: loader: expected batches at each pass, got none")
