# SPDX-License-Identifier: Apache-2.0
"""The example of an export, and how far what was written is from the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

# Largest difference from the eager model, as a part of its largest output (at least 1); sums in another order differ.
TOLERANCE = {"torch-export": 1e-5, "onnx": 1e-4, "compact": 1e-4}


def checked_inputs(example: Any) -> tuple[Tensor, ...]:
    """The example as a tuple of tensors on the CPU, all with the same number of entries, two or more, in dim 0."""
    inputs = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    if not inputs or not all(isinstance(x, Tensor) and x.ndim and len(x) >= 2 for x in inputs):
        raise ValueError(f"export: example: expected inputs with two or more entries in dim 0, got {_shapes(example)}")
    if len({len(x) for x in inputs}) > 1:
        raise ValueError(f"export: example: expected inputs of one length in dim 0, got {_shapes(inputs)}")
    return tuple(x.detach().cpu() for x in inputs)


def _shapes(example: Any) -> str:
    if isinstance(example, Tensor):
        return f"shape {tuple(example.shape)}"
    if isinstance(example, (tuple, list)) and example and all(isinstance(x, Tensor) for x in example):
        return "shapes " + ", ".join(str(tuple(x.shape)) for x in example)
    return "none" if example is None else type(example).__name__


def batches_of(inputs: tuple[Tensor, ...]) -> tuple[int, ...]:
    """Sizes of the batches to try: one entry, the example's, and one more."""
    return tuple(sorted({1, len(inputs[0]), len(inputs[0]) + 1}))


def _resized(inputs: tuple[Tensor, ...], n: int) -> tuple[Tensor, ...]:
    """The first n entries, beginning anew where there are fewer."""
    return tuple(x[torch.arange(n) % len(x)] for x in inputs)


def try_out(eager: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """What is wrong with the example shows here, before anything is traced or written."""
    try:
        with torch.no_grad():
            eager(*inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"export: example: expected inputs that the model takes, got {_shapes(inputs)}: {text}"
        ) from error


def largest_difference(eager: nn.Module, run: Callable[..., Any], inputs: tuple[Tensor, ...], form: str) -> float:
    """Largest absolute difference of the exported model's outputs from the eager ones, for batches of every size tried.

    Args:
        eager: the model. run: what was exported, called alike. form: its format, for TOLERANCE and errors.

    Raises:
        RuntimeError: it is too large.
    """
    return max(_difference(eager, run, _resized(inputs, n), form) for n in batches_of(inputs))


def _difference(eager: nn.Module, run: Callable[..., Any], inputs: tuple[Tensor, ...], form: str) -> float:
    with torch.no_grad():
        expected, got = _flat(eager(*inputs)), _flat(run(*inputs))
    if [x.shape for x in expected] != [x.shape for x in got]:
        sizes = [tuple(x.shape) for x in expected], [tuple(x.shape) for x in got]
        raise RuntimeError(f"export: {form}: expected outputs of shapes {sizes[0]}, got {sizes[1]}")
    worst = 0.0
    for x, y in zip(expected, got, strict=True):
        if not torch.equal(x.isfinite(), y.isfinite()):
            raise RuntimeError(f"export: {form}: expected inf and NaN where the eager model has them, got others")
        a, b = (torch.where(z.isfinite(), z.double(), 0.0) for z in (x, y))
        gap, size = (float(z.abs().max()) if z.numel() else 0.0 for z in (a - b, a))
        allowed = max(TOLERANCE[form], torch.finfo(x.dtype).eps * 8 if x.is_floating_point() else 0.0) * max(size, 1.0)
        if gap > allowed:
            expected_text = f"outputs within {allowed:.2g} of the eager model"
            raise RuntimeError(f"export: {form}: expected {expected_text}, got a difference of {gap:.2g}")
        worst = max(worst, gap)
    return worst


def _flat(output: Any) -> list[Tensor]:
    """The tensors of an output, whatever holds them."""
    return [x for x in tree_leaves(output) if isinstance(x, Tensor)]
