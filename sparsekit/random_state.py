# SPDX-License-Identifier: Apache-2.0
"""The states of all random numbers that training draws, as tensors and plain values."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """States of the generators that training draws from: PyTorch's, Python's and NumPy's."""
    version, words, gauss = random.getstate()
    numbers = cast("dict[str, Any]", np.random.get_state(legacy=False))
    key = torch.tensor(numbers["state"]["key"].astype(np.int64))
    found: dict[str, Any] = {"torch": torch.get_rng_state(), "cuda": []}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["cuda"] = torch.cuda.get_rng_state_all()
    found["python"] = {"version": version, "words": torch.tensor(words), "gauss": gauss}
    found["numpy"] = {name: numbers[name] for name in ("has_gauss", "gauss")}
    found["numpy"] |= {"key": key, "pos": numbers["state"]["pos"]}
    return found


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore ``random_state``. Raises ValueError, TypeError or RuntimeError when it is none."""
    python, numbers = state["python"], state["numpy"]
    # NumPy believes what it is told, and would read beyond its own memory.
    key, pos = numbers["key"], numbers["pos"]
    if tuple(key.shape) != (624,) or type(pos) is not int or not 0 <= pos <= 624 or numbers["has_gauss"] not in (0, 1):
        raise ValueError("expected 624 words of NumPy's generator and a place among them, got others")
    if state["cuda"] and not (torch.cuda.is_available() and torch.cuda.device_count() == len(state["cuda"])):
        raise ValueError(f"expected {len(state['cuda'])} CUDA devices for their random numbers; pass rng=False")
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    generator = {"bit_generator": "MT19937", "state": {"key": key.numpy().astype(np.uint32), "pos": pos}}
    np.random.set_state(generator | {name: numbers[name] for name in ("has_gauss", "gauss")})
