# SPDX-License-Identifier: Apache-2.0
"""``topk_mask`` on the scores of whole networks, against what PyTorch offers, all checked first.

python -m sparsekit.benchmarks.bench_topk_mask --out rows.jsonl
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sparsekit import ops
from sparsekit.allocation import kept_count
from sparsekit.benchmarks.bench_rows import bench_rows, main
from sparsekit.benchmarks.problems import NETWORK_SHAPES
from sparsekit.benchmarks.timing import compare_times
from sparsekit.ops import reference

SPARSITIES = (0.5, 0.9, 0.98)


def _split(mask: Tensor, scores: list[Tensor]) -> list[Tensor]:
    parts = mask.split([s.numel() for s in scores])
    return [part.view(s.shape) for part, s in zip(parts, scores, strict=True)]


def _kthvalue(scores: list[Tensor], kept: int) -> list[Tensor]:
    """The usual idiom: concatenate, kth value, compare."""
    flat = torch.cat([s.reshape(-1).abs() for s in scores])
    return _split(flat >= flat.kthvalue(flat.numel() - kept + 1).values, scores)


def _topk(scores: list[Tensor], kept: int) -> list[Tensor]:
    """Concatenate, unsorted topk, scatter."""
    flat = torch.cat([s.reshape(-1).abs() for s in scores])
    mask = torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device)
    mask[flat.topk(kept, sorted=False).indices] = True
    return _split(mask, scores)


def _oracle(scores: list[Tensor], kept: int) -> list[Tensor]:
    words, _, _ = reference.topk_mask(scores, [kept], "magnitude", "global", "error")
    return [reference.unpack_mask(w, s.shape) for w, s in zip(words, scores, strict=True)]


def providers(scores: list[Tensor], kept: int) -> dict[str, Callable[[], Any]]:
    """Functions that all give bool masks, and sparsekit's packed form, which is what pruners use."""
    return {
        "kthvalue + compare": lambda: _kthvalue(scores, kept),
        "topk + scatter": lambda: _topk(scores, kept),
        "sparsekit, packed": lambda: ops.topk_mask(scores, kept).masks,
        "sparsekit, bool": lambda: ops.topk_mask(scores, kept, out="bool").masks,
    }


def _check(scores: list[Tensor], truth: list[Tensor]) -> Callable[[str, Any, Any], None]:
    """Ours must equal the oracle bit by bit; PyTorch's idioms may choose otherwise among equals, and only there."""
    threshold = min(s.abs()[t].min() for s, t in zip(scores, truth, strict=True) if t.any())

    def check(name: str, result: list[Tensor], _: Any) -> None:
        for mask, t, s in zip(result, truth, scores, strict=True):
            bits = ops.unpack_mask(mask, t.shape) if name.endswith("packed") else mask
            wrong = bits != t if name.startswith("sparsekit") else (bits != t) & (s.abs() != threshold)
            if wrong.any():
                raise ValueError(f"bench_topk_mask: {name}: expected the masks of the stable-sort oracle, got others")

    return check


def run(repeats: int, device: str = "cpu") -> Iterator[dict[str, Any]]:
    """Rows for the networks of problems.py on ``device`` ("cpu" or "cuda")."""
    for network, shapes in NETWORK_SHAPES.items():
        generator = torch.Generator().manual_seed(0)
        scores = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
        n = sum(s.numel() for s in scores)
        for sparsity in SPARSITIES:
            kept = kept_count(n, sparsity)
            truth = _oracle(scores, kept)

            check = _check(scores, truth)
            functions = providers(scores, kept)
            # The baseline too: compare_times holds only the others against a result.
            name, baseline = next(iter(functions.items()))
            check(name, baseline(), None)
            timings = compare_times(functions, repeats=repeats, check=check, device=device)
            yield from bench_rows("topk_mask", f"{network} {sparsity:g}", timings, n=n, tensors=len(scores))


if __name__ == "__main__":
    main(__doc__ or "", run)
