# SPDX-License-Identifier: Apache-2.0
"""Configuration files: reading TOML, YAML or JSON, checking every value against the dataclasses of a run, and writing one."""

from __future__ import annotations

import difflib
import importlib
import json
import math
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sparsekit.benchmarks.methods import as_method
from sparsekit.benchmarks.recipe import MAX_SEEDS, MAX_THREADS, Recipe, RunConfig
from sparsekit.pruners.checks import checked_count

_RECIPE = {field.name for field in fields(Recipe)}
_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}


@dataclass(frozen=True)
class Setting:
    """What a key may hold: kind is bool, int, float or str; with ``many`` a list of them. help: one line for people."""

    kind: type
    help: str = ""
    many: bool = False

    @property
    def expected(self) -> str:
        """The kind in words."""
        word = _WORDS[self.kind]
        return f"a list, each entry {word}" if self.many else word


def read_config(path: str | os.PathLike[str], settings: Mapping[str, Setting]) -> dict[str, Any]:
    """The values of a configuration file, checked.

    Args:
        path: a .toml, .yaml, .yml or .json file with one value per key.
        settings: the keys that it may have; a dash in a key of the file stands for an underscore.

    Raises:
        ValueError: no such file, not in its format, or "config FILE: key: expected ..., got ...".
    """
    return checked_values(Path(path), parsed(Path(path)), settings)


def checked_values(file: Path, content: Mapping[str, Any], settings: Mapping[str, Setting]) -> dict[str, Any]:
    """The values of what was ``parsed`` from ``file``; see read_config."""
    values: dict[str, Any] = {}
    for written, value in content.items():
        key = str(written).replace("-", "_")
        if key not in settings:
            close = difflib.get_close_matches(key, settings, n=1)
            known = f"{close[0]} perhaps" if close else f"one of {', '.join(settings)}"
            raise ValueError(f"config {file}: {written}: expected {known}, got an unknown key")
        if key in values:
            raise ValueError(f"config {file}: {written}: expected every key once, got it twice")
        values[key] = _checked(file, key, value, settings[key])
    return values


def parsed(file: Path) -> dict[str, Any]:
    """What a file holds, unchecked. Raises ValueError if it does not exist or is not one value per key."""
    if not file.is_file():
        raise ValueError(f"config: file: expected a file, got {str(file)!r}, which does not exist")
    content = _parsed(file)
    if not isinstance(content, dict):
        raise ValueError(f"config {file}: content: expected one value per key, got {type(content).__name__}")
    return content


def _parsed(file: Path) -> Any:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"config {file}: content: expected text in UTF-8, got {error}") from None
    parse = {".toml": _toml, ".yaml": _yaml, ".yml": _yaml, ".json": _json}.get(file.suffix.lower())
    if parse is None:
        raise ValueError(f"config {file}: name: expected one that ends in .toml, .yaml or .json, got {file.name!r}")
    try:
        return parse(text)
    # What these parsers raise derives from ValueError, but for YAML's.
    except (ValueError, RecursionError) as error:
        line = "; ".join(str(error).split("\n"))
        raise ValueError(f"config {file}: content: expected {file.suffix[1:].upper()}, got an error: {line}") from None


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        need = f"expected the package {name} (pip install 'torch-sparsekit[config]'), got none"
        raise ValueError(f"config: file: {need}") from None


def _toml(text: str) -> Any:
    try:
        parser = importlib.import_module("tomllib")
    except ModuleNotFoundError:  # Python 3.10
        parser = _package("tomli")
    return parser.loads(text)


def _yaml(text: str) -> Any:
    yaml = _package("yaml")
    try:
        # The values of the second of two equal keys would win without a word.
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        keys = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        if twice := {str(key) for key in keys if keys.count(key) > 1}:
            raise ValueError(f"{min(twice)} occurs twice")
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    return {} if content is None else content


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{min(name for name in names if names.count(name) > 1)} occurs twice")
    return dict(pairs)


def _checked(file: Path, key: str, value: Any, setting: Setting) -> Any:
    parts = value if setting.many and isinstance(value, list) else [value]
    if setting.many != isinstance(value, list) or not all(_is(setting.kind, part) for part in parts):
        yaml = file.suffix.lower() in (".yaml", ".yml") and setting.kind is float
        hint = "; YAML reads a number as text unless it has a point: 1.0e-4" if yaml and _is_number(value) else ""
        raise ValueError(f"config {file}: {key}: expected {setting.expected}, got {value!r}{hint}")
    converted = [setting.kind(part) for part in parts]
    for part in converted:
        if problem := _out_of_range(key, part):
            raise ValueError(f"config {file}: {key}: {problem}")
    return converted if setting.many else converted[0]


def _is(kind: type, value: Any) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is kind


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


def _out_of_range(key: str, value: Any) -> str | None:
    """What the dataclasses say against a value: "expected ..., got ...", or None."""
    try:
        if key in ("method", "methods"):
            as_method(value)
        elif key in ("sparsity", "seed"):
            RunConfig("imp", **({"sparsity": 0.5, "seed": 0} | {key: value}))
        elif key in ("seeds", "threads"):
            checked_count("config", key, value, 1, MAX_SEEDS if key == "seeds" else MAX_THREADS)
        elif key == "first_seed":
            checked_count("config", key, value, 0, MAX_SEEDS)
        elif key in _RECIPE and key != "graphs":  # those need another key, the device
            Recipe(**{key: (value,) if key == "skip" else value})
    except (ValueError, TypeError) as error:
        text = str(error)
        return text[text.index("expected") :]
    return None


def write_config(title: str, values: Mapping[str, Any], settings: Mapping[str, Setting]) -> str:
    """A complete, commented configuration file in TOML.

    Args:
        title: first line, a comment.
        values: one for every key of ``settings``; None for what is not set, which is written as a comment.
    """
    lines = [f"# {title}"]
    for key, setting in settings.items():
        lines.append("")
        lines += textwrap.wrap(setting.help, 88, initial_indent="# ", subsequent_indent="# ")
        value = values[key]
        lines.append(f"# {key} is not set; {setting.expected}" if value is None else f"{key} = {_literal(value)}")
    return "\n".join(lines) + "\n"


def _literal(value: Any) -> str:
    """A value in TOML. JSON's texts are TOML's, but for DEL."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_literal(part) for part in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
