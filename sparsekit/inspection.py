# SPDX-License-Identifier: Apache-2.0
"""Looking into a sparsified model or its checkpoint, without the code that made it: layers, masks, and what is wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit import ops
from sparsekit.allocation import ERK
from sparsekit.io import FILE, SIDECAR
from sparsekit.mask import Mask, Masks
from sparsekit.nn.masked import WORDS
from sparsekit.stored_masks import file_of, is_mask, masks_of, place_of, read_masks, state_of, weight_name, zeros_of
from sparsekit.structure import dead_units, structure_of

__all__ = ["Inspection", "LayerReport", "inspect", "read_masks"]


@dataclass(frozen=True)
class LayerReport:
    """One masked layer.

    pattern: as ``structure_of`` names it. dense_bytes: the weight as it is stored; packed_bytes: the kept values and the
    bits of the mask. revived: weights under zero bits that are not 0; exposed: the name through which something reads them
    without the mask. not_finite: kept weights that are inf or NaN. dead_outputs, dead_inputs: units of dims 0 and 1
    without any kept weight. stray_bits: are padding bits set in the stored mask? erk: weights that the layer would keep if
    ERK divided the same total. effective: kept weights on a path from input to output; cut_outputs, cut_inputs: units that
    no such path crosses; None unless they were asked for.
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
    erk: int
    effective: int | None = None
    cut_outputs: int | None = None
    cut_inputs: int | None = None

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
    problems: everything that is wrong, over all layers; empty means sound. effective: kept weights on a path from input to
    output, None unless they were asked for.
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
    effective: int | None = None


def inspect(
    source: nn.Module | str | os.PathLike[str], layers: str = "*", effective: Mapping[str, Mask] | None = None
) -> Inspection:
    """Look into a sparsified model, or into what ``save`` wrote.

    Args:
        source: a model, a folder with model.safetensors, or a safetensors file. In a file without masks, zeros of every
            weight with two dimensions or more count as pruned.
        layers: glob over layer names; totals and problems are those of all layers nevertheless.
        effective: what ``effective_masks`` gave for the same network and masks, to be reported too.

    Raises:
        ValueError: no such file, not safetensors, masks that do not fit, nothing masked, a glob that matches no layer.
        TypeError: neither a Module nor a path.
    """
    tensors, description = state_of(source)
    found = masks_of(tensors, description)
    inferred = not found and not isinstance(source, nn.Module)
    found = found or (zeros_of(tensors) if inferred else {})
    if not found:
        raise ValueError("inspect: source: expected masked layers, got none; call sparsify first")
    erk = _erk(found)
    reports = [_layer(name, mask, tensors, erk[name], _checked(effective, name, mask)) for name, mask in found.items()]
    shown = tuple(report for report in reports if fnmatchcase(report.name, layers))
    if not shown:
        raise ValueError(f"inspect: layers: expected a glob that matches one of {', '.join(found)}, got {layers!r}")
    masks = Masks(found)
    dense = sum(t.nbytes for t in {place_of(n, t): t for n, t in tensors.items() if not is_mask(n)}.values())
    problems = [text for report in reports for text in report.problems()]
    return Inspection(
        layers=shown,
        mask_hash=masks.hash(),
        kept=sum(report.kept for report in reports),
        total=masks.numel,
        sparsity=1 - sum(report.kept for report in reports) / masks.numel if masks.numel else 0.0,
        inferred=inferred,
        file_bytes=None if isinstance(source, nn.Module) else file_of(source).stat().st_size,
        dense_bytes=dense,
        packed_bytes=dense - sum(report.dense_bytes - report.packed_bytes for report in reports),
        revived=sum(report.revived for report in reports),
        problems=(*problems, *_cut(reports), *_disagreements(source, description, reports, masks.hash())),
        effective=None if effective is None else sum(report.effective or 0 for report in reports),
    )


def _erk(masks: Mapping[str, Mask]) -> dict[str, int]:
    """Weights kept of every layer if ERK divided the same total."""
    sizes, kept = {name: mask.numel for name, mask in masks.items()}, sum(mask.count() for mask in masks.values())
    if not kept:
        return dict.fromkeys(masks, 0)
    removed = Fraction(sum(sizes.values()) - kept, sum(sizes.values()))
    return ERK()({name: mask.shape for name, mask in masks.items()}, sizes, removed)


def _checked(effective: Mapping[str, Mask] | None, name: str, mask: Mask) -> Tensor | None:
    """The effective weights of a layer. Raises ValueError unless they are some of those that its mask keeps."""
    if effective is None:
        return None
    own = effective.get(name)
    if own is None or own.shape != mask.shape or bool((own.dense().cpu() & ~mask.dense().cpu()).any()):
        raise ValueError(f"inspect: effective[{name!r}]: expected weights that the mask keeps, got {own!r}")
    return own.dense().cpu()


def _cut(reports: list[LayerReport]) -> Iterator[str]:
    if any(report.kept for report in reports) and all(report.effective == 0 for report in reports):
        yield "no path leads from the input to the output: what the network gives is constant"


def _layer(name: str, mask: Mask, tensors: Mapping[str, Tensor], erk: int, effective: Tensor | None) -> LayerReport:
    weight, kept = tensors[weight_name(name)].detach(), mask.dense()
    count, (outputs, inputs) = int(kept.sum()), dead_units(kept)
    cut = (None, None) if effective is None else dead_units(effective)
    sharing = [
        n for n, t in tensors.items() if not is_mask(n) and place_of(n, t) == place_of(weight_name(name), weight)
    ]
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
        erk=erk,
        effective=None if effective is None else int(effective.sum()),
        cut_outputs=cut[0],
        cut_inputs=cut[1],
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
    sidecar = file_of(source).with_name(SIDECAR)
    if description and file_of(source).name == FILE and sidecar.is_file():
        try:
            same = json.loads(sidecar.read_text()) == description
        except (ValueError, RecursionError):
            same = False
        if not same:
            yield f"{SIDECAR} does not describe {FILE}: it is from another save, or was edited"
