# SPDX-License-Identifier: Apache-2.0
"""SPARSEKIT_AUTOTUNE=1: time the candidates of a table once for each problem and remember the fastest on disk.

The file lies in the user's cache folder (XDG_CACHE_HOME or ~/.cache). Its entries hold for one GPU model, one version of
Triton and one text of the kernels; others are left alone.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from sparsekit.ops.proofs import waiting_allowed

Config = TypeVar("Config")
_FLUSH_BYTES = 256 << 20
_chosen: dict[tuple[str, str], Any] = {}


def wanted() -> bool:
    """Has the user asked for it?"""
    return os.environ.get("SPARSEKIT_AUTOTUNE") == "1"


def cache_file() -> Path:
    """Where the winners are."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "sparsekit", "autotune.json")


@cache
def source_hash() -> str:
    """Hash of all Triton code of this package."""
    import sparsekit.kernels

    folder = Path(str(sparsekit.kernels.__file__)).parent
    texts = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    return hashlib.sha256(texts).hexdigest()[:16]


@cache
def place(device: torch.device) -> str:
    """What the winners depend on besides the problem."""
    triton = importlib.metadata.version("triton")
    return f"{torch.cuda.get_device_name(device)} | triton {triton} | kernels {source_hash()}"


def load() -> dict[str, dict[str, Any]]:
    """Place -> problem -> fields of the fastest config; empty where there is no readable file."""
    file = cache_file()
    try:
        entries = json.loads(file.read_text())
        if isinstance(entries, dict) and all(isinstance(found, dict) for found in entries.values()):
            return entries
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        pass
    warnings.warn(f"sparsekit: {file}: not readable as a cache of tuned kernels; ignored", RuntimeWarning, stacklevel=4)
    return {}


def save(where: str, problem: str, config: Any) -> None:
    """Adds one winner to the file, which is replaced as a whole: other processes never see half of it."""
    file, entries = cache_file(), load()
    entries.setdefault(where, {})[problem] = asdict(config)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".tmp", delete=False) as written:
            json.dump(entries, written, indent=1, sort_keys=True)
        os.replace(written.name, file)
    except OSError as error:
        warnings.warn(f"sparsekit: {file}: tuned kernels are not remembered ({error})", RuntimeWarning, stacklevel=4)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Median time of a run on the device, with the second-level cache flushed before each."""
    with torch.cuda.device(device), waiting_allowed():
        flush, times = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device), []
        run()
        for _ in range(11):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def pick(
    problem: str,
    candidates: Sequence[Config],
    run: Callable[[Config], Callable[[], object] | None],
    device: torch.device,
) -> Config:
    """The fastest of ``candidates`` for ``problem`` on ``device``.

    Args:
        problem: what the choice depends on besides the device, in words.
        candidates: dataclasses; the first is what serves untimed, as in a graph capture.
        run: gives for a candidate a function that runs it, or None if it must not serve.
        device: a CUDA device.
    """
    where = place(device)
    if (where, problem) not in _chosen:
        if torch.cuda.is_current_stream_capturing():
            return candidates[0]
        known = load().get(where, {}).get(problem)
        remembered = [config for config in candidates if asdict(config) == known]  # pyright: ignore[reportArgumentType]
        _chosen[where, problem] = remembered[0] if remembered else _fastest(where, problem, candidates, run, device)
    return _chosen[where, problem]


def _fastest(
    where: str,
    problem: str,
    candidates: Sequence[Config],
    run: Callable[[Config], Callable[[], object] | None],
    device: torch.device,
) -> Config:
    runs = [(config, runner) for config in candidates if (runner := run(config)) is not None]
    if not runs:
        return candidates[0]
    best = min(runs, key=lambda pair: seconds(pair[1], device))[0]
    save(where, problem, best)
    return best
