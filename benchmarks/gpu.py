# SPDX-License-Identifier: Apache-2.0
"""What is worth doing on a GPU, in order, inside a time budget: GPU tests first, then benchmark rows.

    python -m sparsekit.benchmarks.gpu --budget 480

A job that passed on this device with this source is not run again; the rest waits for the next call. Jobs are every
test file with tests marked ``gpu``, the kernels under compute-sanitizer, and every program ``benchmarks/bench_*.py`` that
serves CUDA, which is run as ``python -m sparsekit.benchmarks.bench_<name> --device cuda`` and appends its rows itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
STATE = ROOT / ".benchmarks" / "gpu.json"
SOURCES = ("setup.py", "pyproject.toml", "csrc", "kernels", "sparsekit", "benchmarks")
SUFFIXES = {".py", ".toml", ".cu", ".cuh", ".cpp", ".h", ".inl"}

# A job is not started with less than this many seconds left.
SHORTEST = 5.0
# pytest's exit status when a file has no test for the chosen marker.
NO_TESTS = 5

State = dict[str, dict[str, Any]]
Runner = Callable[[Sequence[str], float], "int | None"]


@dataclass(frozen=True)
class Job:
    """One command and what its result depends on.

    Args:
        name: the file it is about, relative to the repository.
        command: program and arguments.
        source: hash of the files that the result depends on.
    """

    name: str
    command: tuple[str, ...]
    source: str


def source_hash(root: Path, places: Iterable[str]) -> str:
    """Hash of the names and contents of all source files under `places`."""
    digest = hashlib.sha256()
    for place in places:
        path = root / place
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.suffix in SUFFIXES and file.is_file():
                digest.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def find_jobs(root: Path) -> list[Job]:
    """All jobs, most important first."""
    tested, timed = source_hash(root, (*SOURCES, "tests")), source_hash(root, SOURCES)
    jobs = []
    for file in sorted((root / "tests").rglob("test_*.py")):
        if "mark.gpu" in file.read_text(encoding="utf-8"):
            name = file.relative_to(root).as_posix()
            jobs.append(Job(name, (sys.executable, "-m", "pytest", "-q", "-m", "gpu", name), tested))
    checker = root / "tests" / "sanitize_cuda.py"
    for tool in ("memcheck", "racecheck") if checker.is_file() else ():
        jobs.append(Job(f"compute-sanitizer {tool}", (sys.executable, str(checker), tool), tested))
    for file in sorted((root / "benchmarks").glob("bench_*.py")):
        text = file.read_text(encoding="utf-8")
        if "__main__" not in text or "cuda" not in text:
            continue
        command = (sys.executable, "-m", f"sparsekit.benchmarks.{file.stem}", "--device", "cuda")
        jobs.append(Job(file.relative_to(root).as_posix(), command, timed))
    return jobs


def run(command: Sequence[str], seconds: float) -> int | None:
    """Exit status of the command, or None if it was stopped, with everything it started, after `seconds`."""
    with subprocess.Popen(command, cwd=ROOT, preexec_fn=os.setpgrp) as process:
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def read_state(path: Path) -> State:
    """Job name -> its last result; empty when there is none or it cannot be read."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(path: Path, state: State) -> None:
    """Replaces the file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(state, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(fresh, path)


def is_valid(job: Job, device: str, state: State) -> bool:
    """Has the job passed on this device with this source?"""
    last = state.get(job.name, {})
    return last.get("source") == job.source and last.get("device") == device and last.get("outcome") == "passed"


def work(jobs: Sequence[Job], device: str, state_path: Path, budget: float, runner: Runner = run) -> dict[str, str]:
    """Runs what is not valid, in order, until the budget is used up.

    Jobs that failed or were stopped with this source come after those that were not tried; a job that lasted longer
    than what is left is passed over for a shorter one.

    Args:
        device: what a result holds for besides the source.
        budget: seconds for everything.

    Returns:
        job name -> "valid" (from an earlier call), "passed", "failed", "stopped" (out of time) or "left".
    """
    deadline = time.monotonic() + budget
    state = read_state(state_path)
    outcomes = {job.name: "valid" if is_valid(job, device, state) else "left" for job in jobs}
    waiting = [job for job in jobs if outcomes[job.name] == "left"]
    waiting.sort(key=lambda job: state.get(job.name, {}).get("source") == job.source)
    for job in waiting:
        left = deadline - time.monotonic()
        expected = state.get(job.name, {}).get("seconds", 0.0)
        if left < max(SHORTEST, expected):
            continue
        print(f"== {job.name} ({left:.0f} s left)", flush=True)
        start = time.monotonic()
        status = runner(job.command, left)
        outcome = "stopped" if status is None else "passed" if status in (0, NO_TESTS) else "failed"
        seconds = time.monotonic() - start
        state[job.name] = {"source": job.source, "device": device, "outcome": outcome, "seconds": round(seconds, 1)}
        write_state(state_path, state)
        outcomes[job.name] = outcome
    return outcomes


def summary(outcomes: dict[str, str]) -> str:
    """What was done, what failed and what is left, for people."""
    lines = []
    for outcome in ("valid", "passed", "failed", "stopped", "left"):
        names = [name for name, found in outcomes.items() if found == outcome]
        if names:
            lines.append(f"{outcome:8}{len(names):3}  {', '.join(names)}")
    unfinished = sum(outcome in ("stopped", "left") for outcome in outcomes.values())
    lines.append(
        "nothing left" if not unfinished else f"{unfinished} left: call again, with a larger budget if it stops"
    )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Works through the queue; exit status 1 if a job failed."""
    parser = argparse.ArgumentParser(prog="python -m sparsekit.benchmarks.gpu", description=__doc__)
    parser.add_argument("--budget", type=float, default=480.0, help="seconds for everything (default 480)")
    budget = parser.parse_args(arguments).budget
    if not torch.cuda.is_available():
        print("gpu: no CUDA device found by torch: nothing was run")
        return 0
    if not (ROOT / "tests").is_dir():
        print("gpu: run it from a checkout installed with pip install -e: an installed copy has no tests")
        return 1
    device = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    outcomes = work(find_jobs(ROOT), device, STATE, budget)
    print(summary(outcomes))
    return int("failed" in outcomes.values())


if __name__ == "__main__":
    sys.exit(main())
