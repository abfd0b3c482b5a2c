# SPDX-License-Identifier: Apache-2.0
"""The scripts in docs/examples run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
def test_the_slurm_script_is_valid_shell_and_starts_the_example() -> None:
    script = EXAMPLES / "train_ddp.slurm"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    assert "docs/examples/train_ddp.py" in script.read_text()
