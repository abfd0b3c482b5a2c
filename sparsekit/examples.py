# SPDX-License-Identifier: Apache-2.0
"""Example inputs: what a model is called with to see how it works."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.modes import kept_modes


def example_tensors(function: str, example: Any, least: int = 1) -> tuple[Tensor, ...]:
    """The inputs as a tuple of tensors.

    Args:
        function: whose argument ``example_inputs`` this is, for errors.
        example: a tensor, or a list or tuple of them for a model that takes several.
        least: entries that dim 0 of each has to have.

    Raises:
        TypeError: something else. ValueError: no tensor, or one with fewer entries.
    """
    inputs = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    if wrong := next((type(x).__name__ for x in inputs if not isinstance(x, Tensor)), None):
        raise TypeError(f"{function}: example_inputs: expected a tensor or a sequence of tensors, got {wrong}")
    if not inputs or any(x.ndim == 0 or len(x) < least for x in inputs):
        expected = f"inputs with {least} or more entries in dim 0"
        raise ValueError(f"{function}: example_inputs: expected {expected}, got {shapes(inputs)}")
    return tuple(x.detach() for x in inputs)


def shapes(inputs: Sequence[Tensor]) -> str:
    """The shapes of inputs, in words."""
    return "shapes " + ", ".join(str(tuple(x.shape)) for x in inputs) if inputs else "none"


def tried(function: str, model: nn.Module, inputs: Sequence[Tensor]) -> Any:
    """What the model gives for the inputs in eval mode, without gradients; its modes are left as they were.

    Raises:
        ValueError: it does not take them.
    """
    try:
        with kept_modes(model), torch.no_grad():
            return model.eval()(*inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        expected = "inputs that the model takes"
        raise ValueError(f"{function}: example_inputs: expected {expected}, got {shapes(inputs)}: {text}") from error
