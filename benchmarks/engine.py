# SPDX-License-Identifier: Apache-2.0
"""The training that all methods share: data, networks, dense checkpoints, plain training and evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.benchmarks.batches import BatchStream
from sparsekit.benchmarks.claims import Claims
from sparsekit.benchmarks.data import Data, load_data
from sparsekit.benchmarks.dense_file import Dense, read_dense, write_dense
from sparsekit.benchmarks.environment import environment
from sparsekit.benchmarks.keeper import EVERY, Keeper, Stop, Watch
from sparsekit.benchmarks.masking import sparsify_for
from sparsekit.benchmarks.meter import Meter, flops_per_image
from sparsekit.benchmarks.methods import make_sgd
from sparsekit.benchmarks.networks import build_network
from sparsekit.benchmarks.recipe import Recipe, as_json, identity, non_default
from sparsekit.benchmarks.training import LOSSES, OnStep, autocast, clock, ignore, train
from sparsekit.io import load
from sparsekit.nn import dense_state_dict

ADOPTED = "adopted.safetensors"


@torch.no_grad()
def accuracy(model: nn.Module, data: Data, split: str, precision: str = "fp32") -> float:
    """Fraction of ``split`` classified correctly, in eval mode; the mode is restored."""
    training = model.training
    model.eval()
    hits = torch.zeros((), dtype=torch.int64, device=data.device)
    for images, labels in data.evaluation(split):  # pyright: ignore[reportArgumentType]
        with autocast(images.device, precision):
            hits += (model(images).argmax(dim=1) == labels).sum()
    model.train(training)
    return float(hits) / len(data.split(split)[1])  # pyright: ignore[reportArgumentType]


class Workbench:
    """Data, networks and dense checkpoints of one recipe; checkpoints are kept under ``out/dense``.

    every: seconds between the checkpoints of what is not finished; 0 for each step. stop: ends the work when it is told to.
    claims: where several processes share ``out``. keep_masks: runs leave their masks under ``out/masks``.
    """

    def __init__(self, recipe: Recipe, out: Path, root: str | Path = ".data", every: float = EVERY) -> None:
        if recipe.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device: expected a CUDA device, got none; see `sparsekit doctor`")
        environment()  # the stamp tells of the source that is loaded now
        self.recipe, self.out = recipe, Path(out)
        self.every, self.stop = every, Stop()
        self.loss = LOSSES[recipe.precision]
        self.claims: Claims | None = None
        self.keep_masks = False
        data = load_data(recipe.data, seed=0, limit=recipe.limit, root=root, image_size=recipe.image_size)
        if recipe.batch_size > len(data.y_train):
            raise ValueError(f"batch_size: expected <= {len(data.y_train)} images, got {recipe.batch_size}")
        self.data = replace(data, channels_last=recipe.channels_last).to(recipe.device)
        self._dense: dict[int, Dense] = {}
        self._warm = False
        # An unknown network or glob is an error now, not after hours of dense training.
        sparsify_for(self.network(seed=0), recipe)

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
        layout = torch.channels_last if self.recipe.channels_last else torch.contiguous_format
        model = build_network(self.recipe.network, **size, seed=seed)
        return model.to(self.recipe.device, memory_format=layout)  # pyright: ignore[reportCallIssue]

    def accuracy(self, model: nn.Module, split: str) -> float:
        """Fraction of ``split`` classified correctly."""
        return accuracy(model, self.data, split, self.recipe.precision)

    @cached_property
    def flops(self) -> float:
        """Floating-point operations of the network for one image, forward and backward."""
        images = next(self.batches(seed=0, phase=9, batch_size=2))[0]
        return flops_per_image(self.network(seed=0), images)

    def batches(self, seed: int, phase: int, batch_size: int | None = None, first: int = 0) -> BatchStream:
        """Endless training batches from number ``first`` on.

        The order depends on seed and phase alone, so it is the same for all methods.
        """
        size = batch_size or self.recipe.batch_size
        return self.data.batches("train", batch_size=size, seed=1000 * seed + phase, start_step=first)

    def keeper(self, file: Path, identity: Mapping[str, Any]) -> Keeper:
        """Keeper of work with this recipe."""
        return Keeper(file, {**identity, "recipe": as_json(self.recipe)}, self.every, self.stop)

    def clock(self) -> float:
        """Seconds, after everything queued on the device is done."""
        return clock(self.recipe.device)

    def fit(
        self, model: nn.Module, seed: int, phase: int, steps: int, keeper: Keeper, on_step: OnStep, **also: Any
    ) -> float:
        """Train plainly on the batches of ``phase``, or go on with that; returns the seconds of all its lives.

        also: plain values that the checkpoints hold besides.
        """
        begun = keeper.begun()
        begun = begun if begun.get("phase") == phase else {}
        optimizer = make_sgd(self.recipe)(list(model.parameters()))
        self.seed_all(seed, phase)
        if begun:
            keeper.restore(model, optimizer=optimizer)
        first = begun.get("step", 0)
        done, watch = first, Watch(self.clock, keeper, begun.get("seconds", 0.0))
        for _ in range(first):
            on_step()

        def state() -> dict[str, Any]:
            values = {"phase": phase, "step": done, "seconds": watch.seconds}
            return {"model": model, "optimizer": optimizer, **values, **also}

        def after() -> None:
            nonlocal done
            done += 1
            on_step()
            keeper.offer(state)

        with keeper.running():
            batches = self.batches(seed, phase, first=first)
            how = {"loss_of": self.loss, "graphs": self.recipe.graphs}
            train(model, batches, optimizer, steps, on_step=after, first=first, **how)
        return watch.seconds

    def seed_all(self, seed: int, phase: int) -> None:
        """Seed PyTorch's own generators, which dropout draws from, so that a run does not depend on the ones before it."""
        torch.manual_seed(1000 * seed + phase)

    def warm_up(self) -> None:
        """Once per process: a few steps on a network of no consequence, so that no method pays for the first ones."""
        if not self._warm:
            model = self.network(seed=0)
            optimizer = make_sgd(self.recipe)(list(model.parameters()))
            train(model, self.batches(seed=0, phase=9), optimizer, steps=3, loss_of=self.loss)
            self._warm = True

    def dense(self, seed: int, on_step: OnStep = ignore) -> Dense:
        """The dense network of ``seed``: from memory, from disk, or trained now."""
        if seed not in self._dense:
            network = self.network(seed)
            init = {name: value.clone() for name, value in network.state_dict().items()}
            file = self.out / "dense" / self.dense_name(seed)
            # Several processes need the same one: the first trains it, the others wait.
            with self.claims.waited_for(file.stem, self.stop.look) if self.claims else nullcontext():
                state, row = read_dense(file, network) if file.exists() else self._train_dense(seed, file, on_step)
            self._dense[seed] = Dense(init, state, row)
        return self._dense[seed]

    def dense_name(self, seed: int) -> str:
        """File of the dense network of a seed in the folder ``dense`` of a workbench."""
        name = identity(non_default(self.recipe.dense_part()) | {"seed": seed, "kind": "dense"})
        return f"{name}.safetensors"

    def adopt(self, seed: int, file: Path) -> None:
        """Take a safetensors state_dict as the dense network of ``seed``; it then costs nothing, and "init" is a fresh network.

        Raises:
            ValueError: no such file, or keys and shapes that are not the network's.
        """
        model = load(self.network(seed), file, masks="dense")
        state = dense_state_dict(model)
        row = {
            "val_accuracy": self.accuracy(model, "val"),
            "test_accuracy": self.accuracy(model, "test"),
            "epochs": 0,
            "seconds": 0.0,
            "passes": 0,
            "flops": 0.0,
        }
        init = {name: value.clone() for name, value in self.network(seed).state_dict().items()}
        self._dense[seed] = Dense(init, state, row)

    def keep_adopted(self, seed: int) -> None:
        """Store what was adopted, so that a run can go on whatever becomes of the file it came from."""
        write_dense(self.out / "dense" / ADOPTED, self._dense[seed].state, self._dense[seed].row)

    def adopt_again(self, seed: int) -> None:
        """Adopt what ``keep_adopted`` stored. Raises ValueError if it is not there or damaged."""
        network, file = self.network(seed), self.out / "dense" / ADOPTED
        read_dense(file, network)
        self.adopt(seed, file)

    def _train_dense(self, seed: int, file: Path, on_step: OnStep) -> tuple[dict[str, Tensor], dict[str, Any]]:
        model, steps = self.network(seed), self.recipe.dense_epochs * self.steps_per_epoch
        keeper = self.keeper(file.with_suffix(".unfinished.safetensors"), {"kind": "dense", "seed": seed})
        self.warm_up()
        meter = Meter(self.recipe.device, whole=not keeper.begun())
        seconds = self.fit(model, seed, 0, steps, keeper, on_step)
        measured = meter.row()
        row = {
            "val_accuracy": self.accuracy(model, "val"),
            "test_accuracy": self.accuracy(model, "test"),
            "epochs": self.recipe.dense_epochs,
            "seconds": seconds,
            "passes": steps,
            "flops": steps * self.recipe.batch_size * self.flops,
            **measured,
        }
        state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        write_dense(file, state, row)
        keeper.remove()
        return state, row
