# SPDX-License-Identifier: Apache-2.0
"""The kernels of masked_linear in Triton's interpreter: the jobs of masked_linear_jobs.py, one test each."""

from __future__ import annotations

from pathlib import Path

import interpreter
import pytest

JOBS = Path(__file__).with_name("masked_linear_jobs.py")


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    if reason := interpreter.missing():
        pytest.skip(reason)
    return interpreter.run(JOBS, tmp_path_factory.mktemp("interpreter"))


@pytest.mark.parametrize("name", interpreter.names_of(JOBS))
def test_job(name: str, reports: dict[str, str]) -> None:
    assert reports[name] == "passed", reports[name]
