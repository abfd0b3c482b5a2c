# SPDX-License-Identifier: Apache-2.0
"""Where the metrics of a run go: one protocol, and JSONL, TensorBoard, wandb and stdlib logging behind it.

Metrics are 0-d tensors; turning them into numbers waits for the device. Only ``every``-th steps are therefore read, and
of several processes only the first one writes or reads at all.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

JSONL_VERSION = 1
Values = Mapping[str, "Tensor | float"]


@runtime_checkable
class Logger(Protocol):
    """Takes the metrics of a step. step: an integer >= 0; metrics: name -> 0-d tensor or number.

    A logger that does not want a step has to return without looking at the values.
    """

    def log(self, step: int, metrics: Values) -> None: ...


def is_first_rank() -> bool:
    """Is this the only process, or rank 0 of the default process group?"""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not distributed or torch.distributed.get_rank() == 0


def checked_logger(function: str, logger: Any) -> Logger | None:
    """``logger`` if it is None or has a method ``log``, else a TypeError that names ``function``."""
    if logger is None or (isinstance(logger, Logger) and not isinstance(logger, type)):
        return logger
    raise TypeError(f"{function}: logger: expected an object with log(step, metrics), got {logger!r}")


def read(metrics: Values) -> dict[str, float]:
    """The metrics as floats, by one wait for all tensors of a device and dtype; what a step found wrong is raised.

    Raises:
        ValueError: what ``Metrics.read`` raises, or a value of more than one entry. TypeError: a value that is no number.
    """
    if callable(own := getattr(metrics, "read", None)):
        return own()  # pyright: ignore[reportReturnType]
    return {name: _number(name, value) for name, value in metrics.items()}


def _number(name: str, value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"log: metrics[{name!r}]: expected one number, got shape {tuple(value.shape)}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"log: metrics[{name!r}]: expected one number, got {value!r}") from None


class _Throttle:
    """Which steps to write: every ``every``-th, by the first process alone."""

    def __init__(self, function: str, every: int) -> None:
        if type(every) is not int or every < 1:
            raise ValueError(f"{function}: every: expected an int >= 1, got {every!r}")
        self.every = every

    def __call__(self, step: int) -> bool:
        return step % self.every == 0 and is_first_rank()


class JSONLLogger:
    """Appends one JSON object per step to a file: {"v": 1, "time": seconds, "step": n, "metrics": {...}}.

    Args:
        path: file, made with its folder if needed; each line is written at once, so a killed run leaves whole lines.
        every: write each so-many-th step, >= 1.

    Numbers that JSON has no form for (inf, NaN) are written as null.
    """

    def __init__(self, path: str | os.PathLike[str], every: int = 1) -> None:
        self._wanted, self.path = _Throttle("JSONLLogger", every), Path(path)

    def log(self, step: int, metrics: Values) -> None:
        """See Logger."""
        if not self._wanted(step):
            return
        values = {n: v if abs(v) < float("inf") else None for n, v in read(metrics).items()}
        line = json.dumps({"v": JSONL_VERSION, "time": time.time(), "step": step, "metrics": values})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab+") as file:
            # A full disk or a crash may have cut the last line short; the next one must not be glued to it.
            if file.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                line = "\n" + line
            file.write((line + "\n").encode())


class TensorBoardLogger:
    """Scalars for TensorBoard.

    Args:
        folder: where the event files go; needs the package tensorboard. Or a SummaryWriter that is open already.
        every: write each so-many-th step, >= 1.
        prefix: put before every name.
    """

    def __init__(self, folder: Any, every: int = 1, prefix: str = "sparsekit/") -> None:
        self._wanted, self._prefix, self._folder = _Throttle("TensorBoardLogger", every), prefix, folder
        self._writer = folder if hasattr(folder, "add_scalar") else None

    def log(self, step: int, metrics: Values) -> None:
        """See Logger."""
        if not self._wanted(step):
            return
        if self._writer is None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                expected = "the package tensorboard (pip install tensorboard)"
                raise ImportError(f"TensorBoardLogger: folder: expected {expected}, got none") from error
            self._writer = SummaryWriter(str(self._folder))
        for name, value in read(metrics).items():
            self._writer.add_scalar(self._prefix + name, value, step)

    def close(self) -> None:
        """Write what is pending; the logger may go on afterwards."""
        if self._writer is not None:
            self._writer.close()


class WandbLogger:
    """Metrics for Weights & Biases.

    Args:
        run: a run of ``wandb.init``; by default the current one when the first step is logged, which needs the package
            wandb.
        every: write each so-many-th step, >= 1.
        prefix: put before every name.

    The step travels as a metric of its own (``<prefix>step``), as wandb's counter is the training's.
    """

    def __init__(self, run: Any = None, every: int = 1, prefix: str = "sparsekit/") -> None:
        self._wanted, self._prefix, self._run = _Throttle("WandbLogger", every), prefix, run

    def log(self, step: int, metrics: Values) -> None:
        """See Logger. Raises ImportError without the package, ValueError without a run."""
        if not self._wanted(step):
            return
        if self._run is None:
            try:
                import wandb  # pyright: ignore[reportMissingImports]
            except ImportError as error:
                raise ImportError(
                    "WandbLogger: run: expected the package wandb (pip install wandb), got none"
                ) from error
            if wandb.run is None:
                raise ValueError("WandbLogger: run: expected a run, got none; call wandb.init first")
            self._run = wandb.run
        values = {self._prefix + name: value for name, value in read(metrics).items()}
        self._run.log({self._prefix + "step": step, **values})


class StdLogger:
    """One line per step through the standard library's logging, at level INFO; nothing is read if that is off.

    Args:
        logger: a logging.Logger, or the name of one.
        every: write each so-many-th step, >= 1.
    """

    def __init__(self, logger: logging.Logger | str = "sparsekit", every: int = 1) -> None:
        self._wanted = _Throttle("StdLogger", every)
        self._logger = logging.getLogger(logger) if isinstance(logger, str) else logger

    def log(self, step: int, metrics: Values) -> None:
        """See Logger."""
        if self._logger.isEnabledFor(logging.INFO) and self._wanted(step):
            text = "  ".join(f"{name} {value:.6g}" for name, value in read(metrics).items())
            self._logger.info("step %d  %s", step, text)


class Loggers:
    """Several loggers as one."""

    def __init__(self, *loggers: Logger) -> None:
        self._logs: list[Callable[[int, Values], None]] = []
        for logger in loggers:
            checked_logger("Loggers", logger)
            self._logs.append(logger.log)

    def log(self, step: int, metrics: Values) -> None:
        """See Logger."""
        for log in self._logs:
            log(step, metrics)
