# SPDX-License-Identifier: Apache-2.0
"""The training that all methods share: data, networks, dense checkpoints, plain training and evaluation."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sparsekit.benchmarks.data import Data, load_data
from sparsekit.benchmarks.methods import make_sgd
from sparsekit.benchmarks.networks import build_network
from sparsekit.benchmarks.recipe import Recipe, identity, non_default
from sparsekit.io import load
from sparsekit.nn import dense_state_dict, sparsify
from sparsekit.pruners.learning_rate import CURVES, Curve, LearningRate
from sparsekit.tensor_file import replace_file

OnStep = Callable[[], None]


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of ``model`` on a batch (images, labels)."""
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def ignore() -> None:
    """A step callback that does nothing."""


def clock(device: torch.device | str) -> float:
    """Seconds, after everything queued on the device is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def train(
    model: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    steps: int,
    curve: Curve = CURVES["cosine"],
    on_step: OnStep = ignore,
) -> None:
    """Train for ``steps`` batches. Raises ValueError at the end of a check interval in which the loss was not finite."""
    model.train()
    rate = LearningRate(optimizer, curve)
    finite = torch.ones((), dtype=torch.bool, device=next(model.parameters()).device)
    for step in range(steps):
        rate.set(step / steps)
        optimizer.zero_grad(set_to_none=True)
        loss = cross_entropy(model, next(batches))
        loss.backward()
        optimizer.step()
        finite = finite & torch.isfinite(loss.detach())
        # Looking makes the host wait for the device, so it is done once in a while.
        if (step % 50 == 49 or step + 1 == steps) and not bool(finite):
            raise ValueError(f"train: loss: expected finite values, got NaN or inf by step {step + 1}")
        on_step()


@torch.no_grad()
def accuracy(model: nn.Module, data: Data, split: str) -> float:
    """Fraction of ``split`` classified correctly, in eval mode; the mode is restored."""
    training = model.training
    model.eval()
    hits = torch.zeros((), dtype=torch.int64, device=data.device)
    for images, labels in data.evaluation(split):  # pyright: ignore[reportArgumentType]
        hits += (model(images).argmax(dim=1) == labels).sum()
    model.train(training)
    return float(hits) / len(data.split(split)[1])  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Dense:
    """A densely trained network: state before and after training, and its row entry (accuracies and cost)."""

    init: dict[str, Tensor]
    state: dict[str, Tensor]
    row: dict[str, Any]


class Workbench:
    """Data, networks and dense checkpoints of one recipe; checkpoints are kept under ``out/dense``."""

    def __init__(self, recipe: Recipe, out: Path, root: str | Path = ".data") -> None:
        if recipe.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("compare: device: expected a CUDA device, got none; see `sparsekit doctor`")
        self.recipe, self.out = recipe, Path(out)
        data = load_data(recipe.data, seed=0, limit=recipe.limit, root=root)
        if recipe.batch_size > len(data.y_train):
            raise ValueError(f"compare: batch_size: expected <= {len(data.y_train)} images, got {recipe.batch_size}")
        self.data = data.to(recipe.device)
        self._dense: dict[int, Dense] = {}
        self._warm = False
        # An unknown network or glob is an error now, not after hours of dense training.
        sparsify(self.network(seed=0), skip=recipe.skip)

    @property
    def images(self) -> int:
        """Training images."""
        return len(self.data.y_train)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one epoch."""
        return self.images // self.recipe.batch_size

    @property
    def epoch_images(self) -> int:
        """Images that an epoch of whole batches trains on: the unit of dense-equivalent epochs."""
        return self.steps_per_epoch * self.recipe.batch_size

    def network(self, seed: int) -> nn.Module:
        """Freshly initialised network on the recipe's device."""
        data = self.data
        size = {"classes": data.classes, "channels": data.channels, "image_size": data.image_size}
        return build_network(self.recipe.network, **size, seed=seed).to(self.recipe.device)

    def batches(self, seed: int, phase: int, batch_size: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless training batches; the order depends on seed and phase alone, so it is the same for all methods."""
        return iter(
            self.data.batches("train", batch_size=batch_size or self.recipe.batch_size, seed=1000 * seed + phase)
        )

    def seed_all(self, seed: int, phase: int) -> None:
        """Seed PyTorch's own generators, which dropout draws from, so that a run does not depend on the ones before it."""
        torch.manual_seed(1000 * seed + phase)

    def warm_up(self) -> None:
        """Once per process: a few steps on a network of no consequence, so that no method pays for the first ones."""
        if not self._warm:
            model = self.network(seed=0)
            train(model, self.batches(seed=0, phase=9), make_sgd(self.recipe)(list(model.parameters())), steps=3)
            self._warm = True

    def dense(self, seed: int, on_step: OnStep = ignore) -> Dense:
        """The dense network of ``seed``: from memory, from disk, or trained now."""
        if seed not in self._dense:
            init = {name: value.clone() for name, value in self.network(seed).state_dict().items()}
            name = identity(non_default(self.recipe.dense_part()) | {"seed": seed, "kind": "dense"})
            file = self.out / "dense" / f"{name}.safetensors"
            state, row = _read(file, self.recipe.device) if file.exists() else self._train_dense(seed, file, on_step)
            self._dense[seed] = Dense(init, state, row)
        return self._dense[seed]

    def adopt(self, seed: int, file: Path) -> None:
        """Take a safetensors state_dict as the dense network of ``seed``; it then costs nothing, and "init" is a fresh network.

        Raises:
            ValueError: no such file, or keys and shapes that are not the network's.
        """
        model = load(self.network(seed), file, masks="dense")
        state = dense_state_dict(model)
        row = {
            "val_accuracy": accuracy(model, self.data, "val"),
            "test_accuracy": accuracy(model, self.data, "test"),
            "epochs": 0,
            "seconds": 0.0,
            "passes": 0,
        }
        init = {name: value.clone() for name, value in self.network(seed).state_dict().items()}
        self._dense[seed] = Dense(init, state, row)

    def _train_dense(self, seed: int, file: Path, on_step: OnStep) -> tuple[dict[str, Tensor], dict[str, Any]]:
        model, steps = self.network(seed), self.recipe.dense_epochs * self.steps_per_epoch
        optimizer = make_sgd(self.recipe)(list(model.parameters()))
        batches = self.batches(seed, phase=0)
        self.warm_up()
        self.seed_all(seed, phase=0)
        start = clock(self.recipe.device)
        train(model, batches, optimizer, steps, on_step=on_step)
        seconds = clock(self.recipe.device) - start
        row = {
            "val_accuracy": accuracy(model, self.data, "val"),
            "test_accuracy": accuracy(model, self.data, "test"),
            "epochs": self.recipe.dense_epochs,
            "seconds": seconds,
            "passes": steps,
        }
        state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        stored = {name: value.cpu().contiguous() for name, value in state.items()}
        replace_file(file, lambda target: save_file(stored, target, metadata={"row": json.dumps(row)}))
        return state, row


def _read(file: Path, device: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(file, framework="pt", device=device) as content:
            state = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (not a mapping)
            metadata: Mapping[str, str] = content.metadata() or {}
        return state, json.loads(metadata["row"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"compare: out: expected a dense checkpoint in {file}, got another ({error}); remove it"
        ) from error
