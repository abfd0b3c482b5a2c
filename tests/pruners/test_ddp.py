# SPDX-License-Identifier: Apache-2.0
"""Pruning on many processes: the masks of one process, faults on one rank raised on all, resuming, sharded weights."""

from __future__ import annotations

import pytest
from processes import check, run

# Names of the functions of ddp_jobs.py.
JOBS = ["masks_of_one_process", "ranks_agree"]
WORLDS = [2, 4]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, list[str]]]:
    return {w: run(w, "ddp_jobs", JOBS, tmp_path_factory.mktemp(f"ranks{w}")) for w in WORLDS}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("job", JOBS)
def test_job(job: str, world: int, reports) -> None:
    check(reports[world][job])
