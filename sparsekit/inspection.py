# SPDX-License-Identifier: Apache-2.0
"""Looking into a sparsified model or its checkpoint, without the code that made it: layers, masks, and what is wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sparsekit import ops
from sparsekit.io import FILE, SIDECAR, read_saved
from sparsekit.mask import Mask, Masks
from sparsekit.nn.masked import WORDS
from sparsekit.ops import replicas
from sparsekit.structure import dead_units, structure_of


@dataclass(frozen=True)
class LayerReport:
    """One masked layer.

    pattern: as ``structure_of`` names it. dense_bytes: the weight as it is stored; packed_bytes: the kept values and the
    bits of the mask. revived: weights under zero bits that are not 0; exposed: the name through which something reads them
    without the mask. not_finite: kept weights that are inf or NaN. dead_outputs, dead_inputs: units of dims 0 and 1
    without any kept weight. stray_bits: are padding bits set in the stored mask?
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kept: int
    total: int
    sparsity: float
    pattern: str
    dense_bytes: int
    packed_bytes: int
    revived: int
    exposed: str | None
    not_finite: int
    dead_outputs: int
    dead_inputs: int
    stray_bits: bool

    def problems(self) -> Iterator[str]:
        """What makes this layer wrong or useless, in words."""
        if self.total and not self.kept:
            yield f"{self.name}: keeps none of {self.total:,} weights, so its output no longer depends on its input"
        if self.not_finite:
            yield f"{self.name}: {self.not_finite:,} kept weights are inf or NaN"
        if self.revived and self.exposed is not None:
            yield f"{self.name}: {self.exposed} reads {self.revived:,} pruned weights that are not 0, without the mask"
        if self.stray_bits:
            yield f"{self.name}: padding bits are set in its mask"


@dataclass(frozen=True)
class Inspection:
    """A model or a checkpoint: layers in module order (those asked for), and totals over all of them.

    mask_hash: as ``sk.masks(model).hash()``. inferred: there were no masks, so zeros count as pruned. file_bytes: of the
    file, None for a model. dense_bytes: all tensors but masks; packed_bytes: the same with masked weights packed.
    problems: everything that is wrong, over all layers; empty means sound.
    """

    layers: tuple[LayerReport, ...]
    mask_hash: str
    kept: int
    total: int
    sparsity: float
    inferred: bool
    file_bytes: int | None
    dense_bytes: int
    packed_bytes: int
    revived: int
    problems: tuple[str, ...]


def inspect(source: nn.Module | str | os.PathLike[str], layers: str = "*") -> Inspection:
    """Look into a sparsified model, or into what ``save`` wrote.

    Args:
        source: a model, a folder with model.safetensors, or a safetensors file. In a file without masks, zeros of every
            weight with two dimensions or more count as pruned.
        layers: glob over layer names; totals and problems are those of all layers nevertheless.

    Raises:
        ValueError: no such file, not safetensors, masks that do not fit, nothing masked, a glob that matches no layer.
        TypeError: neither a Module nor a path.
    """
    tensors, description = _state(source)
    found = _masks_of(tensors, description)
    inferred = not found and not isinstance(source, nn.Module)
    found = found or (_zeros_of(tensors) if inferred else {})
    if not found:
        raise ValueError("inspect: source: expected masked layers, got none; call sparsify first")
    reports = [_layer(name, mask, tensors) for name, mask in found.items()]
    shown = tuple(report for report in reports if fnmatchcase(report.name, layers))
    if not shown:
        raise ValueError(f"inspect: layers: expected a glob that matches one of {', '.join(found)}, got {layers!r}")
    masks = Masks(found)
    dense = sum(t.nbytes for t in {_place(n, t): t for n, t in tensors.items() if not _is_mask(n)}.values())
    problems = [text for report in reports for text in report.problems()]
    return Inspection(
        layers=shown,
        mask_hash=masks.hash(),
        kept=sum(report.kept for report in reports),
        total=masks.numel,
        sparsity=1 - sum(report.kept for report in reports) / masks.numel if masks.numel else 0.0,
        inferred=inferred,
        file_bytes=None if isinstance(source, nn.Module) else _file(source).stat().st_size,
        dense_bytes=dense,
        packed_bytes=dense - sum(report.dense_bytes - report.packed_bytes for report in reports),
        revived=sum(report.revived for report in reports),
        problems=(*problems, *_disagreements(source, description, reports, masks.hash())),
    )


def read_masks(source: nn.Module | str | os.PathLike[str]) -> Masks:
    """The masks of a model or a checkpoint; the same arguments and errors as ``inspect``."""
    tensors, description = _state(source)
    found = _masks_of(tensors, description)
    if not found and not isinstance(source, nn.Module):
        found = _zeros_of(tensors)
    if not found:
        raise ValueError("read_masks: source: expected masked layers, got none; call sparsify first")
    return Masks(found)


