# SPDX-License-Identifier: Apache-2.0
"""Prune while Accelerate trains: python docs/examples/train_accelerate.py, or accelerate launch on several processes.

The loop is the usual one with three lines more: sparsify before ``prepare``, one ``pruner.step()`` per training step, and
the pruner registered for checkpoints. The masks are buffers, so Accelerate's own checkpoints hold them. Weights are the
same on all processes of data-parallel training, hence so are the masks, which are chosen from the weights alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import sparsekit as sk
from sparsekit.loggers import JSONLLogger


def data(batch_size: int) -> DataLoader:
    """Points in sixteen dimensions and which of four random directions each is closest to."""
    generator = torch.Generator().manual_seed(0)
    x, directions = torch.randn(512, 16, generator=generator), torch.randn(16, 4, generator=generator)
    return DataLoader(TensorDataset(x, (x @ directions).argmax(1)), batch_size, shuffle=True)


def train(steps: int, sparsity: float, out: Path, resume: bool = False) -> nn.Module:
    """Train and prune for ``steps`` steps, writing checkpoint, log and the finished model to ``out``."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    accelerator.print(sk.sparsify(model))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model, optimizer, loader = accelerator.prepare(model, optimizer, data(64))

    pruner = sk.Gradual(accelerator.unwrap_model(model), sparsity, steps=steps // 2, every=4)
    accelerator.register_for_checkpointing(pruner)
    logger = JSONLLogger(out / "log.jsonl")
    if resume:
        accelerator.load_state(str(out / "checkpoint"))

    batches = iter(loader)
    for step in range(steps):
        if not pruner.done:
            logger.log(step, pruner.step())
        if (batch := next(batches, None)) is None:
            batches = iter(loader)
            batch = next(batches)
        optimizer.zero_grad()
        accelerator.backward(F.cross_entropy(model(batch[0]), batch[1]))
        optimizer.step()

    accelerator.save_state(str(out / "checkpoint"))
    plain = accelerator.unwrap_model(model)
    accelerator.print(sk.summary(plain))
    if accelerator.is_main_process:
        sk.save(plain, out / "model")
    return plain


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--out", type=Path, default=Path("runs/accelerate"))
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    train(arguments.steps, arguments.sparsity, arguments.out, arguments.resume)
