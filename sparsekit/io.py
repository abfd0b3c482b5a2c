# SPDX-License-Identifier: Apache-2.0
"""Saving and loading a sparsified model: one safetensors file with packed masks, described by JSON. No pickles.

``path/model.safetensors`` holds every tensor of the state_dict (masks as int32 words) and, in its metadata under
"sparsity.json", the description that ``path/sparsity.json`` repeats for people. Because loading needs the first file
alone, replacing that one file is what commits a save: a killed save leaves the old checkpoint whole.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sparsekit import ops
from sparsekit.mask import Mask, Masks
from sparsekit.nn import MaskedLayer, finalize, masked_layers, set_masks, sparsify
from sparsekit.nn import masks as current_masks
from sparsekit.nn.masked import WORDS
from sparsekit.ops import replicas
from sparsekit.ops.masks import choose
from sparsekit.tensor_file import read_tensors, write_described

FILE, SIDECAR, FORMAT, VERSION = "model.safetensors", "sparsity.json", "sparsekit", 1
MASK_SOURCES = ("stored", "dense", "infer")


def save(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Save a sparsified model into the directory ``path``, atomically; returns the directory.

    Args:
        model: sparsified, compiled or not, alone or in DistributedDataParallel; every entry of its state_dict must be a tensor.
        path: directory, made if needed; an earlier checkpoint in it is replaced only once the new one is complete.

    Raises:
        ValueError: nothing is masked, or the state holds something else than tensors. TypeError: no Module, or no path.
    """
    check_arguments("save", model, path)
    model = replicas.plain_network("save", model)
    if not masked_layers(model):
        raise ValueError("save: model: expected masked layers, got none; call sparsify first, or save its state_dict")
    tensors, ties = unshared("save", model.state_dict())
    masks = current_masks(model)
    layers = {name: {"shape": list(mask.shape), "kept": mask.count()} for name, mask in masks.items()}
    description = {"format": FORMAT, "version": VERSION, "sparsity": masks.sparsity}
    description["mask_hash"] = masks.hash()
    description |= {"layers": layers, "ties": ties}
    folder = Path(path)
    write_described(folder / FILE, tensors, SIDECAR, description)
    return folder


def unshared(function: str, state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors to store once each, on the CPU, and the names that repeat one of them (tied weights).

    Raises:
        ValueError: something is no tensor, or one without data; the error names ``function``.
    """
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor) or is_lazy(value) or value.is_meta:
            kind = "a tensor without data" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{function}: model: expected a state of tensors, got {kind} in {name!r}")
        # With the strides: a square weight and its transpose share storage, shape and dtype, yet not their values.
        key = (value.device, value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
        if value.numel() and key in first:
            ties[name] = first[key]
        else:
            first[key] = name
            # A copy: two views of one storage, or a view into a larger one, must not drag the whole along.
            tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors, ties


def check_arguments(function: str, model: Any, path: Any) -> None:
    """Raise TypeError, which names the function, unless the arguments are a Module and a path."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{function}: path: expected a str or Path, got {type(path).__name__}")


