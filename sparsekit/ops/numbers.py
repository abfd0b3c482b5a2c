# SPDX-License-Identifier: Apache-2.0
"""Numbers that people pass as arguments: counts, rates, and what stands for them on a device."""

from __future__ import annotations

import math
from operator import index
from typing import Any

import torch
from torch import Tensor


def is_count(value: Any) -> bool:
    """Is it an int >= 0, in the sense of ``is_int``?"""
    return is_int(value) and index(value) >= 0


def is_int(value: Any) -> bool:
    """Is it an int? numpy's integers are some, bools and tensors are none."""
    listed = isinstance(value, Tensor) or getattr(value, "ndim", 0)
    return not isinstance(value, bool) and hasattr(value, "__index__") and not listed


def check_number(function: str, argument: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise ValueError unless the value is a number in [low, high)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value < high:
        raise ValueError(f"{function}: {argument}: expected a number in [{low:g}, {high:g}), got {value!r}")


def number_on(function: str, argument: str, value: float | Tensor, device: torch.device) -> float | Tensor:
    """A number: as a float where that is free, or as a 0-d float64 tensor on the device that alone knows it."""
    if not isinstance(value, Tensor):
        check_number(function, argument, value, 0.0)
        return float(value)
    if value.numel() != 1:
        raise ValueError(f"{function}: {argument}: expected a number or a 0-d tensor, got shape {tuple(value.shape)}")
    if value.device.type == "cpu" and not torch.compiler.is_compiling():
        return float(value)
    if value.device != device:
        raise ValueError(f"{function}: {argument}: expected a number or a tensor on {device}, got {value.device}")
    return value.detach().reshape(()).double()


def rates(lr: float | Tensor) -> tuple[Tensor | None, float]:
    """A learning rate as the ops take it: a tensor of one element, or a number."""
    return (lr.reshape(1), 0.0) if isinstance(lr, Tensor) else (None, lr)
