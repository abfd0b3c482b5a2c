# SPDX-License-Identifier: Apache-2.0
"""The training that all methods share: data, networks, dense checkpoints, plain training and evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.benchmarks.claims import Claims
from sparsekit.benchmarks.curves import curve_of
from sparsekit.benchmarks.data import Images, load_data
from sparsekit.benchmarks.dense_file import Dense, dense_name, read_dense, write_dense
from sparsekit.benchmarks.environment import environment
from sparsekit.benchmarks.evaluation import accuracy
from sparsekit.benchmarks.keeper import EVERY, Keeper, Stop, Watch
from sparsekit.benchmarks.masking import sparsify_for
from sparsekit.benchmarks.meter import Meter, flops_per_image
from sparsekit.benchmarks.methods import make_sgd
from sparsekit.benchmarks.mixup import Stream, mixed
from sparsekit.benchmarks.networks import build_network
from sparsekit.benchmarks.recipe import Recipe, as_json
from sparsekit.benchmarks.splits import Split
from sparsekit.benchmarks.training import OnStep, clock, ignore, loss_for, train
from sparsekit.io import load
from sparsekit.nn import dense_state_dict
from sparsekit.pruners.capture import WARM_UP
from sparsekit.pruners.learning_rate import as_curve

ADOPTED = "adopted.safetensors"


class Workbench:
    """Data, networks and dense checkpoints of one recipe; checkpoints are kept under ``out/dense``.

    every: seconds between the checkpoints of what is not finished; 0 for each step. stop: ends the work when it is told to.
    claims: where several processes share ``out``. keep_masks: runs leave their masks under ``out/masks``.
    """

    def __init__(self, recipe: Recipe, out: Path, root: str | Path = ".data", every: float = EVERY) -> None:
        if recipe.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device: expected a CUDA device, got none; see `sparsekit doctor`")
        environment()  # the stamp tells of the source that is loaded now
        self.recipe, self.out, self.every, self.stop = recipe, Path(out), every, Stop()
        self.loss = loss_for(recipe.precision, recipe.label_smoothing)
        self.claims: Claims | None = None
        self.keep_masks = False
        data = load_data(recipe.data, seed=0, limit=recipe.limit, root=root, image_size=recipe.image_size)
        self.data: Images = replace(data, channels_last=recipe.channels_last).to(recipe.device)
        for name in ("batch_size", "dense_batch_size"):
            if (getattr(recipe, name) or 0) > self.images:
                raise ValueError(f"{name}: expected <= {self.images} images, got {getattr(recipe, name)}")
        self._dense: dict[int, Dense] = {}
        self._warm, self.evaluation_seconds = set[str](), 0.0
        # An unknown network or glob is an error now, not after hours of dense training.
        sparsify_for(self.network(seed=0), recipe)

    @property
    def images(self) -> int:
        """Training images."""
        return len(self.data.labels("train"))

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one epoch."""
        return self.images // self.recipe.batch_size

    @property
    def dense_steps(self) -> int:
        """Steps of the dense training, whose batches may be of another size."""
        return self.recipe.dense_epochs * (self.images // self.recipe.dense_part().batch_size)

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

    def accuracy(self, model: nn.Module, split: Split) -> float:
        """Fraction of ``split`` classified correctly; ``evaluation_seconds`` goes on by what that takes."""
        begin = self.clock()
        found = accuracy(model, self.data, split, self.recipe.precision)
        self.evaluation_seconds += self.clock() - begin
        return found

    def accuracies(self, model: nn.Module) -> dict[str, float | None]:
        """Entries of a row; None where the data has no validation set."""
        own = {split: self.accuracy(model, split) for split in ("val", "test")}
        return {f"{split}_accuracy": None if math.isnan(value) else value for split, value in own.items()}

    @cached_property
    def flops(self) -> float:
        """Floating-point operations of the network for one image, forward and backward."""
        images = next(self.batches(seed=0, phase=9, batch_size=2))[0]
        return flops_per_image(self.network(seed=0), images)

    def batches(self, seed: int, phase: int, batch_size: int | None = None, first: int = 0) -> Stream:
        """Endless training batches from number ``first`` on.

        The order depends on seed and phase alone, so it is the same for all methods.
        """
        size, own = batch_size or self.recipe.batch_size, 1000 * seed + phase
        batches = self.data.batches("train", batch_size=size, seed=own, start_step=first)
        return mixed(batches, self.recipe.mixup, self.data.classes, own)

    def keeper(self, file: Path, identity: Mapping[str, Any]) -> Keeper:
        """Keeper of work with this recipe."""
        return Keeper(file, {**identity, "recipe": as_json(self.recipe)}, self.every, self.stop)

    def clock(self) -> float:
        """Seconds, after everything queued on the device is done."""
        return clock(self.recipe.device)

    def fit(
        self, model: nn.Module, seed: int, phase: int, steps: int, keeper: Keeper, on_step: OnStep, **also: Any
    ) -> tuple[float, float]:
        """Train plainly on the batches of ``phase``, or go on; returns the seconds of all its lives and of their captures.

        Phase 0 is the dense training, any other fine-tuning: each has settings of its own in the recipe.
        also: plain values that the checkpoints hold besides.
        """
        begun = keeper.begun()
        begun = begun if begun.get("phase") == phase else {}
        recipe = self.recipe.finetune_part() if phase else self.recipe.dense_part()
        optimizer = make_sgd(recipe)(list(model.parameters()))
        self.seed_all(seed, phase)
        if begun:
            keeper.restore(model, optimizer=optimizer)
        first = begun.get("step", 0)
        done, watch = first, Watch(self.clock, keeper, begun.get("seconds", 0.0), begun.get("captures", 0.0))
        for _ in range(first):
            on_step()

        def state() -> dict[str, Any]:
            return {"model": model, "optimizer": optimizer, "phase": phase, "step": done, **watch.state(), **also}

        def after() -> None:
            nonlocal done
            done += 1
            on_step()
            keeper.offer(state)

        with keeper.running():
            batches = self.batches(seed, phase, recipe.batch_size, first)
            how = {
                "loss_of": self.loss,
                "graphs": recipe.graphs,
                "curve": as_curve("fit", "curve", curve_of(recipe.curve)),
                "on_capture": watch.on_capture,
            }
            train(model, batches, optimizer, steps, on_step=after, first=first, **how)
        return watch.seconds, watch.captures

    def seed_all(self, seed: int, phase: int) -> None:
        """Seed PyTorch's own generators, which dropout draws from, so that a run does not depend on the ones before it."""
        torch.manual_seed(1000 * seed + phase)

    def warm_up(self, kind: str = "dense", work: Callable[[], None] | None = None) -> float:
        """Once per process and kind of work: do a little that is of no consequence, so that no method pays for the first time.

        Args:
            work: does it; by default a few steps of dense training.

        Returns:
            Seconds, which no clock of a run holds; 0 where the process is warm.
        """
        if kind in self._warm:
            return 0.0
        begin = self.clock()
        (work or self._train_a_little)()
        self._warm.add(kind)
        return self.clock() - begin

    def _train_a_little(self) -> None:
        model = self.network(seed=0)
        optimizer = make_sgd(self.recipe)(list(model.parameters()))
        train(model, self.batches(seed=0, phase=9), optimizer, steps=WARM_UP, loss_of=self.loss)

    def dense_file(self, seed: int) -> Path:
        """Where the dense network of ``seed`` is kept."""
        return self.out / "dense" / dense_name(self.recipe, seed)

    def dense(self, seed: int, on_step: OnStep = ignore) -> Dense:
        """The dense network of ``seed``: from memory, from disk, or trained now."""
        if seed not in self._dense:
            network = self.network(seed)
            init = {name: value.clone() for name, value in network.state_dict().items()}
            file = self.dense_file(seed)
            # Several processes need the same one: the first trains it, the others wait.
            with self.claims.waited_for(file.stem, self.stop.look) if self.claims else nullcontext():
                state, row = read_dense(file, network) if file.exists() else self._train_dense(seed, file, on_step)
            self._dense[seed] = Dense(init, state, row)
        return self._dense[seed]

    def adopt(self, seed: int, file: Path) -> None:
        """Take a safetensors state_dict as the dense network of ``seed``; it then costs nothing, and "init" is a fresh network.

        Raises:
            ValueError: no such file, or keys and shapes that are not the network's.
        """
        model = load(self.network(seed), file, masks="dense")
        state = dense_state_dict(model)
        row = {**self.accuracies(model), "epochs": 0, "seconds": 0.0, "passes": 0, "flops": 0.0}
        init = {name: value.clone() for name, value in self.network(seed).state_dict().items()}
        self._dense[seed] = Dense(init, state, row)

    def keep_adopted(self, seed: int) -> None:
        """Store what was adopted, so that a run can go on whatever becomes of the file it came from."""
        write_dense(self.out / "dense" / ADOPTED, self._dense[seed].state, self._dense[seed].row)

    def adopt_again(self, seed: int) -> None:
        """Adopt what ``keep_adopted`` stored. Raises ValueError if it is not there or damaged."""
        read_dense(file := self.out / "dense" / ADOPTED, self.network(seed))
        self.adopt(seed, file)

    def _train_dense(self, seed: int, file: Path, on_step: OnStep) -> tuple[dict[str, Tensor], dict[str, Any]]:
        model, steps = self.network(seed), self.dense_steps
        keeper = self.keeper(file.with_suffix(".unfinished.safetensors"), {"kind": "dense", "seed": seed})
        warm_up = self.warm_up()
        meter = Meter(self.recipe.device, whole=not keeper.begun())
        seconds, captures = self.fit(model, seed, 0, steps, keeper, on_step)
        measured = meter.row()
        row = {
            **self.accuracies(model),
            "epochs": self.recipe.dense_epochs,
            "seconds": seconds,
            "capture_seconds": captures,
            "warm_up_seconds": warm_up,
            "passes": steps,
            "flops": steps * self.recipe.dense_part().batch_size * self.flops,
            **measured,
        }
        state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        write_dense(file, state, row)
        keeper.remove()
        return state, row
