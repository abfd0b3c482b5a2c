# SPDX-License-Identifier: Apache-2.0
"""Plain training: the loss, the loop, and the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsekit.gradients import Loss
from sparsekit.pruners.capture import Replays
from sparsekit.pruners.learning_rate import CURVES, Curve, LearningRate

OnStep = Callable[[], None]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of forward passes in "fp32", in which it does nothing, or "bf16"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor], label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of ``model`` on a batch (images, labels), to labels smoothed by a fraction in [0, 1)."""
    images, labels = batch
    return F.cross_entropy(model(images), labels, label_smoothing=label_smoothing)


def cross_entropy_bf16(model: nn.Module, batch: tuple[Tensor, Tensor], label_smoothing: float = 0.0) -> Tensor:
    """``cross_entropy`` with the network under bf16 autocast; the loss itself is in fp32."""
    images, labels = batch
    with autocast(images.device, "bf16"):
        logits = model(images)
    return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)


LOSSES = {"fp32": cross_entropy, "bf16": cross_entropy_bf16}


def loss_for(precision: str, label_smoothing: float) -> Loss:
    """The loss that networks are trained with."""
    return partial(LOSSES[precision], label_smoothing=label_smoothing) if label_smoothing else LOSSES[precision]


def ignore() -> None:
    """A step callback that does nothing."""


def clock(device: torch.device | str) -> float:
    """Seconds, after everything queued on the device is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def step_of(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Loss,
    graphs: bool,
    on_capture: Callable[[float], None] = lambda seconds: None,
) -> Callable[[tuple[Tensor, Tensor]], Tensor]:
    """One training step as a function of its batch that returns the loss before it, detached; perhaps by graph.

    on_capture: called with the seconds that a capture took.
    """

    def work(drawn: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model, drawn[0])
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach()}

    if not graphs:
        return lambda batch: work([batch])["loss"]
    replays = Replays(next(model.parameters()).device, on_capture=on_capture)
    return lambda batch: replays.run("train", None, [batch], work)["loss"]


def train(
    model: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    steps: int,
    curve: Curve = CURVES["cosine"],
    on_step: OnStep = ignore,
    first: int = 0,
    loss_of: Loss = cross_entropy,
    graphs: bool = False,
    on_capture: Callable[[float], None] = lambda seconds: None,
) -> None:
    """Train for ``steps`` batches, of which ``first`` are done; with ``graphs`` by replayed CUDA graphs.

    on_capture: called with the seconds that a capture took, in which nothing is trained.

    Raises:
        ValueError: at the end of a check interval in which the loss was not finite.
    """
    model.train()
    rate, take = LearningRate(optimizer, curve), step_of(model, optimizer, loss_of, graphs, on_capture)
    finite = torch.ones((), dtype=torch.bool, device=next(model.parameters()).device)
    for step in range(first, steps):
        rate.set(step / steps)
        finite = finite & torch.isfinite(take(next(batches)))
        # Looking makes the host wait for the device, so it is done once in a while.
        if (step % 50 == 49 or step + 1 == steps) and not bool(finite):
            raise ValueError(f"train: loss: expected finite values, got NaN or inf by step {step + 1}")
        on_step()
