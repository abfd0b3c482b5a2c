# SPDX-License-Identifier: Apache-2.0
"""What the kept masks of a comparison show: densities of layers, overlaps of methods, and what connects nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from statistics import fmean

from sparsekit.allocation import ERK
from sparsekit.benchmarks.mask_files import KeptMasks, read_kept
from sparsekit.benchmarks.reporting.palette import Style
from sparsekit.benchmarks.reporting.runs import Run
from sparsekit.benchmarks.reporting.wording import count
from sparsekit.mask import Masks
from sparsekit.mask_diff import chance_overlap
from sparsekit.structure import dead_units


@dataclass(frozen=True)
class MaskCell:
    """One method at one sparsity, means over its seeds.

    densities: kept fraction of every layer. effective: fraction of all weights kept and on a path from input to output;
    idle: kept weights on none; cut: units of dims 0 and 1 that no path crosses. None where nothing was traced.
    """

    method: str
    seeds: tuple[int, ...]
    densities: tuple[float, ...]
    kept: float
    effective: float | None
    idle: float | None
    cut: float | None


@dataclass(frozen=True)
class Overlap:
    """Mean intersection over union of two methods' masks over the seeds that both have, and what chance would give."""

    seeds: int
    iou: float
    chance: float


@dataclass(frozen=True)
class MaskLevel:
    """One sparsity. erk, uniform: densities of layers under these allocations of what the first method keeps."""

    sparsity: float
    layers: tuple[str, ...]
    erk: tuple[float, ...]
    uniform: float
    cells: tuple[MaskCell, ...]
    overlaps: Mapping[tuple[str, str], Overlap]


@dataclass(frozen=True)
class MaskSection:
    """levels: sparsities with masks. missing: what is not there, in words. names, styles: of the methods."""

    levels: tuple[MaskLevel, ...]
    missing: tuple[str, ...]
    names: Mapping[str, str]
    styles: Mapping[str, Style]


def mask_section(
    runs: Iterable[Run], folder: Path | None, name_of: Callable[[str], str], styles: Mapping[str, Style]
) -> MaskSection:
    """The section for finished runs of one recipe.

    Args:
        folder: of the comparison, with the masks of runs in its folder ``masks``; None where there is no such folder.
        name_of: the reader's name of a method. styles: by method; others are left out.

    Raises:
        ValueError: a file of masks is damaged.
    """
    wanted = [run for run in runs if run.method in styles]
    found = {run.id: kept for run in wanted if folder and (kept := read_kept(folder, run.id))}
    levels: dict[float, dict[str, dict[int, KeptMasks]]] = {}
    for run in wanted:
        if run.id in found:
            levels.setdefault(run.sparsity, {}).setdefault(run.method, {})[run.seed] = found[run.id]
    order = list(styles)
    return MaskSection(
        levels=tuple(_level(s, {m: levels[s][m] for m in order if m in levels[s]}) for s in sorted(levels)),
        missing=tuple(_missing(len(wanted), found)),
        names={method: name_of(method) for method in styles},
        styles=styles,
    )


def _missing(wanted: int, found: Mapping[str, KeptMasks]) -> Iterable[str]:
    if len(found) < wanted:
        yield f"The masks of {wanted - len(found)} of {count(wanted, 'run')} were not kept; --keep-masks keeps them."
    for why in dict.fromkeys(kept.why for kept in found.values() if kept.effective is None):
        yield f"Paths from input to output were not traced: {why}."


def _level(sparsity: float, methods: Mapping[str, Mapping[int, KeptMasks]]) -> MaskLevel:
    first = next(iter(next(iter(methods.values())).values())).masks
    sizes, kept = {name: mask.numel for name, mask in first.items()}, first.count()
    total = sum(sizes.values())
    shares = dict.fromkeys(first, 0)
    if kept:
        shares = ERK()({name: mask.shape for name, mask in first.items()}, sizes, Fraction(total - kept, total))
    pairs = {(a, b): overlap for a, b in combinations(methods, 2) if (overlap := _overlap(methods[a], methods[b]))}
    return MaskLevel(
        sparsity=sparsity,
        layers=tuple(first),
        erk=tuple(shares[name] / sizes[name] for name in first),
        uniform=kept / total,
        cells=tuple(_cell(method, by_seed) for method, by_seed in methods.items()),
        overlaps=pairs,
    )


def _overlap(a: Mapping[int, KeptMasks], b: Mapping[int, KeptMasks]) -> Overlap | None:
    pairs = [(a[seed].masks, b[seed].masks) for seed in sorted(a.keys() & b.keys())]
    if not pairs:
        return None
    return Overlap(len(pairs), fmean(x.overlap(y) for x, y in pairs), fmean(chance_overlap(x, y) for x, y in pairs))


def _cell(method: str, by_seed: Mapping[int, KeptMasks]) -> MaskCell:
    found = list(by_seed.values())
    layers = [[mask.count() / mask.numel if mask.numel else 0.0 for mask in kept.masks.values()] for kept in found]
    traced = [(kept.masks, kept.effective) for kept in found if kept.effective is not None]
    return MaskCell(
        method=method,
        seeds=tuple(sorted(by_seed)),
        densities=tuple(map(fmean, zip(*layers, strict=True))),
        kept=fmean(kept.masks.count() for kept in found),
        effective=_mean([1 - effective.sparsity for _, effective in traced]),
        idle=_mean([own.count() - effective.count() for own, effective in traced]),
        cut=_mean([_cut(effective) for _, effective in traced]),
    )


def _cut(effective: Masks) -> int:
    return sum(sum(dead_units(mask.dense())) for mask in effective.values())


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
