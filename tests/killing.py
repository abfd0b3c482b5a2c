# SPDX-License-Identifier: Apache-2.0
"""Killing runs: fuses that end a process at a chosen point, children forked once the slow imports are done, reports."""

from __future__ import annotations

import json
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sparsekit import tensor_file

# Where a child ends itself: within a step, with half of the file written, before and after the rename, between steps.
POINTS = ("loss", "write", "fsync", "replace", "renamed", "between")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Fuse:
    """Kills this process the ``count``-th time that ``point`` is reached."""

    def __init__(self, point: str, count: int) -> None:
        self.point, self.count = point, count

    def reach(self, point: str) -> None:
        if point == self.point:
            self.count -= 1
            if self.count <= 0:
                die()

    def lay(self) -> None:
        """Put the points of a write into the functions that do it."""
        save, sync, replace = tensor_file.save_file, os.fsync, os.replace

        def half(tensors: Any, target: str, metadata: Any) -> None:
            save(tensors, target, metadata=metadata)
            if self.point == "write" and self.count == 1:
                os.truncate(target, os.path.getsize(target) // 2)
            self.reach("write")

        def synced(handle: int) -> None:
            self.reach("fsync")
            sync(handle)

        def replaced(source: Any, target: Any) -> None:
            self.reach("replace")
            replace(source, target)
            self.reach("renamed")

        tensor_file.save_file, os.fsync, os.replace = half, synced, replaced  # pyright: ignore


Life = Callable[[str, Path, Fuse], None]


def finish(folder: Path, result: Any) -> None:
    """The result appears as a whole, however the process ends."""
    (folder / "result").write_text(json.dumps(result))
    os.rename(folder / "result", folder / "result.json")


def forked(work: Callable[[], None], seconds: float | None = None) -> str:
    """Do ``work`` in a child and say how it ended: "done", "killed" or an error; after ``seconds`` it is killed."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return "killed"
    return "done" if status == 0 else f"error {status}"


def survive(name: str, folder: Path, rng: random.Random, life: Life) -> dict[str, Any]:
    """A run that nobody disturbs, and one that is killed four times, at three points and at some moment."""
    whole, cut = folder / name / "whole", folder / name / "cut"
    whole.mkdir(parents=True), cut.mkdir()
    start = time.perf_counter()
    ends = [forked(lambda: life(name, whole, Fuse("", 0)))]
    seconds = time.perf_counter() - start
    expected = json.loads((whole / "result.json").read_text())
    steps, late = expected["steps"], rng.random() < 0.5
    for i, point in enumerate(rng.sample(POINTS, 3)):
        # A late end at first or never: the lives after it have little left to do.
        count = rng.randint(2 * steps // 3, steps - 1) if late and not i else rng.randint(1, max(1, steps // 4))
        fuse = Fuse(point, count)
        ends.append(forked(lambda fuse=fuse: life(name, cut, fuse)))
    if not (cut / "result.json").exists():
        ends.append(forked(lambda: life(name, cut, Fuse("", 0)), seconds * rng.random()))
    if not (cut / "result.json").exists():
        ends.append(forked(lambda: life(name, cut, Fuse("", 0))))
    stray = [p.name for p in cut.rglob("*") if p.name.endswith(".partial")]
    found = json.loads((cut / "result.json").read_text())
    return {"ends": ends, "equal": found == expected, "stray": stray, "steps": expected["steps"]}


def main(folder: Path, names: list[str], life: Life, seed: int) -> None:
    """Write ``report.json``."""
    torch.set_num_threads(1)
    (folder / "warm").mkdir()
    life(names[0], folder / "warm", Fuse("", 0))  # what torch imports late is then imported once
    rng, report = random.Random(seed), {}
    for name in names:
        try:
            report[name] = survive(name, folder, rng, life)
        except Exception:
            report[name] = {"ends": [], "equal": False, "stray": [], "error": traceback.format_exc()}
    (folder / "report.json").write_text(json.dumps(report))
