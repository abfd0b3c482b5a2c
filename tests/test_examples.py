# SPDX-License-Identifier: Apache-2.0
"""The scripts in docs/examples run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def test_train_ddp(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--epochs", "3", "--steps", "20", "--sparsity", "0.8", "--out", str(tmp_path / "pruned")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launch, str(EXAMPLES / "train_ddp.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes, test accuracy" in done.stdout and "sparsity 0.8000" in done.stdout
    assert {path.name for path in (tmp_path / "pruned").iterdir()} == {"model.safetensors", "sparsity.json"}


@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
def test_the_slurm_script_starts_the_example(tmp_path: Path) -> None:
    # Many hosts, so that their writer would notice a reader that leaves after the first.
    for name, text in {"scontrol": "seq -f node%g 100000", "srun": 'printf "%s\\n" "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[1-100000]"}
    environment = {**os.environ, **job, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(EXAMPLES / "train_ddp.slurm")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    option, program, *rest = done.stdout.splitlines()
    assert (option, program) == ("--kill-on-bad-exit=1", "torchrun")
    launch = get_args_parser().parse_args(rest)
    assert (launch.nnodes, launch.nproc_per_node, launch.rdzv_endpoint) == ("2", "4", "node1:29500")
    assert EXAMPLES.parents[1] / launch.training_script == EXAMPLES / "train_ddp.py"
    known = (EXAMPLES / "train_ddp.py").read_text()
    assert all(f'"{word}"' in known for word in launch.training_script_args if word.startswith("--"))
