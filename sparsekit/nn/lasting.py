# SPDX-License-Identifier: Apache-2.0
"""What lasts as long as a context: attributes of layers, and when contexts have to stand aside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from sparsekit.nn.masked import MaskedLayer


def recorded() -> bool:
    """Is a program being recorded (compile, export, jit or make_fx tracing)? It outlives what a context knows now."""
    if torch.compiler.is_compiling():
        return True
    return torch.jit.is_tracing() or get_proxy_mode() is not None  # pyright: ignore[reportPrivateImportUsage]


@contextmanager
def lasting(attribute: str, values: Sequence[tuple[nn.Module, Any]]) -> Iterator[None]:
    """Gives masked layers a value of an attribute within the context, and back what they had before.

    Past ``nn.Module.__setattr__``, which would register a Parameter. A layer that is finalized inside is left alone.
    """
    before = [getattr(layer, attribute) for layer, _ in values]
    try:
        for layer, value in values:
            object.__setattr__(layer, attribute, value)
        yield
    finally:
        for (layer, _), value in zip(values, before, strict=True):
            if isinstance(layer, MaskedLayer):
                object.__setattr__(layer, attribute, value)
