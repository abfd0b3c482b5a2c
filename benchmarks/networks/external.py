# SPDX-License-Identifier: Apache-2.0
"""Networks that others define: timm, torchvision, or a function of the user. No weights are ever downloaded."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from torch import nn

from sparsekit.benchmarks.imported import imported


def _package(name: str, spec: str) -> ModuleType:
    """The imported package, or a ValueError that says how to get it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        raise ValueError(
            f"build_network: name: {spec!r} expected the package {error.name} (pip install {error.name}), got none"
        ) from error


def _require_known(name: str, known: Sequence[str], spec: str) -> None:
    """Raises ValueError with the closest names unless `name` is known."""
    if name not in known:
        close = ", ".join(difflib.get_close_matches(name, known, n=5)) or f"{len(known)} others"
        raise ValueError(f"build_network: name: expected a network of {spec.partition(':')[0]} ({close}), got {spec!r}")


def _timm(name: str, spec: str, sizes: dict[str, int]) -> nn.Module:
    timm = _package("timm", spec)
    # A name that timm does not list could be an address on a hub, which it would contact.
    _require_known(name.partition(".")[0], timm.list_models(), spec)
    extra: dict[str, Any] = {}
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ValueError(f"build_network: name: expected a tag known to timm, got {spec!r}: {error}") from error
    if config is not None and config.fixed_input_size:
        extra["img_size"] = sizes["image_size"]
    return timm.create_model(name, pretrained=False, num_classes=sizes["classes"], in_chans=sizes["channels"], **extra)


def _torchvision(name: str, spec: str, sizes: dict[str, int]) -> nn.Module:
    models = _package("torchvision.models", spec)
    _require_known(name, models.list_models(module=models), spec)
    if sizes["channels"] != 3:
        raise ValueError(f"build_network: channels: expected 3 for {spec}, got {sizes['channels']}")
    return models.get_model(name, weights=None, num_classes=sizes["classes"])


def _function(spec: str, sizes: dict[str, int]) -> nn.Module:
    function = imported("build_network: name", spec)
    parameters = inspect.signature(function).parameters
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    network = function(**{key: value for key, value in sizes.items() if takes_all or key in parameters})
    if not isinstance(network, nn.Module):
        raise TypeError(f"build_network: name: expected {spec} to return a Module, got {type(network).__name__}")
    return network


def build_external(spec: str, *, classes: int, channels: int, image_size: int) -> nn.Module:
    """The network of "timm:NAME", "torchvision:NAME" or "module:function"; see build_network."""
    source, _, name = spec.partition(":")
    sizes = {"classes": classes, "channels": channels, "image_size": image_size}
    if source == "timm":
        return _timm(name, spec, sizes)
    if source == "torchvision":
        return _torchvision(name, spec, sizes)
    return _function(spec, sizes)
