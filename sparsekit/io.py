# SPDX-License-Identifier: Apache-2.0
"""Saving and loading a sparsified model: one safetensors file with packed masks, described by JSON. No pickles.

``path/model.safetensors`` holds every tensor of the state_dict (masks as int32 words) and, in its metadata under
"sparsity.json", the description that ``path/sparsity.json`` repeats for people. Because loading needs the first file
alone, replacing that one file is what commits a save: a killed save leaves the old checkpoint whole.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sparsekit import ops
from sparsekit.mask import Mask
from sparsekit.nn import MaskedLayer, masked_layers, set_masks, sparsify
from sparsekit.nn.masked import WORDS

FILE, SIDECAR, VERSION = "model.safetensors", "sparsity.json", 1
MASK_SOURCES = ("stored", "dense", "infer")


def save(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Save a sparsified model into the directory ``path``, atomically.

    Args:
        model: sparsified; every entry of its state_dict must be a tensor.
        path: directory, made if needed; an earlier checkpoint in it is replaced only once the new one is complete.

    Returns:
        The directory.

    Raises:
        ValueError: nothing is masked, or the state holds something else than tensors.
    """
    layers = masked_layers(model)
    if not layers:
        raise ValueError("save: model: expected masked layers, got none; call sparsify first, or save its state_dict")
    tensors, ties = _unshared(model.state_dict())
    described = {name: {"shape": list(m.shape), "kept": m.count()} for name, m in ((n, v.mask) for n, v in layers.items())}
    numel = sum(layer.weight.numel() for layer in layers.values())
    description = {
        "format": "sparsekit",
        "version": VERSION,
        "sparsity": 1 - sum(d["kept"] for d in described.values()) / numel if numel else 0.0,
        "layers": described,
        "ties": ties,
    }
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(description, indent=2)
    replace_file(folder / FILE, lambda target: save_file(tensors, target, metadata={SIDECAR: text}))
    replace_file(folder / SIDECAR, lambda target: Path(target).write_text(text + "\n"))
    return folder


def _unshared(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors to store once each, and the names that repeat one of them (tied weights)."""
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    first: dict[tuple[int, tuple[int, ...], torch.dtype], str] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"save: model: expected a state of tensors, got {type(value).__name__} in {name!r}")
        key = (value.data_ptr(), tuple(value.shape), value.dtype)
        if value.numel() and key in first:
            ties[name] = first[key]
        else:
            first[key] = name
            # A copy: two views of one storage, or a view into a larger one, must not drag the whole along.
            tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors, ties


def replace_file(target: Path, write: Callable[[str], Any]) -> None:
    """Write a file next to ``target``, then rename it over: readers see the old one or the new one, never a part."""
    handle, temporary = tempfile.mkstemp(prefix=target.name, dir=target.parent)
    os.close(handle)
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    file = Path(path)
    file = file / FILE if file.is_dir() else file
    if not file.is_file():
        raise ValueError(f"load: path: expected a directory with {FILE} or a safetensors file, got {str(path)!r}")
    try:
        with safe_open(file, framework="pt") as content:
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (not a mapping)
            metadata = content.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"load: path: expected a readable safetensors file, got {str(file)!r} ({error})") from error
    description = json.loads(metadata[SIDECAR]) if SIDECAR in metadata else {}
    if description.get("version", VERSION) > VERSION:
        raise ValueError(f"load: path: expected format version <= {VERSION}, got {description['version']}")
    for name, original in description.get("ties", {}).items():
        tensors[name] = tensors[original]
    return tensors, description


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
        ValueError: no such file, not safetensors, a newer format, keys or shapes that do not fit, or no masks where
            ``masks="stored"``. The model is unchanged then.
    """
    ops.masks.choose("load", "masks", masks, MASK_SOURCES)
    tensors, _ = _read(path)
    stored = [name[: -len(WORDS)].rstrip(".") for name in tensors if name.split(".")[-1] == WORDS]
    present = masked_layers(model)
    if masks == "stored" and not stored:
        count = len(present) or "all"
        raise ValueError(
            f"Checkpoint has no masks for {count} sparse layers; pass `masks='infer'` to take zeros as masks, "
            "or `masks='dense'`"
        )
    plain = {name: value for name, value in tensors.items() if name.split(".")[-1] != WORDS}
    _check_fit(model, plain)
    if stored:
        _check_masks(model, tensors, stored)
    _attach(model, stored, bool(present))
    model.load_state_dict(plain, strict=False)
    new = {
        name: Mask(tensors[f"{name}.{WORDS}" if name else WORDS], tuple(layer.weight.shape))
        if masks == "stored"
        else _inferred(layer, masks)
        for name, layer in masked_layers(model).items()
        if masks != "stored" or name in stored
    }
    set_masks(model, new)
    return model


def _attach(model: nn.Module, stored: list[str], present: bool) -> None:
    modules = dict(model.named_modules())
    missing = [name for name in stored if not isinstance(modules[name], MaskedLayer)]
    if missing or not (stored or present):
        sparsify(model, only=missing or None)


def _inferred(layer: MaskedLayer, masks: str) -> Mask:
    weight = layer.weight.detach()
    return Mask.full(weight.shape, weight.device) if masks == "dense" else Mask.from_dense(weight != 0)


def _check_fit(model: nn.Module, plain: Mapping[str, Tensor]) -> None:
    """Raise before anything is touched if names or shapes differ from the model's."""
    own = {name: value for name, value in model.state_dict().items() if name.split(".")[-1] != WORDS}
    for problem, names in (("missing", own.keys() - plain.keys()), ("unknown", plain.keys() - own.keys())):
        if names:
            raise ValueError(f"load: path: expected the model's keys, got {problem} {', '.join(sorted(names)[:5])}")
    for name, value in own.items():
        if value.shape != plain[name].shape:
            raise ValueError(f"load: {name}: expected shape {tuple(value.shape)}, got {tuple(plain[name].shape)}")


def _check_masks(model: nn.Module, tensors: Mapping[str, Tensor], stored: list[str]) -> None:
    modules = dict(model.named_modules())
    for name in stored:
        if name not in modules or not isinstance(getattr(modules[name], "weight", None), Tensor):
            raise ValueError(f"load: path: expected masks of the model's layers, got one for {name!r}")
        words = tensors[f"{name}.{WORDS}" if name else WORDS]
        shape = tuple(modules[name].weight.shape)
        mask = Mask(words, shape)
        if not torch.equal(ops.pack_mask(mask.dense()), words):
            raise ValueError(f"load: {name}.{WORDS}: expected zero padding bits, got set ones")
