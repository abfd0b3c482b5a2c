# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments that all pruners share, each an error that names the function and the argument."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sparsekit.nn.masked import MaskedLayer
from sparsekit.patterns import Unstructured
from sparsekit.projection import Projection


def checked_sparsity(function: str, sparsity: Any) -> float:
    """``sparsity`` if it is a number in [0, 1), else an error that names ``function``."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, numbers.Real):
        raise TypeError(f"{function}: sparsity: expected a number in [0, 1), got {sparsity!r}")
    if not (math.isfinite(float(sparsity)) and 0 <= float(sparsity) < 1):
        raise ValueError(f"{function}: sparsity: expected a number in [0, 1), got {sparsity!r}")
    # By way of its text, so that a float32 0.9 means nine tenths and not 0.8999999761581421.
    return float(sparsity) if isinstance(sparsity, numbers.Rational) else float(str(sparsity))


def checked_count(function: str, argument: str, value: Any, least: int = 1) -> int:
    """``value`` if it is an int of at least ``least``, else an error that names function and argument."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{function}: {argument}: expected an int >= {least}, got {value!r}")
    if value < least:
        raise ValueError(f"{function}: {argument}: expected an int >= {least}, got {value!r}")
    return value


def check_orientation(function: str, projection: Projection, layers: Mapping[str, MaskedLayer]) -> None:
    """Raise ValueError for a pattern of outputs or inputs where a layer's weight has these the other way round."""
    transposed = [name for name, layer in layers.items() if layer.transposed]
    if transposed and not isinstance(projection.pattern, Unstructured):
        expected = f"single weights, as layer {transposed[0]!r} stores its weight as [in, out]"
        raise ValueError(f"{function}: projection: expected {expected}, got {projection.pattern!r}")


def cycle(function: str, loader: Iterable[Any]) -> Iterator[Any]:
    """Batches of ``loader`` for ever. Raises ValueError when a whole pass over it gives none."""
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            raise ValueError(f"{function}: loader: expected batches at each pass, got none (is it a used-up iterator?)")
