# SPDX-License-Identifier: Apache-2.0
"""Selections for the tests: score lists that are hard to select from, calls of the compiled functions, the stable sort."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from packed import layout, new_words, unpack
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
CONTENTS = ("normal", "equal", "zeros", "two", "few", "sorted", "nan", "close", "special", "misleading")
COLS = (1, 9, 27, 31, 32, 33, 64, 65, 147, 256, 500)


@dataclass(frozen=True)
class Case:
    """One selection."""

    scores: list[Tensor]
    kept: int
    key: str
    nan: str


def expected(scores: Sequence[Tensor], kept: int, key: str, nan: str) -> tuple[list[np.ndarray], int]:
    """Masks by a stable sort of the concatenation, and the number of NaN."""
    flat = np.concatenate([score.double().numpy().reshape(-1) for score in scores] or [np.zeros(0)])
    flat = np.abs(flat) if key == "magnitude" else flat
    bad = np.isnan(flat)
    order = np.lexsort((-np.where(bad, 0.0, flat), ~bad if nan == "keep" else bad))
    mask = np.zeros(flat.size, dtype=bool)
    mask[order[: kept if nan == "keep" else min(kept, flat.size - int(bad.sum()))]] = True
    ends = np.cumsum([score.numel() for score in scores])[:-1] if scores else []
    return [part.reshape(s.shape) for part, s in zip(np.split(mask, ends), scores, strict=False)], int(bad.sum())


def sampled_positions(numel: int, order: int) -> np.ndarray:
    """Where a sample of 2^order elements is drawn: it is no secret, so scores can be made to mislead it."""
    i = np.arange(1 << order, dtype=np.uint64)
    scatter = (i * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
    return ((i * np.uint64(numel)) >> np.uint64(order)) + ((scatter * np.uint64(numel >> order)) >> np.uint64(32))


def contents(rng: np.random.Generator, kind: str, numel: int) -> np.ndarray:
    """float64 scores of one kind."""
    x = rng.standard_normal(numel)
    if kind == "equal":
        x[:] = 1.5
    elif kind == "zeros":
        x *= rng.random(numel) > 0.9
    elif kind == "two":
        x = np.where(rng.random(numel) < rng.choice([0.5, 0.1]), 1.0, 2.0)
    elif kind == "few":
        x = np.round(3 * x) / 3
    elif kind == "sorted":
        x = np.sort(x)[:: rng.choice([-1, 1])]
    elif kind == "nan":
        x[rng.random(numel) < rng.choice([0.01, 0.3, 1.0])] = np.nan
    elif kind == "close":
        x = 1 + 1e-4 * x
    elif kind == "special":
        special = np.array([0.0, -0.0, np.inf, -np.inf, 2.0**-24, -(2.0**-24), 6e-8, 1.0, -1.0])
        x = np.where(rng.random(numel) < 0.5, x, rng.choice(special, numel))
    elif kind == "misleading" and numel > 600:
        for order in (8, 9, 10, int(np.log2(numel) * 2 / 3 + 0.5)):
            x[sampled_positions(numel, order).astype(np.int64)] = rng.choice([-100.0, 0.3, 100.0])
    return x


def draw(rng: np.random.Generator, rows: int = 120) -> list[Tensor]:
    """A list of one to four score tensors of one dtype, some of them empty, flat or not aligned."""
    dtype, kind = DTYPES[rng.integers(len(DTYPES))], CONTENTS[rng.integers(len(CONTENTS))]
    shapes = [(int(rng.integers(0, rows)), int(rng.choice(COLS))) for _ in range(rng.integers(1, 5))]
    flat = contents(rng, kind, sum(r * c for r, c in shapes))
    parts = np.split(flat, np.cumsum([r * c for r, c in shapes])[:-1])
    scores = [torch.from_numpy(p.copy()).reshape(s).to(dtype) for p, s in zip(parts, shapes, strict=True)]
    for i, score in enumerate(scores):
        if rng.random() < 0.2 and score.numel() > 5:
            scores[i] = score.reshape(-1)[int(rng.integers(0, 5)) :]
    return scores


def draw_kept(rng: np.random.Generator, numel: int) -> int:
    """How many to keep: often an end of the range."""
    kept = rng.choice([0, 1, numel // 20, numel // 2, numel - 1, numel, rng.integers(0, numel + 1)])
    return int(min(max(kept, 0), numel))


def draw_case(rng: np.random.Generator, rows: int = 120) -> Case:
    """A selection."""
    scores = draw(rng, rows)
    kept = draw_kept(rng, sum(s.numel() for s in scores))
    return Case(scores, kept, rng.choice(["value", "magnitude"]), rng.choice(["error", "drop", "keep"]))


def sizes(scores: Sequence[Tensor]) -> tuple[list[int], list[int]]:
    """Rows and columns of each."""
    rows, cols = zip(*(layout(s.shape) for s in scores), strict=True)
    return list(rows), list(cols)


def code_of(module: ModuleType, scores: Sequence[Tensor]) -> int:
    """The module's code of the dtype."""
    return module.dtypes[str(scores[0].dtype).removeprefix("torch.")]


