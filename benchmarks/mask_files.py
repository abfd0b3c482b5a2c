# SPDX-License-Identifier: Apache-2.0
"""Masks of the runs of a comparison, one small file each beside the rows: packed bits, and which of them connect anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sparsekit.effective import effective_masks
from sparsekit.mask import Mask, Masks
from sparsekit.nn import masks
from sparsekit.tensor_file import read_tensors, write_tensors

FOLDER, KEY, FORMAT, VERSION = "masks", "masks.json", "sparsekit.masks", 1


@dataclass(frozen=True)
class KeptMasks:
    """The final masks of a run; effective: those on a path from input to output, None with the reason ``why``."""

    masks: Masks
    effective: Masks | None
    why: str


def keep_masks(folder: Path, run: str, model: nn.Module, shape: tuple[int, ...]) -> None:
    """Write the masks of a finished run into ``folder``/masks, atomically.

    Args:
        folder: of the comparison. run: the id of its row. model: masked. shape: of one image, [channels, size, size].
    """
    final, why = masks(model), ""
    device = next(model.parameters()).device
    try:
        effective = effective_masks(model, torch.ones(1, *shape, device=device))
    except ValueError as error:  # a network with functions that cannot be traced still has masks
        effective, why = None, str(error)
    tensors = {f"kept.{name}": mask.words.cpu() for name, mask in final.items()}
    tensors |= {f"effective.{name}": mask.words.cpu() for name, mask in (effective or {}).items()}
    layers = {name: list(mask.shape) for name, mask in final.items()}
    description = {"format": FORMAT, "version": VERSION, "layers": layers, "mask_hash": final.hash(), "why": why}
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    write_tensors(folder / FOLDER / f"{run}.safetensors", tensors, KEY, description)


def read_kept(folder: Path, run: str) -> KeptMasks | None:
    """The masks of a run, None where none were kept.

    Raises:
        ValueError: the file is damaged, or another.
    """
    file = folder / FOLDER / f"{run}.safetensors"
    if not file.is_file():
        return None
    tensors, description, _ = read_tensors("masks", file, KEY, FORMAT, VERSION)
    layers = (description or {}).get("layers")
    if not isinstance(layers, dict) or not all(f"kept.{name}" in tensors for name in layers):
        raise ValueError(
            f"masks: path: expected masks of a run with the shapes of their layers, got others in {str(file)!r}"
        )

    def of(kind: str) -> Masks:
        return Masks({name: Mask(tensors[f"{kind}.{name}"], tuple(shape)) for name, shape in layers.items()})

    traced = all(f"effective.{name}" in tensors for name in layers)
    return KeptMasks(of("kept"), of("effective") if traced else None, str((description or {}).get("why", "")))
