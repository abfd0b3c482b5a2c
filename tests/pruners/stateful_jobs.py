# SPDX-License-Identifier: Apache-2.0
"""Pruners in torch.distributed.checkpoint: jobs for the processes of a group, and for one alone."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from processes import everyone
from test_protocol import MAKERS, Stream, build

# Through what a run can be: no state yet, state of all, state that was captured, phases without an optimizer.
NAMES = ["bip", "bip-1pass", "spode-l1-gau", "imp-init-dense", "imp-early", "imp-budget", "omp", "oneshot-recalibrated"]
NAMES += ["bip-masks", "gmp", "dpf", "random", "hydra", "hydra-alone", "movement", "probmask"]
NAMES += ["woodfisher", "str", "str-climb", "powerprop-tail"]


def resumes(name: str, steps: int, folder: Path) -> None:
    """Save after some steps, load into fresh objects, and end like a run that was never saved."""
    model, batches = build(), Stream()
    pruner = MAKERS[name](model)
    for _ in range(steps):
        pruner.step(batches)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        dcp.save({"pruner": pruner, "model": model}, checkpoint_id=folder / f"{name}{steps}")
        other = build(seed=3)
        twin = MAKERS[name](other)
        dcp.load({"pruner": twin, "model": other}, checkpoint_id=folder / f"{name}{steps}")
    assert twin.masks == pruner.masks and twin.cost.steps == pruner.cost.steps
    rest = Stream(batches.drawn)
    while not pruner.done:
        pruner.step(batches)
        twin.step(rest)
    own, found = model.state_dict(), other.state_dict()
    different = [key for key in own if not torch.equal(own[key], found[key])]
    assert not different, (name, steps, different)


def all_resume(rank: int, world: int) -> None:
    shared = [tempfile.mkdtemp() if rank == 0 else ""]
    dist.broadcast_object_list(shared)
    for name in NAMES:
        for steps in (0, 1, 2):
            resumes(name, steps, Path(shared[0]))
    everyone("done")
    if rank == 0:
        shutil.rmtree(shared[0])
