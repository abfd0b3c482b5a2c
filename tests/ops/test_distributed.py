# SPDX-License-Identifier: Apache-2.0
"""dist_topk_mask in real processes: bitwise the masks of one process, errors on all ranks alike, few collectives."""

from __future__ import annotations

import pytest
import torch
from processes import check, run

from sparsekit import ops

# Names of the functions of distributed_jobs.py. Four ranks do again what their number may matter for.
COMMON = ["lists", "one_nan", "dtensors", "large", "disagreement", "one_fault", "groups"]
JOBS = [*COMMON, "readable", "strides", "refused", "counts", "traffic", "mixed_calls"]
WORLDS = {1: JOBS, 2: JOBS, 3: JOBS, 4: COMMON}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, list[str]]]:
    return {w: run(w, "distributed_jobs", jobs, tmp_path_factory.mktemp(f"ranks{w}")) for w, jobs in WORLDS.items()}


@pytest.mark.parametrize(("world", "job"), [(world, job) for world, jobs in WORLDS.items() for job in jobs])
def test_job(job: str, world: int, reports) -> None:
    check(reports[world][job])


def test_every_job_is_listed() -> None:
    import distributed_jobs

    public = vars(distributed_jobs).items()
    own = [n for n, f in public if getattr(f, "__module__", "") == "distributed_jobs" and "rank" in _arguments(f)]
    assert sorted(own) == sorted(JOBS)


def _arguments(value: object) -> tuple[str, ...]:
    code = getattr(value, "__code__", None)
    return code.co_varnames[: code.co_argcount] if code else ()


def test_without_torch_distributed_the_remedy_is_named() -> None:
    text = (
        "dist_topk_mask: group: expected an initialised torch.distributed, got none; start the processes with torchrun"
    )
    with pytest.raises(ValueError, match=text):
        ops.dist_topk_mask([torch.ones(2, 2)], 1)
