# SPDX-License-Identifier: Apache-2.0
"""Nested state as tensors plus JSON, and back, bit by bit and without pickle.

What JSON has is written as it is: None, bool, int, str, finite floats, lists. The rest is an object with one key:

    {"tensor": name}   {"float": "7ff0000000000000"} (an inf or NaN, IEEE 754 in hexadecimal)   {"bytes": hexadecimal}
    {"tuple": [...]}   {"map": {name: ...}} (a dict with str keys)   {"dict": [[key, value], ...]} (any other dict)
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

DEPTH = 64
# What safetensors has a code for.
DTYPES = frozenset(
    (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool)
    + (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8)
    + (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
)


def encode(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """State as a JSON value and the tensors that it names.

    Args:
        state: nested dicts, lists and tuples of tensors (dense, with data), None, bool, int, float, str, bytes.

    Returns:
        The JSON value, and contiguous copies of the tensors on the CPU by name; a name is the path to the first place of
        its tensor. Tensors that share memory, shape and strides are stored once.

    Raises:
        TypeError: another kind of object. ValueError: a tensor without plain data, or nesting deeper than 64.
    """
    coder = _Encoder()
    return coder.node(state, ""), coder.tensors


def decode(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What ``encode`` was given.

    Raises:
        ValueError: a node of unknown form, a name without a tensor, a tensor that nothing names, or too much nesting.
    """
    used: set[str] = set()
    state = _decoded(node, tensors, used, 0)
    if unused := sorted(tensors.keys() - used):
        raise ValueError(f"expected tensors that the description names, got {unused[0]!r} besides")
    return state


def parse_json(text: str) -> Any:
    """JSON as written here: no repeated keys, no NaN or Infinity. Raises ValueError, also for too much nesting."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("expected JSON of reasonable depth, got more nesting") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"expected each key once, got {next(n for n in names if names.count(n) > 1)!r} twice")
    return values


def _refuse(text: str) -> Any:
    raise ValueError(f"expected numbers of JSON, got {text}")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


class _Encoder:
    """Collects tensors while it walks through a state."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._known: dict[tuple[Any, ...], str] = {}
        self._alive: list[Tensor] = []  # else the memory of a temporary tensor could be taken for that of the next

    def node(self, value: Any, path: str, depth: int = 0) -> Any:
        if depth > DEPTH:
            raise ValueError(f"{path[:80]}...: expected nesting of at most {DEPTH} levels, got more")
        if value is None or type(value) in (bool, int, str):
            return value
        if isinstance(value, float):
            plain = float(value)
            return plain if math.isfinite(plain) else {"float": struct.pack(">d", plain).hex()}
        if isinstance(value, bytes):
            return {"bytes": value.hex()}
        if isinstance(value, Tensor):
            return {"tensor": self._stored(value, path)}
        if isinstance(value, (list, tuple)):
            nodes = [self.node(part, f"{path}.{i}".lstrip("."), depth + 1) for i, part in enumerate(value)]
            return {"tuple": nodes} if isinstance(value, tuple) else nodes
        if isinstance(value, Mapping):
            return self._mapping(value, path, depth)
        expected = "tensors, numbers, strings, bytes, None and dicts, lists and tuples of them"
        raise TypeError(f"{path or 'state'}: expected {expected}, got {type(value).__name__}")

    def _mapping(self, value: Mapping[Any, Any], path: str, depth: int) -> Any:
        nodes = [(key, self.node(part, f"{path}.{key}".lstrip("."), depth + 1)) for key, part in value.items()]
        if all(type(key) is str for key, _ in nodes):
            return {"map": dict(nodes)}
        pairs = [[self.node(key, f"{path} key", depth + 1), node] for key, node in nodes]
        return {"dict": pairs}

    def _stored(self, value: Tensor, path: str) -> str:
        _check_tensor(value, path)
        key = (value.device, value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
        if value.numel() and key in self._known:
            return self._known[key]
        # "a.b" is the path of b in a as well as that of "a.b".
        name = path.encode("ascii", "backslashreplace").decode() or "state"
        while name in self.tensors or name == "__metadata__":
            name += "~"
        self._known[key] = name
        self._alive.append(value)
        self.tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return name


def _check_tensor(value: Tensor, path: str) -> None:
    if hasattr(value, "device_mesh"):
        raise ValueError(f"{path}: expected a tensor of this process, got a DTensor; use torch.distributed.checkpoint")
    if value.is_meta or value.layout != torch.strided or value.is_quantized or value.is_nested:
        raise ValueError(f"{path}: expected a dense tensor with data, got {value.layout} on {value.device}")
    if value.dtype not in DTYPES:
        raise ValueError(f"{path}: expected a dtype that safetensors knows, got {value.dtype}")


def _decoded(node: Any, tensors: Mapping[str, Tensor], used: set[str], depth: int) -> Any:
    if depth > 2 * DEPTH:
        raise ValueError(f"expected nesting of at most {DEPTH} levels, got more")
    if node is None or type(node) in (bool, int, float, str):
        return node
    if isinstance(node, list):
        return [_decoded(part, tensors, used, depth + 1) for part in node]
    if not isinstance(node, dict) or len(node) != 1:
        raise ValueError(f"expected an object with one key, got {str(node)[:80]}")
    ((kind, value),) = node.items()
    if kind in _LEAVES:
        return _LEAVES[kind](value)
    if kind == "tensor" and isinstance(value, str) and value in tensors:
        used.add(value)
        return tensors[value]
    if kind == "tuple" and isinstance(value, list):
        return tuple(_decoded(part, tensors, used, depth + 1) for part in value)
    if kind == "map" and isinstance(value, dict):
        return {name: _decoded(part, tensors, used, depth + 1) for name, part in value.items()}
    if kind == "dict" and isinstance(value, list):
        return _decoded_dict(value, tensors, used, depth)
    raise ValueError(f"expected a node of a known kind, got {kind!r} with {str(value)[:80]!r}")


def _decoded_dict(pairs: list[Any], tensors: Mapping[str, Tensor], used: set[str], depth: int) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2):
            raise ValueError(f"expected pairs of key and value, got {str(pair)[:80]}")
        key, value = (_decoded(part, tensors, used, depth + 1) for part in pair)
        try:
            repeated = key in found
        except TypeError:
            raise ValueError(f"expected a key that can be hashed, got {type(key).__name__}") from None
        if repeated or isinstance(key, Tensor):
            raise ValueError(f"expected each key once and no tensors among them, got {str(key)[:80]!r}")
        found[key] = value
    return found


def _float(text: Any) -> float:
    data = _hex(text)
    if len(data) != 8:
        raise ValueError(f"expected 16 hexadecimal digits of a float, got {text!r}")
    return struct.unpack(">d", data)[0]


def _hex(text: Any) -> bytes:
    if not isinstance(text, str):
        raise ValueError(f"expected hexadecimal digits, got {str(text)[:80]!r}")
    return bytes.fromhex(text)


_LEAVES: dict[str, Callable[[Any], Any]] = {"float": _float, "bytes": _hex}
