# SPDX-License-Identifier: Apache-2.0
"""Runs jobs in Triton's interpreter, in a process of their own: the choice has to stand before Triton is imported."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

LIMIT = 300  # seconds for all jobs of one process


def missing() -> str:
    """Why the interpreter cannot be used here; empty if it can."""
    try:
        import numpy
        import triton
    except ModuleNotFoundError as error:
        return str(error)
    versions = [tuple(int(part) for part in module.__version__.split(".")[:2]) for module in (triton, numpy)]
    # Such a numpy no longer turns arrays of one element into loop bounds, and such a Triton relies on it.
    return "triton < 3.8 cannot interpret with numpy >= 2.4" if versions[0] < (3, 8) and versions[1] >= (2, 4) else ""


def _compute_in_bfloat16() -> None:
    """Has the interpreter multiply and round bf16 numbers as a GPU does.

    It keeps them as integers, which its dot multiplies as such, and cuts fp32 numbers off instead of rounding them.
    """
    import numpy as np
    import torch
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def widened(handle: TensorHandle) -> TensorHandle:
        if handle.dtype.scalar.name != "bf16":
            return handle
        return TensorHandle((handle.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32), tl.float32)

    def rounding_cast(self, source, kind):
        if (source.dtype.scalar.name, kind.scalar.name) != ("fp32", "bf16"):
            return cast(self, source, kind)
        rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16().view(torch.int16).numpy()
        return TensorHandle(rounded.view(np.uint16), kind.scalar)

    InterpreterBuilder.create_dot = lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest)
    InterpreterBuilder.cast_impl = rounding_cast


def names_of(file: Path) -> list[str]:
    """Names of the jobs in a file, without importing it."""
    return [line[4:].split("(")[0] for line in file.read_text().splitlines() if line.startswith("def job_")]


def run(file: Path, folder: Path) -> dict[str, str]:
    """Runs every function ``job_...()`` of ``file`` in one process: name -> "passed" or what it raised."""
    report = folder / "report.json"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    folders = [str(file.parent), str(file.parents[1])]
    environment["PYTHONPATH"] = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(Path(__file__)), file.stem, str(report)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    results = json.loads(report.read_text()) if report.exists() else {}
    return {name: results.get(name, f"did not finish: {done.stderr[-4000:]}") for name in names_of(file)}


def _work(module: str, report: str) -> None:
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns, and so shows memory that nobody wrote
    _compute_in_bfloat16()
    jobs, results = importlib.import_module(module), {}
    for name in names_of(Path(str(jobs.__file__))):
        torch.manual_seed(0)
        try:
            getattr(jobs, name)()
            results[name] = "passed"
        except Exception:
            results[name] = traceback.format_exc()
        Path(report).write_text(json.dumps(results))


if __name__ == "__main__":
    _work(*sys.argv[1:])
