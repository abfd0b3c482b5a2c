# SPDX-License-Identifier: Apache-2.0
"""Safetensors files that are replaced as a whole, checked by a digest, and never trusted when read."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsekit.state_tree import parse_json

DIGEST = "sha256"
PARTIAL = ".partial"


def digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a description and of all tensors in the order of their names: "name:dtype:shape:", then the bytes."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        found.update(f"{name}:{str(value.dtype).removeprefix('torch.')}:{list(value.shape)}:".encode())
        if value.numel():
            found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def write_tensors(file: Path, tensors: dict[str, Tensor], key: str, text: str) -> None:
    """Replace ``file`` by tensors (contiguous, on the CPU) and a description under ``key`` of the metadata.

    Raises:
        OSError: the file cannot be written; an earlier one is as it was, and nothing is left beside it.
    """
    metadata = {key: text, DIGEST: digest(text, tensors)}

    def write(target: str) -> None:
        try:
            save_file(tensors, target, metadata=metadata)
        except SafetensorError as error:
            raise OSError(f"{file}: expected a file that can be written, got {error}") from error

    replace_file(file, write)


def read_tensors(function: str, file: Path, key: str) -> tuple[dict[str, Tensor], str | None]:
    """Tensors of a safetensors file, and the description under ``key`` of its metadata if there is one.

    Raises:
        ValueError: no readable safetensors file, or one whose digest says that it is not what was written.
    """
    try:
        with safe_open(file, framework="pt") as content:
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (not a mapping)
            metadata = content.metadata() or {}
    # What torch cannot hold (a shape with too many entries, say) is a RuntimeError.
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        expected = "expected a readable safetensors file"
        raise ValueError(f"{function}: path: {expected}, got {str(file)!r} ({error})") from error
    text = metadata.get(key)
    if text is not None and DIGEST in metadata and metadata[DIGEST] != digest(text, tensors):
        raise ValueError(f"{function}: path: expected the content that was saved, got damaged {str(file)!r}")
    return tensors, text


def read_description(function: str, file: Path, key: str, text: str, version: int) -> dict[str, Any]:
    """The JSON object in ``text``, which has a "version" of at most ``version``; nothing else is checked."""
    try:
        description = parse_json(text)
    except ValueError as error:
        raise ValueError(
            f"{function}: path: expected JSON in the metadata {key!r}, got {error} (in {str(file)!r})"
        ) from error
    if not isinstance(description, dict):
        got = type(description).__name__
        raise ValueError(f"{function}: path: expected a JSON object in {key!r}, got {got} (in {str(file)!r})")
    found = description.get("version", version)
    if type(found) is not int or not 1 <= found <= version:
        raise ValueError(f"{function}: path: expected format version <= {version}, got {found!r} (in {str(file)!r})")
    return description


def replace_file(target: Path, write: Callable[[str], Any]) -> None:
    """Write a file next to ``target``, then rename it over: readers see the old one or the new one, never a part."""
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=PARTIAL, dir=target.parent)
    os.close(handle)
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, _permissions(target))
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """The new name survives a power failure too; not every system can open a folder."""
    if sys.platform != "win32":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_partial(target: Path) -> None:
    """Remove what processes killed while they wrote ``target`` have left; no other process may be writing it."""
    for stray in target.parent.glob(f".{target.name}.*{PARTIAL}"):
        stray.unlink(missing_ok=True)


def _permissions(target: Path) -> int:
    """Those of the file replaced, else what a newly made file gets; mkstemp alone would leave it to its owner."""
    if target.exists():
        return target.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask
