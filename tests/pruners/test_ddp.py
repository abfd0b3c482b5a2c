# SPDX-License-Identifier: Apache-2.0
"""Pruning on many processes: the masks of one process, faults on one rank raised on all, resuming, sharded weights."""

from __future__ import annotations

import pytest
from processes import check, run

# Names of the functions of each module of jobs.
JOBS = {
    "ddp_jobs": [
        "masks_of_one_process",
        "curvature",
        "ranks_agree",
        "losses_that_fail",
        "faults",
        "divergence",
        "resumed",
        "checkpoints",
        "stale_model",
        "recalibrated",
    ],
    "coupled_jobs": ["masks_of_one_process", "wrappers", "other_couplings"],
    "fsdp_jobs": ["masks_of_one_process", "finalized", "refused", "statistics"],
}
# On four ranks, which share few cores, only what another number than two may change.
ONLY_TWO = {"losses_that_fail", "faults", "checkpoints", "stale_model", "recalibrated", "statistics"}
CASES = [
    (w, m, job)
    for w in (2, 4)
    for m, jobs in JOBS.items()
    for job in jobs
    if w == 2 or not (job in ONLY_TWO or m == "coupled_jobs")
]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], dict[str, list[str]]]:
    found = {}
    for world, module in {(w, m): None for w, m, _ in CASES}:
        names = [job for w, m, job in CASES if (w, m) == (world, module)]
        found[world, module] = run(world, module, names, tmp_path_factory.mktemp(f"{module}{world}"))
    return found


@pytest.mark.parametrize(("world", "module", "job"), CASES)
def test_job(world: int, module: str, job: str, reports) -> None:
    check(reports[world, module][job])
