# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of top-k masks selects from: single tensors of all sizes and contents, and the tensors of networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from math import prod

import torch
from torch import Tensor

from sparsekit.allocation import kept_count
from sparsekit.benchmarks.problems import NETWORK_SHAPES, RESNET50_PARAMETER_SHAPES, TRANSFORMER_1B_SHAPES, Shape

SPARSITIES = (0.95, 0.8, 0.5, 0.2, 0.05)
"""Fractions removed; the names of problems say what is kept: 5, 20, 50, 80 and 95 %."""

SIZES = {"1e5": 10**5, "1e6": 10**6, "1e7": 10**7, "1e8": 10**8, "1e9": 10**9}
CONTENTS = ("normal", "equal", "zeros", "two")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LISTS: dict[str, tuple[Shape, ...]] = {**NETWORK_SHAPES, "transformer1b": TRANSFORMER_1B_SHAPES}
LIST_OVERHEAD = {"resnet50-161": RESNET50_PARAMETER_SHAPES}
"""Lists that are compared with one tensor of the same entries."""

QUICK = (
    *("1e[56]/float32/normal/*", "1e6/*/*/20%", "1e7/*/normal/20%"),
    *("resnet*/float32/normal/20%", "vgg16/float32/normal/20%"),
)
"""Globs of the default set."""

LARGEST = 10**8
"""More entries than this are for GPUs, or for those who ask."""


@dataclass(frozen=True)
class TopkProblem:
    """One selection.

    Args:
        subject: a size, or the name of a list of tensors.
        shapes: of the score tensors.
        dtype: a name in DTYPES.
        contents: "normal" (standard normal), "equal" (one value), "zeros" (nine tenths are zeros of either sign, the rest
            normal), "two" (magnitudes 1 and 2 in equal parts).
        sparsity: fraction removed.
    """

    subject: str
    shapes: tuple[Shape, ...]
    dtype: str
    contents: str
    sparsity: float

    @property
    def name(self) -> str:
        """subject/dtype/contents/percentage kept."""
        return f"{self.subject}/{self.dtype}/{self.contents}/{round(100 * self.kept_fraction)}%"

    @property
    def numel(self) -> int:
        """Entries of all tensors."""
        return sum(map(prod, self.shapes))

    @property
    def kept_fraction(self) -> float:
        """Fraction kept."""
        return round(1 - self.sparsity, 9)

    @property
    def kept(self) -> int:
        """Entries to keep: at least 1, because kthvalue and partition know no kth value of none."""
        return max(1, kept_count(self.numel, self.sparsity))

    def scores(self, device: str) -> list[Tensor]:
        """The tensors, the same in every run on a kind of device."""
        generator = torch.Generator(device).manual_seed(0)
        made = (_contents(self.contents, shape, generator) for shape in self.shapes)
        return [values.to(DTYPES[self.dtype]) for values in made]


def _contents(kind: str, shape: Shape, generator: torch.Generator) -> Tensor:
    if kind == "equal":
        return torch.full(shape, 0.5, device=generator.device)
    values = torch.randn(shape, generator=generator, device=generator.device)
    if kind == "normal":
        return values
    if kind == "two":
        return torch.where(values > 0, 1.0, -2.0)
    # A product, so that half of the zeros are negative ones.
    return values * (torch.rand(shape, generator=generator, device=generator.device) >= 0.9)


def all_problems() -> Iterator[TopkProblem]:
    """Every problem, small single tensors first."""
    for size, dtype, contents, sparsity in product(SIZES, DTYPES, CONTENTS, SPARSITIES):
        yield TopkProblem(size, ((SIZES[size],),), dtype, contents, sparsity)
    for (subject, shapes), dtype, sparsity in product({**LISTS, **LIST_OVERHEAD}.items(), DTYPES, SPARSITIES):
        yield TopkProblem(subject, shapes, dtype, "normal", sparsity)


def choose_problems(
    device: str, *, full: bool = False, large: bool = False, only: str | None = None
) -> list[TopkProblem]:
    """The problems of one run.

    Args:
        device: "cpu" or "cuda".
        full: all of them instead of the quick set, whose largest tensor has 1e7 entries.
        large: the full set with, on a CPU too, the problems of more than 1e8 entries: up to 24 GiB of memory, many minutes.
        only: glob on names, such as "1e7/*/20%".

    Raises:
        ValueError: no problem is left.
    """
    full = full or large
    found = list(_set_of(device, full, large))
    chosen = [problem for problem in found if only is None or fnmatchcase(problem.name, only)]
    if not chosen:
        kind = "full" if full else "quick"
        expected = f"a glob that matches a problem of the {kind} set on {device}, such as {found[-1].name!r}"
        raise ValueError(f"bench topk: only: expected {expected}, got {only!r}")
    return chosen


def _set_of(device: str, full: bool, large: bool) -> Iterator[TopkProblem]:
    for problem in all_problems():
        if problem.numel > LARGEST and device == "cpu" and not large:
            continue
        if full or _matches(problem.name, QUICK):
            yield problem


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
