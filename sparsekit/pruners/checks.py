# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments that all pruners share, each an error that names the function and the argument."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from itertools import count
from typing import Any

from torch import Tensor, nn

from sparsekit.mask import Masks
from sparsekit.nn import masked_layers
from sparsekit.nn.masked import MaskedLayer
from sparsekit.ops import shards
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


def checked_count(function: str, argument: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """``value`` if it is an int of at least ``least`` and at most ``most``, else an error that names function and argument."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{function}: {argument}: expected an int >= {least}, got {value!r}")
    if value < least:
        raise ValueError(f"{function}: {argument}: expected an int >= {least}, got {value!r}")
    if most is not None and value > most:
        raise ValueError(f"{function}: {argument}: expected an int <= {most}, got {value!r}")
    return value


def checked_number(function: str, argument: str, value: Any, least: float = 0.0, strict: bool = True) -> float:
    """``value`` as a float if it is a finite number > ``least``, or >= it unless ``strict``."""
    expected = f"{function}: {argument}: expected a finite number {'>' if strict else '>='} {least:g}, got {value!r}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(expected)
    if not (math.isfinite(float(value)) and (float(value) > least if strict else float(value) >= least)):
        raise ValueError(expected)
    return float(value)


def checked_share(function: str, argument: str, value: Any) -> float:
    """``value`` as a float if it is a number in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < float(value) <= 1:
        raise ValueError(f"{function}: {argument}: expected a number in (0, 1], got {value!r}")
    return float(value)


def check_plain(function: str, model: nn.Module) -> None:
    """Raise ValueError for a masked weight that is a DTensor, which the pruner ``function`` cannot serve."""
    if any(shards.is_spread(layer.weight) for layer in masked_layers(model).values()):
        raise ValueError(f"{function}: model: expected plain weights, got DTensors; use DistributedDataParallel")


def check_full(function: str, masks: Masks) -> None:
    """Raise ValueError unless nothing is pruned yet."""
    if masks.count() != masks.numel:
        expected = "full masks (make the pruner before loading a saved state)"
        raise ValueError(f"{function}: model: expected {expected}, got sparsity {masks.sparsity:.4f}")


def described(**functions: Any) -> dict[str, str | None]:
    """Schedules and curves, or their names, as part of checkpoints: never an address."""
    return {name: _text(function) for name, function in functions.items()}


def _text(function: Any) -> str | None:
    if function is None or isinstance(function, str):
        return function
    return repr(function) if is_dataclass(function) else getattr(function, "__qualname__", type(function).__name__)


def check_orientation(function: str, projection: Projection, layers: Mapping[str, MaskedLayer]) -> None:
    """Raise ValueError for a pattern of outputs or inputs where a layer's weight has these the other way round."""
    transposed = [name for name, layer in layers.items() if layer.transposed]
    if transposed and not isinstance(projection.pattern, Unstructured):
        expected = f"single weights, as layer {transposed[0]!r} stores its weight as [in, out]"
        raise ValueError(f"{function}: projection: expected {expected}, got {projection.pattern!r}")


def check_keys(function: str, state: Any, own: Iterable[str]) -> None:
    """Raise unless ``state`` is a mapping with the keys of ``own`` at least; an error names ``function``."""
    if not isinstance(state, Mapping):
        raise TypeError(f"{function}: expected a state dict, got {type(state).__name__}")
    if missing := [key for key in own if key not in state]:
        raise ValueError(f"{function}: expected a state of this pruner, got one without {missing[0]!r}")


def check_tensors(function: str, given: Any, own: Mapping[str, Tensor]) -> None:
    """Raise unless ``given`` has tensors of real numbers under the names and in the shapes of ``own``."""
    if not isinstance(given, Mapping) or given.keys() != own.keys():
        got = ", ".join(map(str, list(given)[:5])) if isinstance(given, Mapping) else type(given).__name__
        raise ValueError(f"{function}: expected tensors of {', '.join(list(own)[:5])}, got {got}")
    for name, value in given.items():
        if not isinstance(value, Tensor) or value.shape != own[name].shape or not value.is_floating_point():
            got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{function}[{name!r}]: expected floats of shape {tuple(own[name].shape)}, got {got}")


def cycle(function: str, loader: Iterable[Any]) -> Iterator[Any]:
    """Batches of ``loader`` for ever.

    A sampler with ``set_epoch``, as DistributedSampler has, is told the number of each pass, so that orders differ.

    Raises:
        TypeError: it cannot be iterated over. ValueError: a whole pass over it gives none.
    """
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise TypeError(f"{function}: loader: expected an iterable of batches, got {type(loader).__name__}")
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
