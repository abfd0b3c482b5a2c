# SPDX-License-Identifier: Apache-2.0
"""Metrics of a step, which wait for the device only when they are read."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


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
