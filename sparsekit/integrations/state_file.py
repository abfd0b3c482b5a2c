# SPDX-License-Identifier: Apache-2.0
"""Nested state (dicts, lists, numbers, tensors) in one safetensors file. No pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsekit.tensor_file import replace_file

FORMAT = "sparsekit-state-1"


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write ``state`` atomically: tensors as they are, the rest as JSON in the metadata.

    Raises:
        TypeError: it holds something else than dicts, lists, tuples, tensors, strings, numbers, bools and None.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_encode(state, tensors, "state"))
    replace_file(path, lambda target: save_file(tensors, target, metadata={FORMAT: text}))


def load_state(path: Path) -> dict[str, Any]:
    """What ``save_state`` wrote, with tensors on the CPU. Raises ValueError for any other file."""
    try:
        with safe_open(path, framework="pt") as content:
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (not a mapping)
            text = (content.metadata() or {})[FORMAT]
        state = _decode(json.loads(text), tensors)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"load_state: path: expected a saved state, got {str(path)!r} ({error!r})") from error
    if not isinstance(state, dict):
        raise ValueError(f"load_state: path: expected a saved state, got a {type(state).__name__} in {str(path)!r}")
    return state


def _encode(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    if isinstance(value, Tensor):
        # A copy: views of one storage must not drag it along, nor meet in the file.
        tensors[where] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": where}
    if isinstance(value, Mapping):
        return {"dict": [[k, _encode(v, tensors, f"{where}.{i}")] for i, (k, v) in enumerate(_items(value, where))]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encode(v, tensors, f"{where}.{i}") for i, v in enumerate(value)]}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"save_state: {where}: expected tensors and plain values, got {type(value).__name__}")


def _items(value: Mapping[Any, Any], where: str) -> list[tuple[Any, Any]]:
    for key in value:
        if type(key) not in (int, str):
            raise TypeError(f"save_state: {where}: expected keys of type str or int, got {key!r}")
    return list(value.items())


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _decode(v, tensors) for key, v in content}
    if kind not in ("list", "tuple"):
        raise ValueError(kind)
    values = [_decode(v, tensors) for v in content]
    return values if kind == "list" else tuple(values)
