# SPDX-License-Identifier: Apache-2.0
"""Checks that a function must pass before it is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Check = Callable[[str, Any, Any], None]
"""(name, result, baseline's result) -> None; raises ValueError if the result is wrong."""


def require_equal(name: str, result: Any, expected: Any) -> None:
    """Equal structure, shapes, dtypes and values (+0 equals -0, NaN equals nothing)."""
    for path, got, wanted in _pairs(name, "result", result, expected):
        if isinstance(wanted, Tensor):
            if not torch.equal(got, wanted):
                wrong = int((got != wanted).sum())
                _refuse(name, path, f"the baseline's {wanted.numel()} values", f"{wrong} different ones")
        elif not bool(got == wanted):
            _refuse(name, path, repr(wanted), repr(got))


def require_close(*, rtol: float, atol: float) -> Check:
    """A check for |result - expected| <= atol + rtol * |expected| in every element, in float64; NaN fails.

    Args:
        rtol, atol: tolerances, >= 0.
    """

    def check(name: str, result: Any, expected: Any) -> None:
        for path, got, wanted in _pairs(name, "result", result, expected):
            got, wanted = torch.as_tensor(got).double(), torch.as_tensor(wanted).double()
            if not torch.allclose(got, wanted, rtol=rtol, atol=atol):
                error = float((got - wanted).abs().max())
                _refuse(name, path, f"the baseline within rtol {rtol} and atol {atol}", f"an error of {error:.3g}")

    return check


def snapshot(value: Any) -> Any:
    """A copy of the tensors in nested tuples, lists and mappings, without their graph."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: snapshot(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [snapshot(part) for part in value]
    return value


def _pairs(name: str, path: str, result: Any, expected: Any) -> Iterator[tuple[str, Any, Any]]:
    """Corresponding leaves; raises where the structures, shapes, dtypes or devices differ."""
    if isinstance(expected, Tensor) and isinstance(result, Tensor):
        form, wanted = _form(result), _form(expected)
        if form != wanted:
            _refuse(name, path, wanted, form)
        yield path, result.detach(), expected
    elif isinstance(expected, Mapping) and isinstance(result, Mapping) and list(expected) == list(result):
        for key in expected:
            yield from _pairs(name, f"{path}[{key!r}]", result[key], expected[key])
    elif isinstance(expected, list) and isinstance(result, (tuple, list)) and len(expected) == len(result):
        for i, (part, wanted) in enumerate(zip(result, expected, strict=True)):
            yield from _pairs(name, f"{path}[{i}]", part, wanted)
    elif type(result) is not type(expected):
        _refuse(name, path, type(expected).__name__, type(result).__name__)
    elif isinstance(expected, (Mapping, list)):
        _refuse(name, path, f"{len(expected)} parts named alike", f"{len(result)}")
    else:
        yield path, result, expected


def _form(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"


def _refuse(name: str, path: str, expected: str, got: str) -> None:
    raise ValueError(
        f"compare_times: {name}: {path}: expected {expected}, got {got}; a function that fails its check is not timed "
        f"(for floating-point results pass check=require_close(...))"
    )
