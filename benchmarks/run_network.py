# SPDX-License-Identifier: Apache-2.0
"""The network that the recipe of a row names, rebuilt for what is stored of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.benchmarks.data import load_data
from sparsekit.benchmarks.networks import build_network

SIZES = {"digits": (10, 1, 8), "cifar10": (10, 3, 32), "cifar100": (100, 3, 32)}
"""Classes, channels and pixels per side, so that nobody needs the data to build the network."""


def network_of(config: Mapping[str, Any], root: str | Path) -> tuple[nn.Module, Tensor]:
    """The plain network of a recipe as in rows, and one image of ones [1, channels, size, size].

    Args:
        config: with "data", "network" and perhaps "image_size". A network of someone else's making ("module:function") is
            refused, because a file must not say which code to run.
        root: where data sets lie; of those known here only the sizes are needed.

    Raises:
        ValueError: no such network, or data that are not there.
    """
    network, name = str(config.get("network")), str(config.get("data"))
    if ":" in network:
        raise ValueError(f"network: expected one of sparsekit's own to build it from a row, got {network!r}")
    if name in SIZES:
        classes, channels, size = SIZES[name]
    else:
        data = load_data(name, seed=0, limit=1, root=root, image_size=config.get("image_size"))
        classes, channels, size = data.classes, data.channels, data.image_size
    size = config.get("image_size") or size
    model = build_network(network, classes=classes, channels=channels, image_size=size, seed=0)
    return model, torch.ones(1, channels, size, size)
