# SPDX-License-Identifier: Apache-2.0
"""The file of a dense network, from which all methods of a comparison start: its state, accuracies and cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.benchmarks.recipe import Recipe, identity, non_default
from sparsekit.tensor_file import read_tensors, write_tensors

KEY, FORMAT, VERSION = "dense.json", "sparsekit.dense", 1
NUMBERS = ("test_accuracy", "epochs", "seconds", "passes")


@dataclass(frozen=True)
class Dense:
    """A densely trained network: state before and after training, and its row entry (accuracies and cost)."""

    init: dict[str, Tensor]
    state: dict[str, Tensor]
    row: dict[str, Any]


def write_dense(file: Path, state: Mapping[str, Tensor], row: Mapping[str, Any]) -> None:
    """Replace ``file``; makes its folder. ``row`` has a number for each of ``NUMBERS``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # Copies: tied weights must not meet in the file.
    stored = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    write_tensors(file, stored, KEY, {"format": FORMAT, "version": VERSION, "row": dict(row)})


def read_dense(file: Path, network: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State and row of what ``write_dense`` wrote.

    Raises:
        ValueError: another file, a damaged one, or one of another network than ``network``.
    """
    try:
        tensors, description, _ = read_tensors("dense", file, KEY, FORMAT, VERSION)
        row = (description or {}).get("row")
        if not isinstance(row, dict) or not all(type(row.get(name)) in (int, float) for name in NUMBERS):
            raise ValueError(f"expected numbers for {', '.join(NUMBERS)}, got {row!r:.80}")
        own = {name: (value.dtype, value.shape) for name, value in network.state_dict().items()}
        if own != {name: (value.dtype, value.shape) for name, value in tensors.items()}:
            raise ValueError("expected the names, shapes and dtypes of the network, got others")
    except ValueError as error:
        raise ValueError(f"out: expected a dense checkpoint in {file}, got another ({error}); remove it") from error
    return tensors, row


def dense_name(recipe: Recipe, seed: int) -> str:
    """File of the dense network of a seed in the folder ``dense`` of a workbench."""
    name = identity(non_default(recipe.dense_part()) | {"seed": seed, "kind": "dense"})
    return f"{name}.safetensors"
