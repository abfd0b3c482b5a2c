# SPDX-License-Identifier: Apache-2.0
"""Runs of a comparison and of the commands that are killed or get a signal, in every phase, end as if nothing had been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")

from killed_runs import METHODS  # noqa: E402

COMMANDS = ["bip-finetune", "imp"]
SEED = 1
PROGRAM = Path(__file__).with_name("killed_runs.py")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("killed")
    paths = os.pathsep.join(map(str, (PROGRAM.parent, PROGRAM.parents[1])))
    command = [sys.executable, str(PROGRAM), str(folder), str(SEED)]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}, timeout=400, check=True)
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_ends_like_any_other(name: str, report: dict[str, Any]) -> None:
    found = report[name]
    assert found["equal"] and "killed" in found["ends"] and set(found["ends"]) == {"done", "killed"}, found
    assert found["stray"] == []


def test_kills_came_in_every_phase(report: dict[str, Any]) -> None:
    phases = [phase for name in METHODS for phase in report[name]["phases"]]
    assert {phase.split(" ")[0] for phase in phases} == {"nothing", "dense", "pruning", "fine-tuning"}
    assert sum(report[name]["ends"].count("killed") for name in METHODS) >= 25


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_that_get_signals(name: str, report: dict[str, Any]) -> None:
    found = report[f"command {name}"]
    assert found["codes"] == [130, 143, -9, 130] and set(found["ends"]) == {"done"}, found
    assert found["same"] == [True, True] and found["left"] == ["model.safetensors", "run.json", "sparsity.json"]
