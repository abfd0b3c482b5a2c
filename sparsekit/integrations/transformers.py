# SPDX-License-Identifier: Apache-2.0
"""A callback for the Trainer of Hugging Face transformers that prunes while it trains."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
except ImportError as error:
    raise ImportError(
        "sparsekit.integrations.transformers: expected the package transformers, got none; "
        "pip install 'torch-sparsekit[transformers]'"
    ) from error

from torch import nn

from sparsekit.integrations.driver import Driver, MakePruner, own_pass
from sparsekit.integrations.state_file import load_state, save_state
from sparsekit.loggers import Logger, is_first_rank
from sparsekit.pruners.protocol import Metrics, Pruner

STATE_FILE = "sparsekit-pruner.safetensors"


class PruningCallback(TrainerCallback):
    """Takes a step of a pruner before each optimizer step of the Trainer, until the pruner is done.

    Sparsify the model before the Trainer gets it. The Trainer's checkpoints hold the masks with the model; this callback
    adds the pruner's state to them, in a file of its own, and refuses to resume with other masks than the checkpoint's.

    Args:
        pruner: a pruner (``sk.Gradual(model, 0.9, steps=1000)``), or a function model -> pruner that is called when
            training starts. A pruner that trains draws batches from the Trainer's loader; its own steps are not counted
            by the Trainer.
        logger: see sparsekit.loggers; takes every step. Independently, the last metrics are added to what the Trainer
            logs (its history and the reporters that come after this callback).
        prefix: of the names that the Trainer sees.
        resume_from: folder of the checkpoint that is resumed, if it is not one of the Trainer's ``output_dir``.

    Raises:
        ValueError: when training starts: nothing is masked, or the resumed checkpoint has no pruner state or other masks.
        TypeError: a wrong kind.
    """

    def __init__(
        self,
        pruner: Pruner | MakePruner,
        *,
        logger: Logger | None = None,
        prefix: str = "sparsekit/",
        resume_from: str | os.PathLike[str] | None = None,
    ) -> None:
        self._driver, self._prefix = Driver("PruningCallback", pruner, logger), prefix
        self._resume_from, self._latest = resume_from, Metrics({})

    @property
    def pruner(self) -> Pruner:
        """The pruner at work."""
        return self._driver.pruner

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """See transformers.TrainerCallback."""
        if state.global_step:
            file = Path(self._resume_from or _checkpoint(args, state)) / STATE_FILE
            if not file.is_file():
                raise ValueError(
                    f"PruningCallback: resume_from: expected the folder of the checkpoint, got no {str(file)!r}"
                )
            self._driver.load(load_state(file))
        model: nn.Module = kwargs["model"]
        self._driver.begin(model)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """See transformers.TrainerCallback."""
        metrics = self._driver.step(state.global_step, lambda: own_pass(kwargs["train_dataloader"]))
        if metrics:
            self._latest = metrics

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """See transformers.TrainerCallback."""
        if not is_first_rank():
            return
        values = {self._prefix + name: value for name, value in self._latest.read().items()}
        # The history has its entry by now, and the reporters that follow get the other one.
        for entry in (state.log_history[-1], kwargs["logs"]):
            entry.update(values)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """See transformers.TrainerCallback."""
        self._driver.end()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """See transformers.TrainerCallback."""
        if state.is_world_process_zero:
            save_state(self._driver.state(), _checkpoint(args, state) / STATE_FILE)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
