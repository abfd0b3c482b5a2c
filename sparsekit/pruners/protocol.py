# SPDX-License-Identifier: Apache-2.0
"""The Pruner protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import nn

from sparsekit.mask import Masks
from sparsekit.pruners.cost import Cost
from sparsekit.pruners.metrics import Metrics


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