def _file(source: str | os.PathLike[str]) -> Path:
    path = Path(source)
    return path / FILE if path.is_dir() else path


def _state(source: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors under all their names, and the description that lies beside them in the file."""
    if isinstance(source, nn.Module):
        network = replicas.plain_network("inspect", source)
        state = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
        if lazy := [name for name, value in state.items() if is_lazy(value) or value.is_meta]:
            raise ValueError(f"inspect: source: expected tensors with data, got none in {lazy[0]!r}")
        return state, {}
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"inspect: source: expected a torch.nn.Module or a path, got {type(source).__name__}")
    return read_saved(_file(source))


def _is_mask(name: str) -> bool:
    return name.split(".")[-1] == WORDS


def _weight(name: str) -> str:
    return f"{name}.weight" if name else "weight"


def _place(name: str, tensor: Tensor) -> Any:
    """The same for two names of one tensor, and for nothing else."""
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride()) if tensor.numel() else name


def _masks_of(tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> dict[str, Mask]:
    """Stored masks in module order, of tied weights the first."""
    stored = {name[: -len(WORDS)].rstrip("."): words for name, words in tensors.items() if _is_mask(name)}
    listed = description.get("layers")
    order = [name for name in listed if name in stored] if isinstance(listed, dict) else []
    masks: dict[Any, tuple[str, Mask]] = {}
    for name in (*order, *(name for name in stored if name not in order)):
        weight = tensors.get(_weight(name))
        if weight is None:
            raise ValueError(f"inspect: source: expected a weight for every mask, got none for {name!r}")
        if _place(name, weight) not in masks:
            try:
                masks[_place(name, weight)] = name, Mask(stored[name], tuple(weight.shape))
            except (TypeError, ValueError) as error:
                raise ValueError(f"inspect: masks[{name!r}]: {error}") from error
    return dict(masks.values())


def _zeros_of(tensors: Mapping[str, Tensor]) -> dict[str, Mask]:
    weights = {
        n: t for n, t in tensors.items() if n.split(".")[-1] == "weight" and t.ndim >= 2 and t.is_floating_point()
    }
    return {name[: -len("weight")].rstrip("."): Mask.from_dense(weight != 0) for name, weight in weights.items()}


def _layer(name: str, mask: Mask, tensors: Mapping[str, Tensor]) -> LayerReport:
    weight, kept = tensors[_weight(name)].detach(), mask.dense()
    count, (outputs, inputs) = int(kept.sum()), dead_units(kept)
    sharing = [n for n, t in tensors.items() if not _is_mask(n) and _place(n, t) == _place(_weight(name), weight)]
    bare = [n for n in sharing if n.rpartition(".")[0] + "." * ("." in n) + WORDS not in tensors]
    return LayerReport(
        name=name,
        shape=mask.shape,
        dtype=str(weight.dtype).removeprefix("torch."),
        kept=count,
        total=mask.numel,
        sparsity=1 - count / mask.numel if mask.numel else 0.0,
        pattern=structure_of(kept),
        dense_bytes=weight.nbytes,
        packed_bytes=count * weight.element_size() + mask.words.nbytes,
        revived=int((weight.ne(0) & ~kept).sum()),
        exposed=bare[0] if bare else None,
        not_finite=int((~weight.isfinite() & kept).sum()),
        dead_outputs=outputs,
        dead_inputs=inputs,
        stray_bits=not torch.equal(ops.pack_mask(kept), mask.words),
    )


def _disagreements(
    source: Any, description: Mapping[str, Any], reports: list[LayerReport], mask_hash: str
) -> Iterator[str]:
    """Where the description in the file, or the one beside it, tells another story than the masks."""
    if isinstance(source, nn.Module):
        return
    listed = description.get("layers")
    for report in reports:
        told = listed.get(report.name) if isinstance(listed, dict) else None
        if isinstance(listed, dict) and told != {"shape": list(report.shape), "kept": report.kept}:
            yield f"{report.name}: the file describes it as {told}, its mask keeps {report.kept} of {report.shape}"
    if (told := description.get("mask_hash", mask_hash)) != mask_hash:
        yield f"the file says that its masks have the hash {told}, they have {mask_hash}"
    sidecar = _file(source).with_name(SIDECAR)
    if description and _file(source).name == FILE and sidecar.is_file():
        try:
            same = json.loads(sidecar.read_text()) == description
        except (ValueError, RecursionError):
            same = False
        if not same:
            yield f"{SIDECAR} does not describe {FILE}: it is from another save, or was edited"
