# SPDX-License-Identifier: Apache-2.0
"""Modes of modules, train or eval, that a pass of ours changes and gives back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Within it modules may change between train and eval mode; afterwards each of them is in the mode that it had."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
