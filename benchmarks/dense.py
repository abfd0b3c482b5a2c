# SPDX-License-Identifier: Apache-2.0
"""Densely trained networks, which all methods start from, and the files they are kept in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsekit.tensor_file import replace_file


@dataclass(frozen=True)
class Dense:
    """A densely trained network: state before and after training, and its row entry (accuracies and cost)."""

    init: dict[str, Tensor]
    state: dict[str, Tensor]
    row: dict[str, Any]


def write_dense(file: Path, state: Mapping[str, Tensor], row: Mapping[str, Any]) -> None:
    """Store a state with its row entry, atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    stored = {name: value.cpu().contiguous() for name, value in state.items()}
    replace_file(file, lambda target: save_file(stored, target, metadata={"row": json.dumps(row)}))


def read_dense(file: Path, device: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State and row entry. Raises ValueError if the file is not what ``write_dense`` wrote."""
    try:
        with safe_open(file, framework="pt", device=device) as content:
            state = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (not a mapping)
            metadata: Mapping[str, str] = content.metadata() or {}
        return state, json.loads(metadata["row"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"compare: out: expected a dense checkpoint in {file}, got another ({error}); remove it"
        ) from error
