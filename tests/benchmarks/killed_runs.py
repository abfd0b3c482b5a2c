# SPDX-License-Identifier: Apache-2.0
"""Runs of a comparison with a checkpoint after each step, and commands that get signals, as a program for ``killing``."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from killing import Fuse, finish, forked, main
from torch import nn

from sparsekit.benchmarks import one_run, training
from sparsekit.benchmarks.engine import Workbench
from sparsekit.benchmarks.recipe import Recipe, RunConfig
from sparsekit.checkpoint import load_checkpoint
from sparsekit.cli import app
from sparsekit.state_tree import encode
from sparsekit.tensor_file import digest

METHODS = [
    "bip",
    "bip-1pass",
    "bip-finetune",
    "spode",
    "spode-bip",
    "imp",
    "imp-lth",
    "imp-finetune",
    "imp-budget",
    "omp",
    "oneshot",
    "snip",
    "grasp-pretrained",
    "synflow",
]
RECIPE = Recipe(
    network="killed_runs:network", limit=48, dense_epochs=2, epochs=2, batch_size=16, ode_steps=5, ode_batch=24
)
COMMANDS = ["bip-finetune", "imp"]


def network() -> nn.Module:
    """With norm and dropout, so that statistics and random numbers count."""
    torch.manual_seed(1)
    body = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2)]
    return nn.Sequential(*body, nn.Linear(288, 16), nn.ReLU(), nn.Linear(16, 10))


def phase(folder: Path) -> str:
    """Where the run in ``folder`` stands, by its checkpoint."""
    for file in folder.glob("dense/*.unfinished.safetensors"):
        return f"dense of {load_checkpoint(file, rng=False)['step']} steps"
    for file in folder.glob("unfinished/*.safetensors"):
        return {1: "pruning", 2: "fine-tuning"}[load_checkpoint(file, rng=False)["phase"]]
    return "nothing"


class Between(one_run.Silent):
    """Reaches the fuse between a step and the checkpoint after it."""

    def __init__(self, fuse: Fuse) -> None:
        self.fuse = fuse

    def dense(self, seed: int, steps: int) -> training.OnStep:
        return lambda: self.fuse.reach("between")

    run = dense  # pyright: ignore


def run(name: str, folder: Path, fuse: Fuse) -> None:
    """One life of a run."""
    with (folder / "phases").open("a") as log:
        log.write(phase(folder) + "\n")
    real = training.cross_entropy

    def loss(model: Any, batch: Any) -> torch.Tensor:
        fuse.reach("loss")
        return real(model, batch)

    training.LOSSES["fp32"] = loss
    fuse.lay()
    bench = Workbench(RECIPE, folder, every=0.0)
    bench._warm.add("dense")  # three more losses would only move the points
    config = RunConfig(name, 0.5, 0, RECIPE)
    model, row = one_run.run_model(config, bench, Between(fuse))
    training.LOSSES["fp32"] = real
    steps = row["cost"]["steps"] + row["dense"]["passes"]
    costs = {key: value for key, value in row["cost"].items() if "seconds" not in key and key != "selection_factor"}
    text, tensors = encode([model.state_dict(), torch.rand(2)])
    result = {"digest": digest(json.dumps(text), tensors), "result": row["result"], "costs": costs, "steps": steps}
    finish(folder, result)


def command(*arguments: str) -> None:
    """A command of sparsekit in a child whose exit code is the command's."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        app(list(arguments))
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)


def signalled(folder: Path, number: int, seconds: float, *arguments: str) -> int:
    """Exit code of a command that gets a signal some time after its first checkpoint; 0 minus the signal if killed."""

    def checkpoints() -> dict[Path, int]:
        # No deeper: what a killed writer has left there would count as new, and the signal come before the command.
        return {p: p.stat().st_mtime_ns for p in folder.glob("*/*.safetensors")}

    before = checkpoints()
    pid = os.fork()
    if pid == 0:
        command(*arguments)
    deadline = time.monotonic() + 30
    while before == checkpoints() and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(seconds)
    os.kill(pid, number)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def commands(method: str, folder: Path, rng: random.Random) -> dict[str, Any]:
    """prune, and the same run ended by SIGINT, SIGTERM and SIGKILL, with resume in between: exit codes, equal bytes."""
    options = [
        "--network",
        RECIPE.network,
        "--limit",
        "48",
        "--dense-epochs",
        "10",
        "--epochs",
        "10",
        "--batch-size",
        "16",
    ]
    options += ["--method", method, "--sparsity", "0.6", "--checkpoint-every", "0.01"]
    whole, cut = folder / f"{method}-whole", folder / f"{method}-cut"
    cut.mkdir()
    ends = [forked(lambda: command("prune", *options, "--out", str(whole)))]
    first = ("prune", *options, "--out", str(cut))
    again = ("resume", str(cut), "--checkpoint-every", "0.01")
    codes, phases = [signalled(cut, signal.SIGINT, 0.02 * rng.random(), *first)], [phase(cut)]
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT):
        codes.append(signalled(cut, number, 0.1 * rng.random(), *again))
        phases.append(phase(cut))
    ends.append(forked(lambda: command(*again)))
    ends.append(forked(lambda: command(*again)))  # says that it is finished
    same = [(whole / n).read_bytes() == (cut / n).read_bytes() for n in ("model.safetensors", "sparsity.json")]
    left = sorted(p.relative_to(cut).as_posix() for p in cut.rglob("*") if p.is_file() and p.parent.name != "dense")
    return {"codes": codes, "ends": ends, "same": same, "left": left, "phases": phases}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    main(place, METHODS, run, seed=int(sys.argv[2]))
    report = json.loads((place / "report.json").read_text())
    for name in METHODS:
        report[name]["phases"] = (place / name / "cut" / "phases").read_text().split("\n")[:-1]
    generator = random.Random(int(sys.argv[2]))
    report |= {f"command {name}": commands(name, place, generator) for name in COMMANDS}
    shutil.rmtree(place / "warm")
    (place / "report.json").write_text(json.dumps(report))
