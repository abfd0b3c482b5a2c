# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels and what leads to them, in Triton's interpreter: one test for each job of the job files."""

from __future__ import annotations

from pathlib import Path

import interpreter
import pytest

NAMES = ("masked_linear", "triton_linear", "masked_conv2d", "triton_conv")
FILES = [Path(__file__).with_name(f"{name}_jobs.py") for name in NAMES]


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
