# SPDX-License-Identifier: Apache-2.0
"""What the checks know of a pruning library."""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PRUNED = (nn.Linear, nn.Conv2d)


class NotOffered(Exception):
    """The library has no such feature, and does not claim to; the message says what it has instead."""


@dataclass(frozen=True)
class Library:
    """One library.

    Args:
        name, package: for people, and for importlib.metadata.
        prune: (model, input, sparsity) -> the pruned model: the smallest weights of its Linear and Conv2d layers, global.
        baked: (pruned model, input) -> plain model with zeros (or without what was pruned), the pruned one left as it
            is if the library can.
        sparsity: pruned model -> the fraction removed, as the library reports it or as its attributes show it.
        resume: (pruned model, fresh model, input) -> the fresh one with the masks and weights of the first, by way of a
            file that ``torch.load`` reads with its default arguments, or that needs no torch.load.
        guard: (optimizer, model) -> None: keep what is stored under masks unchanged.
        stored: pruned model -> [(tensor that the optimizer moves, its mask)].
        dense_into: (pruned model, state of the plain model) -> None: the checkpoint's weights behind the present masks.
        single: does it prune single weights?
    """

    name: str
    package: str
    prune: Callable[[nn.Module, Any, float], nn.Module]
    baked: Callable[[nn.Module, Any], nn.Module]
    sparsity: Callable[[nn.Module], float]
    resume: Callable[[nn.Module, nn.Module, Any], nn.Module]
    guard: Callable[[torch.optim.Optimizer, nn.Module], Any]
    stored: Callable[[nn.Module], list[tuple[Tensor, Tensor]]]
    dense_into: Callable[[nn.Module, Mapping[str, Tensor]], Any]
    single: bool = True

    @property
    def version(self) -> str:
        """Version of the installed package, or "not installed"."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"


def layers(model: nn.Module) -> dict[str, Any]:
    """Linear and Conv2d layers by name, each once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PRUNED)}


def zeros(weights: list[Tensor]) -> float:
    """Fraction of zeros."""
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def no(text: str) -> Callable[..., Any]:
    """What stands for a feature that is not there."""

    def refuse(*_: Any) -> Any:
        raise NotOffered(text)

    return refuse


def state_into(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what fits; strict loading is a row of its own."""
    model.load_state_dict(state, strict=False)


def through_file(state: Any) -> Any:
    """``state`` by way of torch.save and torch.load with its default arguments."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)
