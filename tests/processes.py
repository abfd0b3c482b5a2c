# SPDX-License-Identifier: Apache-2.0
"""Jobs in real processes that form a gloo group: many jobs for one start, a limit on time, one report for each rank."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

# Seconds that a collective may take, and all jobs of one start.
COLLECTIVE, LIMIT = 20, 180
Job = Callable[[int, int], None]


def raised(call: Callable[[], object]) -> tuple[str, str]:
    """(type, text) of the error that ``call`` raises, or a note that it raised none."""
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", "nothing was raised"


def everyone(value: object) -> list:
    """The value of every rank."""
    rows: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(rows, value)
    return rows


def all_raise(call: Callable[[], object], kind: str, *texts: str) -> None:
    """Every rank raises the same error, which contains ``texts``, and the group is still in step after it."""
    errors = everyone(raised(call))
    assert errors == [errors[0]] * len(errors), errors
    assert errors[0][0] == kind and all(text in errors[0][1] for text in texts), errors[0]


def _work(rank: int, world: int, folder: str, module: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns, and so shows memory that nobody wrote
    start = f"file://{folder}/store"
    dist.init_process_group("gloo", start, timedelta(seconds=COLLECTIVE), rank=rank, world_size=world)
    jobs, report = importlib.import_module(module), {}
    for name in names:
        try:
            getattr(jobs, name)(rank, world)
            report[name] = "passed"
        except Exception:
            report[name] = traceback.format_exc()
        Path(folder, f"{rank}.json").write_text(json.dumps(report))
        if report[name] != "passed":
            break  # the ranks may be out of step, and then what follows would only wait
    dist.destroy_process_group()


def run(world: int, module: str, names: list[str], folder: Path) -> dict[str, list[str]]:
    """Runs ``module.name(rank, world)`` for all names, in order, in ``world`` processes: name -> what each rank reports."""
    # A server that has done the slow imports once forks the processes.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sparsekit", "torch.distributed.tensor", "numpy"])
    arguments = [(rank, world, str(folder), module, names) for rank in range(world)]
    processes = [context.Process(target=_work, args=a, daemon=True) for a in arguments]
    for process in processes:
        process.start()
    deadline = time.monotonic() + LIMIT
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
    files = [folder / f"{rank}.json" for rank in range(world)]
    reports = [json.loads(file.read_text()) if file.exists() else {} for file in files]
    return {
        name: [report.get(name, "did not finish, or came after a job that failed") for report in reports]
        for name in names
    }


def check(reports: list[str]) -> None:
    """Fail with what the ranks report of one job, unless all have passed it."""
    failures = [f"rank {rank}: {text}" for rank, text in enumerate(reports) if text != "passed"]
    assert not failures, "\n".join(failures)