def read_saved(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of the file, tied ones under each of their names, and its description, empty if there is none."""
    if not file.is_file():
        folder = file.parent if file.name == FILE else file
        raise ValueError(f"load: path: expected a directory with {FILE} or a safetensors file, got {str(folder)!r}")
    tensors, description, metadata = read_tensors("load", file, SIDECAR, FORMAT, VERSION)
    if description is None:
        # So safetensors itself, and with it the Hugging Face hub, writes down tied weights.
        tied = {name: first for name, first in metadata.items() if name not in tensors and first in tensors}
        return tensors | {name: tensors[first] for name, first in tied.items()}, {}
    ties = description.get("ties", {})
    if not (isinstance(ties, dict) and all(isinstance(original, str) for original in ties.values())):
        raise ValueError(f"load: path: expected ties of name to name, got {ties!r}")
    for name, original in ties.items():
        if original not in tensors or name in tensors:
            raise ValueError(f"load: path: expected ties of stored tensors, got {name!r} tied to {original!r}")
    tensors |= {name: tensors[original] for name, original in ties.items()}
    return tensors, description


def _check_hash(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """The masks are those that the description was written for, if it says so."""
    wanted, layers = description.get("mask_hash"), description.get("layers")
    if wanted is None:
        return
    try:
        found = {n: Mask(tensors[f"{n}.{WORDS}" if n else WORDS], tuple(x["shape"])) for n, x in layers.items()}  # pyright: ignore
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"load: path: expected masks of the layers described, got others ({error})") from error
    if (digest := Masks(found).hash()) != wanted:
        raise ValueError(f"load: path: expected masks of hash {wanted!r}, got {digest!r}")


def load(model: nn.Module, path: str | os.PathLike[str], masks: str = "stored") -> nn.Module:
    """Load a checkpoint into ``model``, plain or sparsified, in place.

    Args:
        model: of the architecture saved. Layers that have masks in the checkpoint become masked layers.
        path: what ``save`` wrote, or any safetensors file of a plain state_dict.
        masks: "stored" takes the masks of the checkpoint; for one without masks, "dense" keeps everything and "infer"
            takes zero weights as pruned (of the layers that are masked already, else of all that can be).

    Returns:
        ``model``.

    Raises:
        ValueError: no such file, not safetensors, a newer format, keys, shapes or masks that do not fit, or no masks
            where ``masks="stored"``. The model is unchanged then. TypeError: no Module, or no path.
    """
    check_arguments("load", model, path)
    given, model = model, replicas.plain_network("load", model)
    choose("load", "masks", masks, MASK_SOURCES)
    file = Path(path)
    file = file / FILE if file.is_dir() else file
    try:
        _load(model, file, masks)
    except ValueError as error:
        if str(file) in str(error):
            raise
        raise ValueError(f"{error} (in {str(file)!r})") from error
    return given


def _load(model: nn.Module, file: Path, masks: str) -> None:
    tensors, description = read_saved(file)
    stored = {name[: -len(WORDS)].rstrip("."): words for name, words in tensors.items() if _is_mask(name)}
    present = masked_layers(model)
    lacking = [name for name in present if name not in stored]
    if masks == "stored" and (lacking or not stored):
        raise ValueError(
            f"Checkpoint has no masks for {len(lacking) or 'all'} sparse layers; pass `masks='infer'` to take zeros as "
            "masks, or `masks='dense'`"
        )
    plain = {name: value for name, value in tensors.items() if not _is_mask(name)}
    _check_fit(model, plain)
    _check_masks(model, stored)
    _check_hash(description, tensors)
    if masks != "stored":
        # What the checkpoint pruned stays zero, even where its masks are not taken over.
        pruned = {f"{name}.weight" if name else "weight": words for name, words in stored.items()}
        plain |= {key: ops.mask_weight(plain[key], words) for key, words in pruned.items()}
    _attach(model, stored, bool(present))
    model.load_state_dict(plain, strict=False)
    taken = masks == "stored"
    layers = masked_layers(model).items()
    set_masks(model, {n: Mask(stored[n], tuple(v.weight.shape)) if taken else _inferred(v, masks) for n, v in layers})


def _is_mask(name: str) -> bool:
    return name.split(".")[-1] == WORDS


def _attach(model: nn.Module, stored: Collection[str], present: bool) -> None:
    """Mask the layers that have masks in the checkpoint; with neither these nor masks in the model, all that can be."""
    modules = dict(model.named_modules(remove_duplicate=False))
    wanted = {id(modules[name]) for name in stored if not isinstance(modules[name], MaskedLayer)}
    # Under the first name of each, which is the one that sparsify knows.
    missing = [name for name, module in model.named_modules() if id(module) in wanted]
    if missing:
        # sparsify says no to a model without any layer to mask; here that is one more wrong mask.
        with suppress(ValueError):
            sparsify(model, only=None if missing == [""] else [glob.escape(name) for name in missing])
        if wrong := [name for name in missing if not isinstance(modules[name], MaskedLayer)]:
            for name in set(missing) - set(wrong):
                finalize(modules[name])
            raise ValueError(f"load: path: expected masks of layers that can be masked, got one for {wrong[0]!r}")
    elif not (stored or present):
        sparsify(model)


def _inferred(layer: MaskedLayer, masks: str) -> Mask:
    weight = layer.weight.detach()
    return Mask.full(weight.shape, weight.device) if masks == "dense" else Mask.from_dense(weight != 0)


def _check_fit(model: nn.Module, plain: Mapping[str, Tensor]) -> None:
    """Raise before anything is touched if names, shapes or kinds of number differ from the model's."""
    own = {name: value for name, value in model.state_dict().items() if not _is_mask(name)}
    for problem, names in (("missing", own.keys() - plain.keys()), ("unknown", plain.keys() - own.keys())):
        if names:
            raise ValueError(f"load: path: expected the model's keys, got {problem} {', '.join(sorted(names)[:5])}")
    for name, value in own.items():
        if is_lazy(value):
            raise ValueError(f"load: {name}: expected an initialised parameter, got a lazy one; run one batch first")
        if value.shape != plain[name].shape:
            raise ValueError(f"load: {name}: expected shape {tuple(value.shape)}, got {tuple(plain[name].shape)}")
        if not torch.can_cast(plain[name].dtype, value.dtype):
            raise ValueError(f"load: {name}: expected dtype {value.dtype} or alike, got {plain[name].dtype}")


def _check_masks(model: nn.Module, stored: Mapping[str, Tensor]) -> None:
    """Raise before anything is touched if a mask has no layer, or does not fit the one it has."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, words in stored.items():
        weight = getattr(modules.get(name), "weight", None)
        if not isinstance(weight, Tensor):
            raise ValueError(f"load: path: expected masks of the model's layers, got one for {name!r}")
        try:
            mask = Mask(words, tuple(weight.shape))
        except (TypeError, ValueError) as error:
            raise ValueError(f"load: masks[{name!r}]: {error}") from error
        if not torch.equal(ops.pack_mask(mask.dense()), words):
            raise ValueError(f"load: masks[{name!r}]: expected zero padding bits, got set ones")
