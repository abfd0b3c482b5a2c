# SPDX-License-Identifier: Apache-2.0
"""Safetensors files that are replaced as a whole, checked by a digest, and never trusted when read."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsekit.state_tree import parse_json

if sys.platform != "win32":
    import fcntl

DIGEST, ZEROS = "sha256", "0" * 64
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


def write_tensors(file: Path, tensors: dict[str, Tensor], key: str, description: Mapping[str, Any]) -> str:
    """Replace ``file`` by tensors (contiguous, on the CPU) and a description under ``key`` of the metadata.

    Returns:
        The description as JSON, with the digest of all as "sha256": computed with zeros in its place.

    Raises:
        OSError: the file cannot be written; an earlier one is as it was, and nothing is left beside it.
    """
    text = json.dumps({**description, DIGEST: ZEROS}, allow_nan=False)
    text = _with_digest(text, ZEROS, digest(text, tensors))

    replace_file(file, lambda target: save_file(tensors, target, metadata={key: text}))
    return text


def write_described(file: Path, tensors: dict[str, Tensor], sidecar: str, description: Mapping[str, Any]) -> None:
    """``write_tensors`` under the key ``sidecar``, and the description beside it in a file of that name; makes the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = write_tensors(file, tensors, sidecar, description)
    replace_text(file.parent / sidecar, json.dumps(json.loads(text), indent=2) + "\n")


def _with_digest(text: str, old: str, new: str) -> str:
    """The digest is the last entry of the description."""
    before, _, after = text.rpartition(old)
    return before + new + after


def read_tensors(
    function: str, file: Path, key: str, form: str, version: int
) -> tuple[dict[str, Tensor], dict[str, Any] | None, dict[str, str]]:
    """Tensors of a safetensors file, the description under ``key`` of its metadata if there is one, and the metadata.

    Raises:
        ValueError: no readable safetensors file; a description that is no JSON object, or of a version above ``version``;
            content that is not what the digest in the description was made of; a description without a digest, or one of
            format ``form`` under another key, as damage leaves them.
    """
    try:
        with safe_open(file, framework="pt") as content:
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (not a mapping)
            metadata = content.metadata() or {}
        _check_names(file)
    # What torch cannot hold (a shape with too many entries, say) is a RuntimeError.
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        expected = "expected a readable safetensors file"
        raise ValueError(f"{function}: path: {expected}, got {str(file)!r} ({error})") from error
    try:
        if key not in metadata:
            _check_foreign(metadata, key, form)
            return tensors, None, metadata
        description = _parsed(metadata[key], key, version)
        _check_digest(description, metadata[key], tensors)
    except ValueError as error:
        raise ValueError(f"{function}: path: {error} (in {str(file)!r})") from error
    return tensors, description, metadata


def _check_digest(description: Mapping[str, Any], text: str, tensors: Mapping[str, Tensor]) -> None:
    """Only null switches the check off: were the key enough, one flipped bit in its name would do so too."""
    if DIGEST not in description:
        raise ValueError(f"expected a description with {DIGEST!r}, got a damaged one")
    if (found := description[DIGEST]) is None:
        return
    if not (isinstance(found, str) and found) or found != digest(_with_digest(text, found, ZEROS), tensors):
        raise ValueError("expected the content that was saved, got a damaged one")


def _check_foreign(metadata: Mapping[str, str], key: str, form: str) -> None:
    """Raise ValueError for a description of ours whose key is damaged; files of others describe themselves otherwise."""
    for name, text in metadata.items():
        try:
            found = parse_json(text)
        except ValueError:
            continue
        if isinstance(found, dict) and found.get("format") == form:
            raise ValueError(f"expected the description under {key!r}, got it under {name!r}: damaged")


def _check_names(file: Path) -> None:
    """Raise ValueError for a name that is there twice, of which safetensors takes the last without a word."""
    with open(file, "rb") as content:
        (size,) = struct.unpack("<Q", content.read(8))
        parse_json(content.read(size).decode())


def _parsed(text: str, key: str, version: int) -> dict[str, Any]:
    try:
        description = parse_json(text)
    except ValueError as error:
        raise ValueError(f"expected JSON in the metadata {key!r}, got {error}") from error
    if not isinstance(description, dict):
        raise ValueError(f"expected a JSON object in {key!r}, got {type(description).__name__}")
    found = description.get("version", version)
    if type(found) is not int or not 1 <= found <= version:
        raise ValueError(f"expected format version <= {version}, got {found!r}")
    return description


def replace_file(target: Path, write: Callable[[str], Any]) -> None:
    """Write a file next to ``target``, then rename it over: readers see the old one or the new one, never a part.

    What killed processes left of earlier attempts is removed.

    Raises:
        OSError: it cannot be written; ``target`` is as it was.
    """
    remove_partial(target)
    with _locked_folder(target) as folder:
        temporary = folder / target.name
        try:
            write(str(temporary))
        except SafetensorError as error:
            raise OSError(f"{target}: expected a file that can be written, got {error}") from error
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, _permissions(target))
        os.replace(temporary, target)
        _sync_folder(target.parent)


def replace_text(target: Path, text: str) -> None:
    """``replace_file`` by a text in UTF-8; makes the folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_file(target, lambda file: Path(file).write_text(text, encoding="utf-8"))


@contextmanager
def _locked_folder(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` that is locked while in use, then removed with all that is in it.

    A folder, as what writes may replace a file, and with it a lock on that file, or have a temporary one of its own.
    """
    folder, handle = _new_folder(target)
    while not folder.exists():  # taken for a stray before it was locked
        os.close(handle)
        folder, handle = _new_folder(target)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle >= 0:
            os.close(handle)


def _new_folder(target: Path) -> tuple[Path, int]:
    """A folder and its open, locked handle; -1 where folders cannot be opened."""
    folder = tempfile.mkdtemp(prefix=f".{target.name}.", suffix=PARTIAL, dir=target.parent)
    if sys.platform == "win32":
        return Path(folder), -1
    handle = os.open(folder, os.O_RDONLY)
    _locked(handle, wait=True)
    return Path(folder), handle


def _sync_folder(folder: Path) -> None:
    """The new name survives a power failure too; not every system can open a folder."""
    if sys.platform != "win32":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _locked(handle: int, wait: bool = False) -> bool:
    """Lock an open file unless another process has; the lock ends with the process. False where locks do not exist."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def remove_partial(target: Path) -> None:
    """Remove what processes killed while they wrote ``target`` have left, and nothing that is being written."""
    if sys.platform == "win32":
        return
    for stray in target.parent.glob(f".{glob.escape(target.name)}.*{PARTIAL}"):
        with suppress(OSError):  # gone by now, or of another user
            handle = os.open(stray, os.O_RDONLY)
            if _locked(handle):
                shutil.rmtree(stray, ignore_errors=True)
            os.close(handle)


def _permissions(target: Path) -> int:
    """Those of the file replaced, else what a newly made file gets; mkstemp alone would leave it to its owner."""
    if target.exists():
        return target.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask
