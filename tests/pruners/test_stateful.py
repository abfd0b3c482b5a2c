# SPDX-License-Identifier: Apache-2.0
"""Pruners are what torch.distributed.checkpoint calls stateful, in one process and in two."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import check, run
from stateful_jobs import NAMES, resumes
from test_protocol import MAKERS, build
from torch.distributed.checkpoint.stateful import Stateful


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_one_process(name: str, steps: int, tmp_path: Path) -> None:
    assert isinstance(MAKERS[name](build()), Stateful)
    resumes(name, steps, tmp_path)


def test_two_processes(tmp_path: Path) -> None:
    (reports,) = run(2, "stateful_jobs", ["all_resume"], tmp_path).values()
    check(reports)
