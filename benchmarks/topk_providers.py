# SPDX-License-Identifier: Apache-2.0
"""Who selects in the benchmark of top-k masks: the idioms people use, the copy that bounds them all, and sparsekit.

All rank by magnitude over a list of tensors. The idioms concatenate a list first; a single tensor is taken as it is.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sparsekit import ops
from sparsekit.benchmarks.topk_checks import CONTRACT, COUNT, THRESHOLD
from sparsekit.benchmarks.topk_problems import LIST_OVERHEAD, TopkProblem

Select = Callable[[list[Tensor], int], Sequence[Tensor]]

FLOOR = "copy floor"
PACKED = "sparsekit, packed"
ONE_TENSOR = "sparsekit, one tensor"


@dataclass(frozen=True)
class Provider:
    """One way of making the masks.

    Args:
        name: as rows name it; those of sparsekit start with its name.
        prepare: (scores, kept) -> the function to be timed, which returns masks; what it does itself is not timed.
        rule: what the masks owe (topk_checks), or None for the copy, which makes none.
    """

    name: str
    prepare: Callable[[list[Tensor], int], Callable[[], Sequence[Tensor]]]
    rule: str | None

    @property
    def ours(self) -> bool:
        """Is it sparsekit's?"""
        return self.name.startswith("sparsekit")


def _magnitudes(scores: Sequence[Tensor]) -> Tensor:
    """|scores| as one vector."""
    flat = scores[0].reshape(-1) if len(scores) == 1 else torch.cat([s.reshape(-1) for s in scores])
    return flat.abs()


def _split(mask: Tensor, scores: Sequence[Tensor]) -> list[Tensor]:
    parts = mask.split([s.numel() for s in scores])
    return [part.view(s.shape) for part, s in zip(parts, scores, strict=True)]


def _kthvalue(scores: list[Tensor], kept: int) -> list[Tensor]:
    """The usual idiom: kth value, compare. Keeps all ties."""
    flat = _magnitudes(scores)
    return _split(flat >= flat.kthvalue(flat.numel() - kept + 1).values, scores)


def _topk(scores: list[Tensor], kept: int) -> list[Tensor]:
    """Unsorted topk, scatter."""
    flat = _magnitudes(scores)
    mask = torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device)
    mask[flat.topk(kept, sorted=False).indices] = True
    return _split(mask, scores)


def _sort(scores: list[Tensor], kept: int) -> list[Tensor]:
    """Full sort, scatter."""
    flat = _magnitudes(scores)
    mask = torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device)
    mask[flat.sort(descending=True).indices[:kept]] = True
    return _split(mask, scores)


def _partition(scores: list[Tensor], kept: int) -> list[Tensor]:
    """numpy's partition, compare. Keeps all ties. numpy has no bfloat16: 16-bit scores are widened, which keeps the order."""
    flat = _magnitudes(scores).float().numpy()
    mask = flat >= np.partition(flat, flat.size - kept)[flat.size - kept]
    return _split(torch.from_numpy(mask), scores)


def _cupy_partition(scores: list[Tensor], kept: int) -> list[Tensor]:
    """The same on a GPU by CuPy."""
    import cupy  # pyright: ignore[reportMissingImports]

    flat = cupy.from_dlpack(_magnitudes(scores).float())
    mask = flat >= cupy.partition(flat, flat.size - kept)[flat.size - kept]
    return _split(torch.from_dlpack(mask.view("uint8")).view(torch.bool), scores)


def _released_bip(scores: list[Tensor], kept: int) -> list[Tensor]:
    """What BiP's released code does in each forward pass: all scores of the model in one vector, a full sort of it, ones
    scattered into zeros of the scores' dtype, a slice for each layer."""
    flat = torch.cat([s.reshape(-1) for s in scores]).abs()
    order = flat.sort(descending=True).indices
    return _split(torch.zeros_like(flat).scatter_(0, order[:kept], 1.0), scores)


def _radix(scores: list[Tensor], kept: int) -> Sequence[Tensor]:
    """Our own radix selection with three reads: what the bracket has to beat."""
    return ops.topk_mask_radix(scores, kept, key="magnitude").masks


def _packed(scores: list[Tensor], kept: int) -> list[Tensor]:
    """Words, as pruners use them."""
    return ops.topk_mask(scores, kept).masks


def _bool(scores: list[Tensor], kept: int) -> list[Tensor]:
    """Bool masks."""
    return ops.topk_mask(scores, kept, out="bool").masks


def _warm(scores: list[Tensor], kept: int) -> Callable[[], list[Tensor]]:
    """Words, starting each time where the last selection, here of the same scores, ended."""
    warm = ops.warm_start(1, scores[0].device)
    ops.topk_mask(scores, kept, warm=warm)
    return lambda: ops.topk_mask(scores, kept, warm=warm).masks


def _one_tensor(scores: list[Tensor], kept: int) -> Callable[[], list[Tensor]]:
    """Words of one tensor with the entries of the whole list."""
    flat = torch.cat([s.reshape(-1) for s in scores])
    return lambda: ops.topk_mask([flat], kept).masks


def _copy(scores: list[Tensor], _: int) -> Callable[[], Sequence[Tensor]]:
    """A copy between two byte buffers of (n * itemsize + n / 8) / 2 bytes each.

    It reads one and writes the other, so it moves as many bytes as a selection that reads every score once and writes
    one bit for each.
    """
    moved = sum(s.numel() * s.element_size() + -(-s.numel() // 8) for s in scores)
    source = torch.ones(-(-moved // 2), dtype=torch.uint8, device=scores[0].device)
    target = torch.empty_like(source)
    return lambda: [target.copy_(source)]


def _provider(name: str, select: Select, rule: str) -> Provider:
    return Provider(name, lambda scores, kept: partial(select, scores, kept), rule)


def providers(problem: TopkProblem, device: str) -> Iterator[Provider]:
    """Who takes part in a problem; the first one is the baseline.

    The idioms stay away from a list that is there for the cost of being a list, except topk, which has to split its mask.
    """
    topk = _provider("topk + scatter", _topk, COUNT)
    if problem.subject in LIST_OVERHEAD:
        yield Provider(ONE_TENSOR, _one_tensor, CONTRACT)
        yield topk
    else:
        yield _provider("kthvalue + compare", _kthvalue, THRESHOLD)
        yield topk
        yield _provider("sort + scatter", _sort, COUNT)
        if device == "cpu":
            yield _provider("np.partition + compare", _partition, THRESHOLD)
        elif importlib.util.find_spec("cupy") is not None:
            yield _provider("cupy.partition + compare", _cupy_partition, THRESHOLD)
        if len(problem.shapes) > 1:
            yield _provider("BiP as released", _released_bip, COUNT)
    yield _provider("sparsekit radix", _radix, CONTRACT)
    yield Provider(FLOOR, _copy, None)
    yield _provider(PACKED, _packed, CONTRACT)
    yield _provider("sparsekit, bool", _bool, CONTRACT)
    yield Provider("sparsekit, warm", _warm, CONTRACT)
