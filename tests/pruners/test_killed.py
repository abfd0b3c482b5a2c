# SPDX-License-Identifier: Apache-2.0
"""Runs of every pruner, killed at random points (SIGKILL), go on bit by bit: weights, masks, optimizers, random numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_protocol import MAKERS

SEED = 7
PROGRAM = Path(__file__).with_name("killed_jobs.py")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("killed")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, (PROGRAM.parent, PROGRAM.parents[1])))}
    command = [sys.executable, str(PROGRAM), str(folder), str(SEED)]
    subprocess.run(command, env=environment, timeout=300, check=True)
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("name", MAKERS)
def test_a_killed_run_goes_on_bit_by_bit(name: str, report: dict[str, Any]) -> None:
    found = report[name]
    assert found["equal"] and "killed" in found["ends"] and set(found["ends"]) == {"done", "killed"}, found
    assert found["stray"] == []


def test_there_were_enough_kills(report: dict[str, Any]) -> None:
    assert sum(found["ends"].count("killed") for found in report.values()) >= 60
