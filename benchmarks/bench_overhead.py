# SPDX-License-Identifier: Apache-2.0
"""What a pruner adds to the training step inside it: counters, checks, learning rate, metrics, a logger.

python -m sparsekit.benchmarks.bench_overhead --out rows.jsonl

The baseline is the bare step on the same masked network: zero_grad, loss, backward, optimizer.step. A pruner between two
prunings does this and its bookkeeping; the overhead is 1 / ratio - 1, and meant to be at most 3 % on a CPU.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.benchmarks.bench_rows import bench_rows, main
from sparsekit.benchmarks.networks import build_network
from sparsekit.benchmarks.timing import compare_times
from sparsekit.benchmarks.training import cross_entropy
from sparsekit.loggers import JSONLLogger
from sparsekit.nn import sparsify
from sparsekit.pruners import Gradual, OneShotMagnitude

SPARSITY = 0.9
BARE = "bare step"
# More steps than any timing takes.
ENDLESS = 10**9
LOG_EVERY = 100


@dataclass(frozen=True)
class Setting:
    """A network and its batch; images are [channels, size, size], and there are ten classes."""

    network: str
    batch: int
    channels: int = 3
    size: int = 32

    @property
    def name(self) -> str:
        """network bBATCH."""
        return f"{self.network} b{self.batch}"


SETTINGS = (Setting("resnet20", 128), Setting("resnet20", 8))
Batch = tuple[Tensor, Tensor]


def _batch(setting: Setting, device: str) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(setting.batch, setting.channels, setting.size, setting.size, generator=generator)
    return images.to(device), torch.randint(10, (setting.batch,), generator=generator).to(device)


def _sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=5e-4)


def _network(setting: Setting, device: str) -> nn.Module:
    """Masked, with full masks: every step below prunes it first, by magnitude and so alike."""
    options = {"classes": 10, "channels": setting.channels, "image_size": setting.size, "seed": 0}
    model = build_network(setting.network, **options).train().to(device)
    sparsify(model)
    return model


def _bare(model: nn.Module, batch: Batch) -> Callable[[], Tensor]:
    OneShotMagnitude(model, cross_entropy, SPARSITY)
    optimizer = _sgd([p for p in model.parameters() if p.requires_grad])

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = cross_entropy(model, batch)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _pruner(model: nn.Module, batch: Batch) -> Callable[[], Tensor]:
    pruner = OneShotMagnitude(model, cross_entropy, SPARSITY, optimizer=_sgd, steps=ENDLESS, curve="constant")
    batches = itertools.repeat(batch)
    return lambda: pruner.step(batches)["loss"]


def _logged(model: nn.Module, batch: Batch, file: Path) -> Callable[[], Tensor]:
    pruner = OneShotMagnitude(model, cross_entropy, SPARSITY, optimizer=_sgd, steps=ENDLESS, curve="constant")
    batches, logger, count = itertools.repeat(batch), JSONLLogger(file, every=LOG_EVERY), itertools.count(1)

    def step() -> Tensor:
        metrics = pruner.step(batches)
        logger.log(next(count), metrics)
        return metrics["loss"]

    return step


def _gradual(model: nn.Module, batch: Batch) -> Callable[[], Tensor]:
    """Somebody else's loop that calls a schedule before each of its steps; it prunes in every hundredth."""
    pruner = Gradual(model, SPARSITY, steps=ENDLESS, every=LOG_EVERY, schedule="constant")
    bare = _bare(model, batch)

    def step() -> Tensor:
        pruner.step()
        return bare()

    return step


def _steps(setting: Setting, device: str, folder: Path) -> dict[str, Callable[[], Tensor]]:
    model, batch = _network(setting, device), _batch(setting, device)
    return {
        BARE: _bare(copy.deepcopy(model), batch),
        "Pruner.step": _pruner(copy.deepcopy(model), batch),
        f"Pruner.step, JSONL every {LOG_EVERY}": _logged(copy.deepcopy(model), batch, folder / "log.jsonl"),
        f"bare step + Gradual every {LOG_EVERY}": _gradual(copy.deepcopy(model), batch),
    }


def _require_same_training(setting: Setting, device: str, folder: Path) -> None:
    """All have to train alike before anything is timed: the same losses in the first steps."""
    losses = {name: [float(step()) for _ in range(3)] for name, step in _steps(setting, device, folder).items()}
    tolerance = 0.0 if device == "cpu" else 1e-3
    for name, own in losses.items():
        if any(abs(a - b) > tolerance * abs(b) for a, b in zip(own, losses[BARE], strict=True)):
            raise ValueError(f"bench_overhead: {name}: expected losses {losses[BARE]}, got {own}")


def run(repeats: int, device: str = "cpu") -> Iterator[dict[str, Any]]:
    """Rows for every network; "overhead" is the median over rounds of own time / bare time, less one."""
    for setting in SETTINGS:
        with tempfile.TemporaryDirectory() as folder:
            _require_same_training(setting, device, Path(folder))
            steps = _steps(setting, device, Path(folder))
            timings = compare_times(steps, baseline=BARE, repeats=repeats, check=None, device=device)
            for row in bench_rows("overhead", setting.name, timings):
                yield {**row, "overhead": 1 / row["ratio"] - 1}


if __name__ == "__main__":
    main(__doc__ or "", run)
