# SPDX-License-Identifier: Apache-2.0
"""Structured masks of the layers of whole networks, against the chains of PyTorch calls that give them, all checked first.

python -m sparsekit.benchmarks.bench_structured --out rows.jsonl
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sparsekit import nm, ops
from sparsekit.allocation import kept_count
from sparsekit.benchmarks.bench_rows import bench_rows, main
from sparsekit.benchmarks.problems import NETWORK_SHAPES
from sparsekit.benchmarks.timing import compare_times
from sparsekit.ops import structured_reference

SPARSITY = 0.5
PATTERNS: tuple[str, ...] = ("filter", "channel", "2:4", "8:16", "2:4-transposable")
NETWORKS: tuple[str, ...] = ("resnet18", "resnet50")

Provider = Callable[[], list[Tensor]]


def _unit_dims(scores: Tensor, pattern: str) -> list[int]:
    return [d for d in range(scores.ndim) if d != (pattern == "channel")]


def _topk_chain(scores: list[Tensor], pattern: str) -> list[Tensor]:
    """Norm, topk, index_put, expand, pack: layer by layer."""
    words = []
    for s in scores:
        dims = _unit_dims(s, pattern)
        norms = torch.linalg.vector_norm(s, 2, dims)
        kept = norms.topk(kept_count(norms.numel(), SPARSITY), sorted=False).indices
        chosen = torch.zeros(norms.shape, dtype=torch.bool, device=s.device)
        chosen[kept] = True
        shape = [1 if d in dims else -1 for d in range(s.ndim)]
        words.append(ops.pack_mask(chosen.view(shape).expand(s.shape)))
    return words


def _sort_chain(scores: list[Tensor], pattern: str) -> list[Tensor]:
    """Norm, sort, a mask of ones with the lowest units set to zero by index_put, pack: layer by layer."""
    words = []
    for s in scores:
        norms = torch.linalg.vector_norm(s, 2, _unit_dims(s, pattern))
        order = norms.sort().indices
        removed = order[: norms.numel() - kept_count(norms.numel(), SPARSITY)]
        mask = torch.ones(s.shape, dtype=torch.bool, device=s.device)
        mask.transpose(0, int(pattern == "channel"))[removed] = False
        words.append(ops.pack_mask(mask))
    return words


def _view_topk_scatter(scores: list[Tensor], n: int, m: int) -> list[Tensor]:
    """View as groups of m along dim 1, topk, scatter, pack: layer by layer."""
    words = []
    for s in scores:
        groups = s.abs().unflatten(1, (-1, m))
        kept = groups.topk(n, dim=2, sorted=False).indices
        mask = torch.zeros(groups.shape, dtype=torch.bool, device=s.device).scatter_(2, kept, True)
        words.append(ops.pack_mask(mask.flatten(1, 2)))
    return words


def _tile_products(scores: list[Tensor]) -> list[Tensor]:
    """Tiles times the matrix of all 90 masks, argmax, gather, pack: layer by layer."""
    words = []
    for s in scores:
        table = torch.zeros(len(nm.TILE_MASKS), 4, 4, dtype=s.dtype)
        for index, rows in enumerate(nm.TILE_MASKS):
            for row, columns in enumerate(rows):
                table[index, row, list(columns)] = 1
        table = table.to(s.device).flatten(1)
        tiles = s.abs().reshape(s.shape[0] // 4, 4, s.shape[1] // 4, 4, -1).permute(0, 2, 4, 1, 3)
        best = (tiles.flatten(3) @ table.t()).argmax(dim=3)
        mask = table.bool()[best].unflatten(3, (4, 4)).permute(0, 3, 1, 4, 2)
        words.append(ops.pack_mask(mask.reshape(s.shape)))
    return words


def _fused_units(scores: list[Tensor], pattern: Any) -> list[Tensor]:
    units = [ops.group_scores(s, pattern) for s in scores]
    kept = [kept_count(u.numel(), SPARSITY) for u in units]
    chosen = ops.topk_mask(units, kept, key="value", scope="tensor").masks
    return [ops.expand_units(words, s.shape, pattern) for words, s in zip(chosen, scores, strict=True)]


def providers(scores: list[Tensor], pattern: str) -> dict[str, Provider]:
    """Functions that all give packed masks of the layers; the first is the baseline."""
    if pattern in ("filter", "channel"):
        return {
            "norm + topk + index_put": lambda: _topk_chain(scores, pattern),
            "norm + sort + index_put": lambda: _sort_chain(scores, pattern),
            "sparsekit": lambda: _fused_units(scores, pattern),
        }
    if pattern == "2:4-transposable":
        return {
            "matmul + argmax": lambda: _tile_products(scores),
            "sparsekit": lambda: ops.transposable_nm_mask(scores).masks,
        }
    n, m = map(int, pattern.split(":"))
    return {
        "view + topk + scatter": lambda: _view_topk_scatter(scores, n, m),
        "sparsekit": lambda: ops.nm_mask(scores, n, m).masks,
    }


def fitting(shapes: tuple[tuple[int, ...], ...], pattern: str) -> list[tuple[int, ...]]:
    """The shapes that the pattern divides."""
    if ":" not in pattern:
        return [shape for shape in shapes if len(shape) > 1]
    m = int(pattern.split(":")[1].split("-")[0])
    rows = m if pattern.endswith("transposable") else 1
    return [shape for shape in shapes if len(shape) > 1 and not shape[1] % m and not shape[0] % rows]


def _oracle(scores: list[Tensor], pattern: str) -> list[Tensor]:
    """Words by the readable PyTorch code, for filters and channels by a stable sort of our scores of them."""
    if pattern == "2:4-transposable":
        return structured_reference.transposable_nm_mask(scores, "magnitude", "error")[0]
    if ":" in pattern:
        n, m = map(int, pattern.split(":"))
        return structured_reference.nm_mask(scores, n, m, "magnitude", "error")[0]
    words = []
    for s in scores:
        found, norms = ops.group_scores(s, pattern), torch.linalg.vector_norm(s.double(), 2, _unit_dims(s, pattern))
        if not torch.allclose(found.double(), norms, rtol=1.2e-7, atol=0):
            raise ValueError(f"bench_structured: group_scores: expected the norms of the {pattern}s, got others")
        kept = found.argsort(descending=True, stable=True)[: kept_count(found.numel(), SPARSITY)]
        chosen = torch.zeros_like(found, dtype=torch.bool).index_fill_(0, kept, True)
        shape = [1 if d in _unit_dims(s, pattern) else -1 for d in range(s.ndim)]
        words.append(ops.pack_mask(chosen.view(shape).expand(s.shape)))
    return words


def _as_good(mask: Tensor, truth: Tensor, s: Tensor, pattern: str) -> bool:
    """Is a mask right up to the rounding of float32 sums, and to ties?"""
    if ":" not in pattern:
        dims = _unit_dims(s, pattern)
        norms = torch.linalg.vector_norm(s.double(), 2, dims)
        kept, expected = mask.amax(dims), truth.amax(dims)
        clear = (norms - norms[expected].min()).abs() > 1e-6 * norms
        return torch.equal(kept, mask.amin(dims)) and not bool(((kept != expected) & clear).any())
    m = int(pattern.split(":")[1].split("-")[0])
    sums = []
    for bits in (mask, truth):
        kept = torch.where(bits, s.double().abs(), 0.0).unflatten(1, (-1, m)).sum(2)
        if pattern.endswith("transposable"):
            kept = kept.unflatten(0, (-1, m)).sum(1)
        sums.append(kept)
    return torch.allclose(*sums, rtol=1e-6, atol=0)


def _check(scores: list[Tensor], pattern: str) -> Callable[[str, Any, Any], None]:
    """Ours must equal the oracle bit by bit; PyTorch's chains may choose otherwise among equals, and only there."""
    truth = _oracle(scores, pattern)

    def check(name: str, result: list[Tensor], _: Any) -> None:
        for words, expected, s in zip(result, truth, scores, strict=True):
            same = torch.equal(words, expected)
            if not same and name != "sparsekit" and torch.equal(ops.popcount(words), ops.popcount(expected)):
                same = _as_good(ops.unpack_mask(words, s.shape), ops.unpack_mask(expected, s.shape), s, pattern)
            if not same:
                raise ValueError(f"bench_structured: {name}: expected the {pattern} masks of the oracle, got others")

    return check


def run(repeats: int, device: str = "cpu") -> Iterator[dict[str, Any]]:
    """Rows for the networks of problems.py on ``device`` ("cpu" or "cuda")."""
    for network in NETWORKS:
        for pattern in PATTERNS:
            generator = torch.Generator().manual_seed(0)
            shapes = fitting(NETWORK_SHAPES[network], pattern)
            scores = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
            n = sum(s.numel() for s in scores)
            functions, check = providers(scores, pattern), _check(scores, pattern)
            # The baseline too: compare_times holds only the others against a result.
            name, baseline = next(iter(functions.items()))
            check(name, baseline(), None)
            timings = compare_times(functions, repeats=repeats, check=check, device=device)
            yield from bench_rows("structured", f"{network} {pattern}", timings, n=n, tensors=len(scores))


if __name__ == "__main__":
    main(__doc__ or "", run)
