# SPDX-License-Identifier: Apache-2.0
"""No kernel of csrc misses a barrier: ThreadSanitizer watches every access of every CUDA thread on the emulator."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from emulator import ROOT
from emulator.races import RACE, race_checker, run

pytestmark = pytest.mark.slow
# How a value goes from one thread to others, and whether that is a race.
PROBES = {
    "barrier": False,
    "nothing": True,
    "exchange": True,  # a shuffle orders no memory
    "warp": False,
    "across_warps": True,
    "later": True,  # barriers before and behind, which a slow thread must not take for each other
    "grid": False,
    "blocks": True,  # that one block ran before another is chance
    "atomics": False,
    "mixed": True,  # an atomic and a plain access
    "volatile": False,
}
# File, function, number of a barrier in it: some that the kernels cannot do without.
NEEDED = [
    ("device.cuh", "block_exclusive_sum", 1),
    ("topk_candidates.cuh", "boundary_ties", 1),
    ("topk_decide.cuh", "order_gathered", 0),
    ("topk_mask.cu", "topk_kernel", 1),
    ("topk_passes.cuh", "scan_tile", 1),
    ("topk_rows.cu", "row_threshold", 0),
]


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return race_checker(tmp_path_factory.mktemp("probe"))


def assert_clean(done: subprocess.CompletedProcess[str]) -> None:
    report = [line for line in done.stderr.splitlines() if "std::" not in line]
    assert done.returncode == 0, "\n".join(report[:60])


def assert_race(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == RACE, done.stderr
    assert "ThreadSanitizer: data race" in done.stderr


def place_of(file: str, function: str, number: int) -> str:
    """name:line of a barrier."""
    lines = (ROOT / "csrc" / file).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if re.match(rf"\S.*\b{function}\(", line))
    barriers = [i for i, line in enumerate(lines) if i > start and re.search(r"\b(__syncthreads|grid\.sync)\(\)", line)]
    return f"{file}:{barriers[number] + 1}"


@pytest.mark.parametrize("probe", PROBES)
def test_what_is_a_race(probe: str, checker: Path) -> None:
    done = run(checker, "probe", probe)
    if PROBES[probe]:
        assert_race(done)
    else:
        assert_clean(done)


def test_selections_have_none(checker: Path) -> None:
    """Masks agree with a stable sort, and every phase of a selection occurs."""
    assert_clean(run(checker, "select", "0", "60"))


def test_masks_have_none(checker: Path) -> None:
    assert_clean(run(checker, "masks", "0", "12"))


def test_structured_masks_have_none(checker: Path) -> None:
    assert_clean(run(checker, "structured", "0", "24"))


@pytest.mark.parametrize("function, number", [("add_stretch", 0), ("add_stretch", 1), ("narrow_kernel", 0)])
def test_a_missing_barrier_of_unit_scores_is_found(function: str, number: int, checker: Path) -> None:
    place = place_of("group_scores.cu", function, number)
    assert_race(run(checker, "structured", "0", "24", EMULATOR_UNORDERED=place))


@pytest.mark.parametrize("barrier", NEEDED, ids=lambda b: f"{b[1]}-{b[2]}")
def test_a_missing_barrier_is_found(barrier: tuple[str, str, int], checker: Path) -> None:
    assert_race(run(checker, "select", "0", "60", EMULATOR_UNORDERED=place_of(*barrier)))
