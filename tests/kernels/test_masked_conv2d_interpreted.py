# SPDX-License-Identifier: Apache-2.0
"""masked_conv2d's kernels and what leads to them, in Triton's interpreter: one test for each job of the two job files."""

from __future__ import annotations

from pathlib import Path

import interpreter
import pytest

FILES = [Path(__file__).with_name(f"{name}_jobs.py") for name in ("masked_conv2d", "triton_conv")]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    if reason := interpreter.missing():
        pytest.skip(reason)
    found: dict[str, str] = {}
    for file in FILES:
        found |= interpreter.run(file, tmp_path_factory.mktemp("interpreter"))
    return found


@pytest.mark.parametrize("name", [name for file in FILES for name in interpreter.names_of(file)])
def test_job(name: str, reports: dict[str, str]) -> None:
    assert reports[name] == "passed", reports[name]
