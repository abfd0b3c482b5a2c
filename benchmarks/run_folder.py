# SPDX-License-Identifier: Apache-2.0
"""The folder of one run: ``run.json`` says what the run is, before its first step, and what came of it, after the last."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparsekit.benchmarks.methods import as_method
from sparsekit.benchmarks.recipe import RunConfig, as_json, from_json
from sparsekit.benchmarks.rows import Row
from sparsekit.state_tree import parse_json
from sparsekit.tensor_file import replace_text

FILE, FORMAT, VERSION = "run.json", "sparsekit.run", 1


@dataclass(frozen=True)
class RunFile:
    """What ``run.json`` holds.

    config: method, sparsity, seed and recipe. threads: CPU threads asked for. root: folder of the data.
    weights: SHA-256 of the dense weights given, None for those trained here. row: the result, None before the end.
    """

    config: RunConfig
    threads: int | None
    root: str
    weights: str | None = None
    row: Row | None = None

    def write(self, folder: Path) -> None:
        """Write it, atomically; makes the folder."""
        config = self.config
        values = {"format": FORMAT, "version": VERSION, "method": config.method, "sparsity": config.sparsity}
        values |= {"seed": config.seed, "recipe": as_json(config.recipe), "threads": self.threads, "root": self.root}
        values |= {"weights": self.weights, "row": self.row}
        replace_text(folder / FILE, json.dumps(values, indent=2) + "\n")

    @staticmethod
    def read(folder: Path, where: str = "resume") -> RunFile:
        """What is in the folder. Raises ValueError, which names the file, if it is not what ``write`` wrote."""
        file = folder / FILE
        if not file.is_file():
            raise ValueError(f"{where}: folder: expected the folder of a run, with {FILE}, got {str(folder)!r}")
        try:
            return _parsed(parse_json(file.read_text()))
        except (ValueError, TypeError, OSError) as error:
            raise ValueError(f"{where}: folder: {error} (in {str(file)!r})") from error


def _parsed(values: Any) -> RunFile:
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError(f"expected a description in the format {FORMAT!r}, got another")
    version = values.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise ValueError(f"expected format version <= {VERSION}, got {version!r}")
    kinds: dict[str, Any] = {"method": str, "seed": int, "root": str, "row": (dict, type(None))}
    kinds |= {"threads": (int, type(None)), "weights": (str, type(None))}
    for name, kind in kinds.items():
        if name not in values or not isinstance(values[name], kind):
            raise ValueError(f"{name}: expected another kind of value, got {values.get(name)!r}")
    as_method(values["method"])
    config = RunConfig(values["method"], values.get("sparsity"), values["seed"], from_json(values.get("recipe")))  # pyright: ignore
    return RunFile(config, *(values[name] for name in ("threads", "root", "weights", "row")))


def digest_of(weights: Path) -> str:
    """SHA-256 of a file, or of the checkpoint in a folder."""
    file = weights / "model.safetensors" if weights.is_dir() else weights
    return hashlib.sha256(file.read_bytes()).hexdigest()


def check_free(folder: Path, run: RunFile) -> None:
    """Raise ValueError if there is no folder but a file, or the folder has a run with other options."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"prune: out: expected a folder, got the file {str(folder)!r}")
    if not (folder / FILE).exists():
        return
    earlier = RunFile.read(folder)
    if earlier.row is not None and replace(earlier, row=None) != run:
        ways = f"choose another folder, or remove {folder / FILE}"
        raise ValueError(f"prune: out: expected a folder without a run of other options, got a finished one; {ways}")
    if earlier.row is None and earlier != run:
        ways = f"go on with `sparsekit resume {folder}`, or remove {folder / FILE}"
        raise ValueError(f"prune: out: expected a folder without an unfinished run of other options, got one; {ways}")
