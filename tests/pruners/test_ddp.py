# SPDX-License-Identifier: Apache-2.0
"""Pruning on many processes: the masks of one process, faults on one rank raised on all, resuming, sharded weights."""

from __future__ import annotations

import pytest
from processes import check, run

# Names of the functions of each module of jobs.
JOBS = {
    "ddp_jobs": [
        "masks_of_one_process",
        "ranks_agree",
        "losses_that_fail",
        "faults",
        "divergence",
        "resumed",
        "stale_model",
        "recalibrated",
    ],
    "fsdp_jobs": ["masks_of_one_process", "finalized", "refused"],
}
WORLDS = [2, 4]
NAMES = [(module, job) for module, jobs in JOBS.items() for job in jobs]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], dict[str, list[str]]]:
    kinds = [(world, module) for world in WORLDS for module in JOBS]
    return {(w, m): run(w, m, JOBS[m], tmp_path_factory.mktemp(f"{m}{w}")) for w, m in kinds}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("module", "job"), NAMES)
def test_job(module: str, job: str, world: int, reports) -> None:
    check(reports[world, module][job])
