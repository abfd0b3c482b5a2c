# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments that all pruners share, each an error that names the function and the argument."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any


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


def cycle(function: str, loader: Iterable[Any]) -> Iterator[Any]:
    """Batches of ``loader`` for ever. Raises ValueError when a whole pass over it gives none.

    A sampler with ``set_epoch``, as DistributedSampler has, is told the number of each pass, so that orders differ.
    """
    set_epoch = getattr(getattr(loader, "sampler", None), "set_epoch", None)
    for epoch in count():
        empty = True
        if callable(set_epoch):
            set_epoch(epoch)
        for batch in loader:
            empty = False
            yield batch
        if empty:
            raise ValueError(f"{function}: loader: expected batches at each pass, got none (is it a used-up iterator?)")
