# SPDX-License-Identifier: Apache-2.0
"""The Pruner protocol, the metrics that a step gives, and the warning of a collapsed layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from sparsekit.mask import Masks
from sparsekit.pruners.cost import Cost


class CollapseWarning(UserWarning):
    """A layer keeps no weight at all, so its output no longer depends on its input."""


class Metrics(dict[str, Tensor]):
    """Metrics of one step: name -> 0-d tensor on the model's device, so that a step never waits for the device.

    ``read()`` waits, raises what went wrong on the device in the meantime, and gives floats.
    """

    def __init__(self, values: Mapping[str, Tensor], problems: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(values)
        self._problems = dict(problems or {})

    def read(self) -> dict[str, float]:
        """The values as floats. Raises ValueError for a NaN among the scores or a loss that is not finite."""
        for message, flag in self._problems.items():
            if bool(flag):
                raise ValueError(message)
        return {name: float(value) for name, value in self.items()}


@runtime_checkable
class Pruner(Protocol):
    """A state machine over a sparsified model; the training loop stays the user's."""

    model: nn.Module
    cost: Cost

    @property
    def masks(self) -> Masks:
        """Snapshot of the masks; valid and exact after every step."""
        ...

    @property
    def done(self) -> bool:
        """Has the last step been taken?"""
        ...

    def step(self, batches: Iterator[Any]) -> Metrics:
        """Advance by one step, pulling as many batches as the algorithm needs."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that, with the model's own state_dict, continues the run bit by bit."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state made by the same class with the same arguments."""
        ...
