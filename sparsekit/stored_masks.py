# SPDX-License-Identifier: Apache-2.0
"""Tensors and masks of a model or of what ``save`` wrote, without the code that made it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sparsekit.io import FILE, read_saved
from sparsekit.mask import Mask, Masks
from sparsekit.nn.masked import WORDS
from sparsekit.ops import replicas


def read_masks(source: nn.Module | str | os.PathLike[str]) -> Masks:
    """The masks of a model or a checkpoint; the same arguments and errors as ``inspect``."""
    tensors, description = state_of(source)
    found = masks_of(tensors, description)
    if not found and not isinstance(source, nn.Module):
        found = zeros_of(tensors)
    if not found:
        raise ValueError("read_masks: source: expected masked layers, got none; call sparsify first")
    return Masks(found)


def file_of(source: str | os.PathLike[str]) -> Path:
    """The safetensors file at a path: itself, or the one in a folder."""
    path = Path(source)
    return path / FILE if path.is_dir() else path


def state_of(source: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors under all their names, and the description that lies beside them in the file."""
    if isinstance(source, nn.Module):
        network = replicas.plain_network("inspect", source)
        state = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
        if lazy := [name for name, value in state.items() if is_lazy(value) or value.is_meta]:
            raise ValueError(f"inspect: source: expected tensors with data, got none in {lazy[0]!r}")
        return state, {}
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"inspect: source: expected a torch.nn.Module or a path, got {type(source).__name__}")
    return read_saved(file_of(source))


def is_mask(name: str) -> bool:
    """Is it the name of a tensor of mask words?"""
    return name.split(".")[-1] == WORDS


def weight_name(name: str) -> str:
    """Name of the weight of a layer."""
    return f"{name}.weight" if name else "weight"


def place_of(name: str, tensor: Tensor) -> Any:
    """The same for two names of one tensor, and for nothing else."""
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride()) if tensor.numel() else name


def masks_of(tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> dict[str, Mask]:
    """Stored masks in module order, of tied weights the first."""
    stored = {name[: -len(WORDS)].rstrip("."): words for name, words in tensors.items() if is_mask(name)}
    listed = description.get("layers")
    order = [name for name in listed if name in stored] if isinstance(listed, dict) else []
    masks: dict[Any, tuple[str, Mask]] = {}
    for name in (*order, *(name for name in stored if name not in order)):
        weight = tensors.get(weight_name(name))
        if weight is None:
            raise ValueError(f"inspect: source: expected a weight for every mask, got none for {name!r}")
        if place_of(name, weight) not in masks:
            try:
                masks[place_of(name, weight)] = name, Mask(stored[name], tuple(weight.shape))
            except (TypeError, ValueError) as error:
                raise ValueError(f"inspect: masks[{name!r}]: {error}") from error
    return dict(masks.values())


def zeros_of(tensors: Mapping[str, Tensor]) -> dict[str, Mask]:
    """Masks that keep what is not 0 of every weight with two dimensions or more."""
    weights = {
        n: t for n, t in tensors.items() if n.split(".")[-1] == "weight" and t.ndim >= 2 and t.is_floating_point()
    }
    return {name[: -len("weight")].rstrip("."): Mask.from_dense(weight != 0) for name, weight in weights.items()}
