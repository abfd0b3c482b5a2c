# SPDX-License-Identifier: Apache-2.0
"""The callbacks' pruners on several processes: refused, equal, or named where they part; and a process that dies."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import check, run

JOBS = ["pruners_that_train", "gradual"]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return run(2, "driver_jobs", JOBS, tmp_path_factory.mktemp("drivers"))


@pytest.mark.parametrize("job", JOBS)
def test_job(job: str, reports: dict[str, list[str]]) -> None:
    check(reports[job])


def test_a_killed_process_ends_the_others(tmp_path: Path) -> None:
    *survivors, dead = run(3, "driver_jobs", ["killed"], tmp_path)["killed"]
    check(survivors)
    assert dead.startswith("did not finish")
