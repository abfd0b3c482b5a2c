# SPDX-License-Identifier: Apache-2.0
"""What a step tells: numbers that stay on the device until somebody reads them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from torch import Tensor

from sparsekit import ops
from sparsekit.nn.access import kept_weights
from sparsekit.nn.masked import MaskedLayer


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


def moved_entries(old: Sequence[Tensor], new: Sequence[Tensor]) -> dict[str, Tensor]:
    """flips and regrown from two lists of mask words: how many entries changed, and how many of these came back."""
    before, after, both = ops.mask_counts(old, new).sum(0).unbind()
    return {"flips": before + after - 2 * both, "regrown": after - both}


def warn_of_collapse(name: str, layers: Mapping[str, MaskedLayer]) -> None:
    """A CollapseWarning for each layer that keeps nothing; it points at the caller of the function that calls this."""
    counts = kept_weights({n: layer.mask_words for n, layer in layers.items()}).tolist()
    for (n, layer), count in zip(layers.items(), counts, strict=True):
        if count == 0 and layer.weight.numel():
            kept = f"layer `{n}` keeps 0 of {layer.weight.numel():,} weights"
            warnings.warn(f"{name}: {kept}; set min_keep in the allocation", CollapseWarning, stacklevel=3)
