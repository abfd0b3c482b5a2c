# SPDX-License-Identifier: Apache-2.0
"""The Python of docs/distributed.md, on every rank."""

from __future__ import annotations

import os
import tempfile

import torch
import torch.distributed as dist
from processes import everyone
from snippets import network, python, run_snippet
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import sparsekit as sk


class Blocks(nn.Module):
    """What the page calls a model with blocks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x).relu()
        return self.head(x)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def distributed_page(rank: int, world: int) -> None:
    """Every block runs, in order, and leaves the same exact masks on all ranks."""
    generator = torch.Generator().manual_seed(rank)
    loader = [(torch.randn(4, 8, generator=generator), torch.randint(4, (4,), generator=generator)) for _ in range(8)]
    here = os.getcwd()
    common = {"sk": sk, "torch": torch, "dist": dist, "loss": loss, "loader": loader}
    wrapped = {"network": network(), "DistributedDataParallel": DistributedDataParallel}
    sharded = {"model": Blocks(), "fully_shard": fully_shard, "mesh": init_device_mesh("cpu", (world,))}
    ddp, fsdp = python("distributed.md")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for text, names in ((ddp, wrapped), (fsdp, sharded)):
                found = run_snippet(text, common | names)
                pruner = found["pruner"]
                if not pruner.done:
                    pruner.fit(loader)
                assert len(set(everyone(pruner.masks.hash()))) == 1 and pruner.masks.sparsity > 0.9
            assert os.path.exists("pruned/model.safetensors") == (rank == 0)
        finally:
            os.chdir(here)
