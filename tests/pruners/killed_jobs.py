# SPDX-License-Identifier: Apache-2.0
"""A loop of one's own around every pruner, with a checkpoint after each step, as a program that ``killing`` runs."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from killing import Fuse, finish, main
from test_protocol import MAKERS, Stream, build, seeded_outside
from torch import Tensor, nn

import sparsekit as sk
from sparsekit.state_tree import encode
from sparsekit.tensor_file import digest, remove_partial


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
    remove_partial(file)
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


if __name__ == "__main__":
    main(Path(sys.argv[1]), list(MAKERS), run, seed=int(sys.argv[2]))
