# SPDX-License-Identifier: Apache-2.0
"""Many random selections, bit by bit against a stable sort: the CPU code on all its paths, the CUDA code on the emulator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from emulator import SMALL, emulated
from selections import assert_equal, draw_case, draw_kept, expected, select_cpu, select_cuda

from sparsekit import _C, ops

CPU_CASES, CUDA_CASES = 3500, 1200
SEEDS = range(6)


@pytest.mark.parametrize("seed", SEEDS)
def test_cpu(seed: int) -> None:
    """Three selections a round: plain, by radix, and warm after an earlier one over the same scores."""
    rng = np.random.default_rng(seed)
    for _ in range(CPU_CASES // 3):
        case = draw_case(rng)
        options = {"force": str(rng.choice(_C.cpu_features())), "threads": int(rng.integers(1, 4))}
        want, nans = expected(case.scores, case.kept, case.key, case.nan)
        warm = ops.warm_start(1)
        other = replace(case, kept=draw_kept(rng, sum(s.numel() for s in case.scores)))
        select_cpu(_C, other if rng.random() < 0.5 else case, warm)
        for extra in ({}, {"method": "radix"}, {"warm": warm}):
            got, found = select_cpu(_C, case, **options, **extra)
            assert_equal(got, want, (seed, case, extra))
            assert found == nans


@pytest.mark.parametrize("seed", SEEDS)
def test_cuda_on_the_emulator(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, and one selection in each tensor; any grid, any order of the threads."""
    module, rng = emulated(*SMALL), np.random.default_rng(100 + seed)
    for _ in range(CUDA_CASES // 4):
        monkeypatch.setenv("EMULATOR_SEED", str(rng.integers(1000)))
        monkeypatch.setenv("EMULATOR_PROCESSORS", str(rng.integers(1, 4)))
        case, blocks = draw_case(rng, 60), int(rng.integers(0, 4))
        want, nans = expected(case.scores, case.kept, case.key, case.nan)
        warm = ops.warm_start(1)
        other = replace(case, kept=draw_kept(rng, sum(s.numel() for s in case.scores)))
        select_cuda(module, other if rng.random() < 0.5 else case, warm=warm)
        for extra in ({}, {"method": "radix"}, {"warm": warm}):
            got, invalid = select_cuda(module, case, max_blocks=blocks, **extra)
            assert_equal(got, want, (seed, case, extra))
            assert invalid == (case.nan == "error" and nans > 0)
        kept = [draw_kept(rng, s.numel()) for s in case.scores]
        got, _ = select_cuda(module, case, kept, max_blocks=blocks)
        for mask, score, k in zip(got, case.scores, kept, strict=True):
            assert_equal([mask], expected([score], k, case.key, case.nan)[0], (seed, case, kept))


@pytest.mark.gpu
@pytest.mark.parametrize("seed", SEEDS)
def test_cuda_on_a_device(seed: int) -> None:
    rng = np.random.default_rng(200 + seed)
    for _ in range(CPU_CASES // 4):
        case = draw_case(rng, 2000)
        want, nans = expected(case.scores, case.kept, case.key, case.nan)
        warm = ops.warm_start(1, "cuda")
        select_cuda(_C, case, warm=warm, device="cuda")
        for extra in ({}, {"method": "radix"}, {"warm": warm}):
            got, invalid = select_cuda(_C, case, device="cuda", max_blocks=int(rng.integers(0, 200)), **extra)
            assert_equal(got, want, (seed, case.kept, case.key, case.nan, extra))
            assert invalid == (case.nan == "error" and nans > 0)
        kept = [draw_kept(rng, s.numel()) for s in case.scores]
        got, _ = select_cuda(_C, case, kept, device="cuda")
        for mask, score, k in zip(got, case.scores, kept, strict=True):
            assert_equal([mask], expected([score], k, case.key, case.nan)[0], (seed, kept))


def test_the_cases_are_many() -> None:
    assert len(SEEDS) * (CPU_CASES // 3 * 3 + CUDA_CASES // 4 * 4) >= 20_000
