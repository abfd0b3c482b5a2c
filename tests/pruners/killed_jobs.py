# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed and go on, in children that a process forks once its slow imports are done.

Run as a program it takes a folder, does every job of JOBS there and writes ``report.json``: name -> what became of it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from test_protocol import MAKERS, Stream, build, seeded_outside
from torch import Tensor, nn

import sparsekit as sk
from sparsekit import tensor_file
from sparsekit.state_tree import encode
from sparsekit.tensor_file import digest

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


def run(name: str, folder: Path, fuse: Fuse) -> None:
    """One life of a run: from its checkpoint, if there is one, to its end, or until it is killed."""
    file = folder / "run.safetensors"

    def loss(model: nn.Module, batch: Any) -> Tensor:
        fuse.reach("loss")
        # Dropout draws from torch's generator; these make the run depend on the other two.
        noise = 1 + 0.1 * random.random() + 0.1 * float(np.random.standard_normal())
        return seeded_outside(model, (batch[0] * noise, batch[1]))

    model, mine = build(), nn.Parameter(torch.ones(3))
    pruner, optimizer = MAKERS[name](model, loss), torch.optim.Adam([mine], 0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    batches = Stream()
    torch.manual_seed(1), random.seed(2), np.random.seed(3)
    objects: dict[str, Any] = {"model": model, "pruner": pruner, "optimizer": optimizer, "scheduler": scheduler}
    if file.exists():
        torch.manual_seed(4), random.seed(5), np.random.seed(6)
        rest = sk.load_checkpoint(file, **objects)
        batches = Stream(rest["batch"])
        mine.data.copy_(rest["mine"])
    tensor_file.remove_partial(file)
    fuse.lay()
    while not pruner.done:
        pruner.step(batches)
        optimizer.zero_grad()
        (mine * torch.rand(3)).sum().backward()
        optimizer.step()
        scheduler.step()
        sk.save_checkpoint(file, **objects, batch=batches.drawn, mine=mine)
        fuse.reach("between")
    draws = torch.rand(1), random.random(), float(np.random.standard_normal())
    state = pruner.state_dict() | {"cost": pruner.cost.steps}
    text, tensors = encode([model.state_dict(), state, optimizer.state_dict(), scheduler.state_dict(), mine, draws])
    result = {"digest": digest(json.dumps(text), tensors), "masks": pruner.masks.hash(), "steps": pruner.cost.steps}
    finish(folder, result)


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


def survive(
    name: str, folder: Path, rng: random.Random, life: Callable[[str, Path, Fuse], None] = run
) -> dict[str, Any]:
    """A run that nobody disturbs, and one that is killed four times, at three points and at some moment."""
    whole, cut = folder / name / "whole", folder / name / "cut"
    whole.mkdir(parents=True), cut.mkdir()
    start = time.perf_counter()
    ends = [forked(lambda: life(name, whole, Fuse("", 0)))]
    seconds = time.perf_counter() - start
    expected = json.loads((whole / "result.json").read_text())
    for point in rng.sample(POINTS, 3):
        # Two syncs for each file; the loss may be asked for twice in a step. The last lives have little left to do.
        fuse = Fuse(point, rng.randint(1, max(1, expected["steps"] // 3)))
        ends.append(forked(lambda fuse=fuse: life(name, cut, fuse)))
    if not (cut / "result.json").exists():
        ends.append(forked(lambda: life(name, cut, Fuse("", 0)), seconds * rng.random()))
    if not (cut / "result.json").exists():
        ends.append(forked(lambda: life(name, cut, Fuse("", 0))))
    stray = [p.name for p in cut.rglob("*") if p.name.endswith(".partial")]
    found = json.loads((cut / "result.json").read_text())
    return {"ends": ends, "equal": found == expected, "stray": stray, "steps": expected["steps"]}


def main(folder: Path, names: list[str], life: Callable[[str, Path, Fuse], None], seed: int) -> None:
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


if __name__ == "__main__":
    main(Path(sys.argv[1]), list(MAKERS), run, seed=int(sys.argv[2]))
