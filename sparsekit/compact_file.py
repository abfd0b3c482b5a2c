# SPDX-License-Identifier: Apache-2.0
"""A compacted model on disk: safetensors, and JSON that says how wide every layer is. Nothing is pickled.

``path/model.safetensors`` holds every tensor and, in its metadata under "compact.json", the description that
``path/compact.json`` repeats for people. Replacing that one file commits a save.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsekit.channel_rules import CONVOLUTIONS, NORMS, TRANSPOSED, PadsChannels
from sparsekit.io import FILE, check_arguments, unshared
from sparsekit.nn import masked_layers
from sparsekit.tensor_file import read_tensors, write_described

SIDECAR, FORMAT, VERSION = "compact.json", "sparsekit-compact", 1


def save_compact(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Save a plain model whose layers may be narrower than those of its class; returns the directory.

    Args:
        model: as ``compact`` returns it; every entry of its state_dict must be a tensor.
        path: directory, made if needed; an earlier model in it is replaced only once the new one is complete.

    Raises:
        ValueError: masked layers, or a state that holds something else than tensors. TypeError: no Module, or no path.
    """
    check_arguments("save_compact", model, path)
    if masked_layers(model):
        raise ValueError("save_compact: model: expected plain layers, got masked ones; call compact first, or save")
    tensors, ties = unshared("save_compact", model.state_dict())
    description: dict[str, Any] = {"format": FORMAT, "version": VERSION, "ties": ties}
    description["layers"] = {name: sizes for name, module in model.named_modules() if (sizes := _sizes(module))}
    folder = Path(path)
    write_described(folder / FILE, tensors, SIDECAR, description)
    return folder


def load_compact(model: nn.Module | Callable[[], nn.Module], path: str | os.PathLike[str]) -> nn.Module:
    """A compacted model from disk.

    Args:
        model: the plain model in its full size, which is left as it is, or a function that makes one; its weights do not
            matter.
        path: what ``save_compact`` wrote.

    Returns:
        A new model with the widths and tensors of the file, on the device and in the modes of the given one.

    Raises:
        ValueError: no such file, a damaged one, a newer format, or one of a model of another architecture.
        TypeError: no Module and no function that makes one, or no path.
    """
    made = model() if callable(model) and not isinstance(model, nn.Module) else model
    check_arguments("load_compact", made, path)
    file = Path(path) / FILE
    if not file.is_file():
        raise ValueError(f"load_compact: path: expected a directory with {FILE}, got {str(path)!r}")
    tensors, description, _ = read_tensors("load_compact", file, SIDECAR, FORMAT, VERSION)
    if description is None or description.get("format") != FORMAT:
        raise ValueError(f"load_compact: path: expected what save_compact wrote, got another file ({str(file)!r})")
    small = copy.deepcopy(made)
    if masked_layers(small):
        raise ValueError("load_compact: model: expected plain layers, got masked ones")
    try:
        _resize(small, description.get("layers"))
        small.load_state_dict(_untied(tensors, description.get("ties")), strict=True)
    except (RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"load_compact: path: expected a model of this architecture, got another: {text}") from error
    return small


def _sizes(module: nn.Module) -> dict[str, int]:
    """Attributes that say how wide a layer is; none of modules without such."""
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        names = ("in_channels", "out_channels", "groups")
    elif isinstance(module, nn.Linear):
        names = ("in_features", "out_features")
    elif isinstance(module, NORMS):
        names = ("num_features",)
    elif isinstance(module, nn.PReLU):
        names = ("num_parameters",)
    else:
        names = ("before", "behind") if isinstance(module, PadsChannels) else ()
    return {name: getattr(module, name) for name in names}


def _resize(model: nn.Module, layers: Any) -> None:
    """Give layers the widths of the file, all of which have to be there and no wider than now."""
    modules = dict(model.named_modules())
    own = {name: sizes for name, module in modules.items() if (sizes := _sizes(module))}
    if not isinstance(layers, Mapping) or layers.keys() != own.keys():
        given = layers.keys() if isinstance(layers, Mapping) else {}
        raise ValueError(
            f"expected the layers of the model, got a difference in {min(own.keys() ^ given, default='all')!r}"
        )
    for name, sizes in layers.items():
        module, old = modules[name], own[name]
        least = 0 if isinstance(module, PadsChannels) else 1
        fits = isinstance(sizes, Mapping) and sizes.keys() == old.keys()
        if not fits or not all(type(n) is int and least <= n <= old[key] for key, n in sizes.items()):
            raise ValueError(f"{name}: expected sizes of at most {old}, got {sizes}")
        for key, n in sizes.items():
            setattr(module, key, n)
        for key, shape in _shapes(module).items():
            tensor: Any = getattr(module, key)
            if tensor is not None and tuple(tensor.shape) != shape:
                # Empty memory is never read: loading is strict, so every tensor comes from the file.
                empty = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
                parameter = isinstance(tensor, nn.Parameter)
                setattr(module, key, nn.Parameter(empty, requires_grad=tensor.requires_grad) if parameter else empty)


def _shapes(module: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a layer of its present widths."""
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        pair = (
            (module.in_channels, module.out_channels)
            if module.transposed
            else (module.out_channels, module.in_channels)
        )
        weight = (pair[0], pair[1] // module.groups, *module.kernel_size)
        return {"weight": weight, "bias": (module.out_channels,)}
    if isinstance(module, nn.Linear):
        return {"weight": (module.out_features, module.in_features), "bias": (module.out_features,)}
    if isinstance(module, nn.PReLU):
        return {"weight": (module.num_parameters,)}
    if isinstance(module, NORMS):
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (module.num_features,))
    return {}


def _untied(tensors: Mapping[str, Tensor], ties: Any) -> dict[str, Tensor]:
    """All tensors, tied ones under each of their names."""
    if not isinstance(ties, Mapping) or not all(isinstance(o, str) and o in tensors for o in ties.values()):
        raise ValueError(f"expected ties of stored tensors, got {ties!r}")
    return {**tensors, **{name: tensors[original] for name, original in ties.items()}}
