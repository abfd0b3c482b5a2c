# SPDX-License-Identifier: Apache-2.0
"""Projections over the processes of a group and of DTensors: the masks of one process, errors on all ranks alike."""

from __future__ import annotations

import pytest
from processes import check, run

from sparsekit.projection import Projection

# Names of the functions of projection_jobs.py.
JOBS = ["layers", "dtensors", "tiles", "faults", "identity"]
WORLDS = [1, 3]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, list[str]]]:
    return {w: run(w, "projection_jobs", JOBS, tmp_path_factory.mktemp(f"ranks{w}")) for w in WORLDS}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("job", JOBS)
def test_job(job: str, world: int, reports) -> None:
    check(reports[world][job])


def test_a_group_needs_torch_distributed() -> None:
    with pytest.raises(ValueError, match="Projection: group: expected an initialised torch.distributed, got none"):
        Projection(group=object())  # type: ignore[arg-type]
