# SPDX-License-Identifier: Apache-2.0
"""dist_topk_mask of scores on a GPU: one rank with NCCL, two ranks that share the GPU with gloo; nobody waits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cuda_jobs
import pytest
import torch
import torch.distributed as dist
from processes import check, run

from sparsekit import ops

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["nccl", "cpu:gloo,cuda:nccl"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    torch.cuda.set_device(0)
    dist.init_process_group(request.param, f"file://{tmp_path}/store", rank=0, world_size=1)
    yield request.param
    dist.destroy_process_group()


def test_one_rank(backend: str) -> None:
    cuda_jobs.lists(0, 1)


def test_nobody_waits_where_the_cpu_has_a_backend(backend: str) -> None:
    scores = [torch.randn(300, 400, device="cuda"), torch.randn(5000, device="cuda")]
    expected = ops.topk_mask(scores, 777).masks
    ops.dist_topk_mask(scores, 777)  # opens the connections
    torch.cuda.set_sync_debug_mode("error" if backend != "nccl" else "default")
    try:
        masks, _ = ops.dist_topk_mask(scores, 777)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(masks, expected, strict=True))


def test_two_ranks_share_a_device(tmp_path: Path) -> None:
    jobs = ["lists", "another_device"]
    for report in run(2, "cuda_jobs", jobs, tmp_path).values():
        check(report)
