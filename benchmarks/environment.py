# SPDX-License-Identifier: Apache-2.0
"""The stamp that every benchmark row carries: versions, machine, source."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Callable
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")

SOURCES = ("setup.py", "pyproject.toml", "csrc", "kernels", "sparsekit", "benchmarks", ":(exclude)benchmarks/results")
"""What a run depends on; rows that were just written do not make the source dirty."""

COMMAND_SECONDS = 10


def environment() -> dict[str, Any]:
    """Everything that a reader of a number needs to know about where it came from; JSON values only.

    Whatever cannot be found out is None: the function never fails.

    Returns:
        timestamp (UTC, ISO 8601); versions of sparsekit, torch, triton, python, numpy; platform; cpu with model, cores
        (that the process may use) and threads (torch's); gpu, None or with name, capability, memory in bytes, count,
        driver, cuda; git with commit and dirty of the source of this package.
    """
    return {
        "timestamp": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "sparsekit": _version("torch-sparsekit"),
        "torch": str(torch.__version__),
        "triton": _version("triton"),
        "python": platform.python_version(),
        "numpy": _version("numpy"),
        "platform": platform.platform(),
        "cpu": {"model": _attempt(_cpu_model), "cores": _attempt(_cores), "threads": torch.get_num_threads()},
        "gpu": _attempt(_gpu),
        "git": _source(),
    }


@cache
def _source() -> dict[str, Any]:
    """The source as it was when this process first asked: what is changed later is not what runs."""
    return {"commit": _attempt(_git_commit), "dirty": _attempt(_git_dirty)}


def _attempt(probe: Callable[[], T]) -> T | None:
    """The value of `probe`, or None: a stamp with a gap is worth more than a run that dies of its stamp."""
    try:
        return probe()
    except Exception:
        return None


def _version(package: str) -> str | None:
    return _attempt(lambda: importlib.metadata.version(package))


def _run(*command: str) -> str:
    """What the command prints; raises if it fails."""
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMMAND_SECONDS)
    return done.stdout.strip()


def _cpu_model() -> str | None:
    """Brand name of the processor."""
    table = Path("/proc/cpuinfo")
    if table.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", table.read_text(), re.MULTILINE)
        if found:
            return found.group(1)
    if platform.system() == "Darwin":
        return _run("sysctl", "-n", "machdep.cpu.brand_string")
    return platform.processor() or platform.machine() or None


def _cores() -> int | None:
    """Logical processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _gpu() -> dict[str, Any] | None:
    """The current GPU."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory": properties.total_memory,
        "count": torch.cuda.device_count(),
        "driver": _attempt(_driver),
        "cuda": torch.version.cuda,
    }


def _driver() -> str | None:
    """Version of the GPU driver."""
    table = Path("/proc/driver/nvidia/version")
    if table.is_file():
        found = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", table.read_text())
        if found:
            return found.group(1)
    return _run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()[0]


def _git(*arguments: str) -> str:
    return _run("git", "-C", str(Path(__file__).parent), *arguments)


def _git_commit() -> str:
    """Short commit of the source; raises where this file is not under version control.

    An installed copy can lie inside the repository of some other project, whose commit would mislead.
    """
    _git("ls-files", "--error-unmatch", Path(__file__).name)
    return _git("rev-parse", "--short", "HEAD")


def _git_dirty() -> bool:
    """True if the source differs from the commit."""
    _git_commit()
    top = _git("rev-parse", "--show-toplevel")
    return bool(_run("git", "-C", top, "status", "--porcelain", "--", *SOURCES))