def select_cpu(module: ModuleType, case: Case, warm: Tensor | None = None, **options) -> tuple[list[np.ndarray], int]:
    """Masks and NaN count of ``_C.topk_mask``."""
    words = [new_words(s.shape) for s in case.scores]
    pointers = [s.data_ptr() for s in case.scores], [w.data_ptr() for w in words]
    options = {"warm": 0 if warm is None else warm.data_ptr(), **options}
    code = code_of(module, case.scores)
    nans = module.topk_mask(*pointers, *sizes(case.scores), case.kept, code, key=case.key, nan=case.nan, **options)
    return [unpack(w, s.shape) for w, s in zip(words, case.scores, strict=True)], nans


GUARD = 77


def select_cuda(
    module: ModuleType,
    case: Case,
    kept: Sequence[int] | None = None,
    warm: Tensor | None = None,
    device: str = "cpu",
    **options,
) -> tuple[list[np.ndarray], bool]:
    """Masks and flag of ``_C.cuda_topk_mask``: of the emulated module on "cpu", of the real one on a device.

    kept: one number for each tensor instead of one for all. A guard behind the workspace has to stay as it is.
    """
    scores = [s.to(device) for s in case.scores]
    words = [new_words(s.shape).to(device) for s in scores]
    rows, cols = sizes(scores)
    each, code = kept is not None, code_of(module, scores)
    size = module.cuda_topk_workspace(rows, cols, each, code)
    workspace = torch.full((size + 256,), GUARD, dtype=torch.uint8, device=device)
    invalid = torch.full((1,), 9, dtype=torch.uint8, device=device)
    start = 0 if warm is None else warm.data_ptr()
    stream = 0 if device == "cpu" else torch.cuda.current_stream().cuda_stream
    module.cuda_topk_mask(
        [s.data_ptr() for s in scores], [w.data_ptr() for w in words], rows, cols,
        list(kept) if kept is not None else [case.kept], each, code, case.key, case.nan,
        invalid.data_ptr(), start, workspace.data_ptr(), size, 0, stream, **options,
    )  # fmt: skip
    assert bool((workspace[size:] == GUARD).all()), "wrote behind the workspace"
    assert int(invalid) in (0, 1)
    return [unpack(w.cpu(), s.shape) for w, s in zip(words, scores, strict=True)], bool(invalid)


def assert_equal(got: Sequence[np.ndarray], want: Sequence[np.ndarray], about: object) -> None:
    """Bit by bit."""
    for i, (mask, truth) in enumerate(zip(got, want, strict=True)):
        assert (mask == truth).all(), f"tensor {i}: {(mask != truth).sum()} wrong bits in {about}"
