# SPDX-License-Identifier: Apache-2.0
"""Results as rows: one JSON object per line, appended atomically, readable after a crash."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

if sys.platform != "win32":
    import fcntl

Row = dict[str, Any]

log = logging.getLogger(__name__)


def append_row(path: str | Path, row: Mapping[str, Any]) -> None:
    """Appends `row` as one line and returns once it is on the disk; makes missing folders.

    Several processes may append to one file. A line that a killed process left unfinished is removed first.

    Args:
        path: a .jsonl file.
        row: JSON values; tensors, arrays and paths are converted, numbers that are not finite become null.

    Raises:
        TypeError: a key that is not a string, or a value without a JSON form.
        OSError: the disk is full, or the file cannot be written; the next row removes what was written of this one.
    """
    line = json.dumps(_plain(row, "row"), allow_nan=False).encode() + b"\n"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX)  # until close
        line = _mend_tail(file, path) + line
        while line:
            line = line[os.write(file, line) :]
        os.fsync(file)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(file)


def appended(path: str | Path, rows: Iterable[Row]) -> Iterator[Row]:
    """The rows as they come, each once it is in the file; see `append_row`."""
    for row in rows:
        append_row(path, row)
        yield row


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a file, or of all .jsonl files directly in a folder in the order of their names.

    An unfinished last line is skipped with a logged warning: it is what a killed process leaves.

    Raises:
        ValueError: the path does not exist, or another line is not a JSON object.
    """
    path = Path(path)
    if path.is_dir():
        return [row for file in sorted(path.glob("*.jsonl")) for row in _read_file(file)]
    if not path.is_file():
        raise ValueError(f"read_rows: path: expected a file or folder, got {str(path)!r}, which does not exist")
    return list(_read_file(path))


def rows_so_far(path: str | Path) -> list[Row]:
    """`read_rows`, or no rows where nothing has been written yet."""
    return read_rows(path) if Path(path).exists() else []


def _read_file(path: Path) -> Iterator[Row]:
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _parse(line)
        if row is not None:
            yield row
        elif number == len(lines):
            log.warning("%s:%d: unfinished last line skipped", path, number)
        else:
            raise ValueError(f"read_rows: {path}:{number}: expected a JSON object, got {line[:80]!r}")


def _parse(line: bytes) -> Row | None:
    """The JSON object in `line`, or None."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _mend_tail(file: int, path: Path) -> bytes:
    """Cuts an unfinished last line off an open file; returns the newline that a finished one lacks, else nothing."""
    size = os.fstat(file).st_size
    if size == 0 or _read_at(file, size - 1, 1) == b"\n":
        return b""
    content = _read_at(file, 0, size)
    start = content.rfind(b"\n") + 1
    if _parse(content[start:]) is not None:
        return b"\n"
    log.warning("%s: unfinished last line removed", path)
    os.ftruncate(file, start)
    return b""


def _read_at(file: int, offset: int, count: int) -> bytes:
    os.lseek(file, offset, os.SEEK_SET)
    parts = bytearray()
    while len(parts) < count and (part := os.read(file, count - len(parts))):
        parts += part
    return bytes(parts)


def _plain(value: Any, where: str) -> Any:
    """`value` in JSON's types."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        value = value.tolist()
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"append_row: {where}: expected keys of type str, got {key!r}")
        return {key: _plain(part, f"{where}.{key}") for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part, f"{where}[{i}]") for i, part in enumerate(value)]
    raise TypeError(f"append_row: {where}: expected a JSON value, got {type(value).__name__}")
