# SPDX-License-Identifier: Apache-2.0
"""Every CUDA kernel of csrc/ once under compute-sanitizer: python tests/sanitize_cuda.py memcheck (or racecheck, synccheck).

Exit status: 0 if the tool found nothing, 1 if it found something, 0 with the line "refused: ..." if it does not start.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
FOUND = 99  # the exit status that the tool is asked for when it found something
DONE = "all kernels ran"


def run_kernels() -> None:
    """Selections of every kind and phase, and the packed-mask kernels, on small inputs."""
    import torch
    from selections import Case, assert_equal, contents, expected, select_cuda

    from sparsekit import _C, ops
    from sparsekit.ops import native_cuda

    rng = np.random.default_rng(0)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for kind in ("normal", "few", "zeros", "two", "close", "nan"):
            flat = torch.from_numpy(contents(rng, kind, 150_000)).to(dtype)
            scores = [flat[:90_000].reshape(90, 1000), flat[90_001:120_000], flat[120_000:].reshape(1000, 30)]
            case = Case(scores, 60_000, "magnitude", "drop")
            want = expected(scores, case.kept, case.key, case.nan)[0]
            for options in ({}, {"method": "radix"}, {"warm": ops.warm_start(1, "cuda")}):
                assert_equal(select_cuda(_C, case, device="cuda", **options)[0], want, (dtype, kind, options))
            select_cuda(_C, case, [100, 200, 300], device="cuda")
    for name, samples in native_cuda.samples(torch.device("cuda")).items():
        for arguments in samples:
            native_cuda.CUDA_IMPLEMENTATIONS[name](*arguments)
    torch.cuda.synchronize()
    print(DONE)


def main(tool: str) -> int:
    program = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")
    if program is None:
        print("refused: compute-sanitizer is not installed")
        return 0
    # Only our kernels: PyTorch's own are not what is to be checked, and take long.
    only_ours = ["--kernel-name", "kernel_substring=sparsekit"]
    command = [program, "--tool", tool, *only_ours, "--error-exitcode", str(FOUND), sys.executable, __file__, "run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE)
    print(done.stdout[-4000:], done.stderr[-4000:], sep="\n")
    if done.returncode == FOUND or (done.returncode != 0 and DONE in done.stdout):
        return 1
    if DONE not in done.stdout:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        print(f"refused: compute-sanitizer {tool} did not run the program: {lines[-1] if lines else 'no output'}")
        return int("wrong bits" in done.stdout + done.stderr)
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == ["run"]:
        run_kernels()
    else:
        sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "memcheck"))
