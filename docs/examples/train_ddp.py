# SPDX-License-Identifier: Apache-2.0
"""Train a network on several processes, prune it with BiP, and save it.

    torchrun --nproc-per-node 2 docs/examples/train_ddp.py --out pruned

Uses the handwritten digits of scikit-learn, one GPU for each process where there are GPUs, and else the CPU.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import sparsekit as sk


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=float, default=0.9, help="fraction of the weights to remove")
    parser.add_argument("--epochs", type=int, default=10, help="passes of dense training")
    parser.add_argument("--steps", type=int, default=200, help="iterations of BiP, two batches each")
    parser.add_argument("--batch", type=int, default=64, help="samples in a batch of all processes together")
    parser.add_argument("--out", default="", help="directory to save the pruned network in")
    return parser.parse_args()


def data(device: torch.device) -> tuple[TensorDataset, TensorDataset]:
    """Training and test images, all on the device."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16, dtype=torch.float32, device=device)
    y = torch.tensor(labels, device=device)
    return TensorDataset(x[:1500], y[:1500]), TensorDataset(x[1500:], y[1500:])


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@torch.no_grad()
def accuracy(model: nn.Module, test: TensorDataset) -> float:
    x, y = test.tensors
    return float((model(x).argmax(1) == y).float().mean())


def main() -> None:
    options = parse()
    # Without a backend's name both are set up where both serve: NCCL for tensors on GPUs, gloo for those on the CPU.
    dist.init_process_group(None if torch.cuda.is_available() else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)

    train, test = data(device)
    loader = DataLoader(train, options.batch // world, sampler=DistributedSampler(train), drop_last=True)
    network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)).to(
        device
    )
    sk.sparsify(network)  # before or after the next line
    model = DistributedDataParallel(network)  # all processes start from the weights of rank 0

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(options.epochs):
        loader.sampler.set_epoch(epoch)  # another order in every pass; fit does this by itself
        for batch in loader:
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
    dense = accuracy(network, test)

    lower = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner = sk.BiP(model, loss, options.sparsity, steps=options.steps, lower=lower)
    pruner.fit(loader)  # or pruner.step(batches), in a loop of your own
    sk.check_ranks(model, weights=True)  # pruners do this now and then; it raises on all processes

    if rank == 0:
        masks = sk.masks(model)
        print(f"{world} processes, test accuracy {dense:.1%} dense, {accuracy(network, test):.1%} pruned")
        print(f"sparsity {masks.sparsity:.4f}, masks {masks.hash()[:16]}")
        if options.out:
            sk.save(model, options.out)
    dist.barrier()  # nobody leaves while rank 0 still writes
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
