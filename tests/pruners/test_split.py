# SPDX-License-Identifier: Apache-2.0
"""Pruners of processes that hold different layers of one network: the masks of one process that holds them all."""

from __future__ import annotations

import pytest
from processes import check, run

# Names of the functions of split_jobs.py.
JOBS = ["masks", "resume", "faults"]
WORLDS = [2, 3]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, list[str]]]:
    return {w: run(w, "split_jobs", JOBS, tmp_path_factory.mktemp(f"ranks{w}")) for w in WORLDS}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("job", JOBS)
def test_job(job: str, world: int, reports) -> None:
    check(reports[world][job])
