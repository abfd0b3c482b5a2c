# SPDX-License-Identifier: Apache-2.0
"""Configuration files: every kind of mistake has one error that names file, key, what was expected and what was there."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml")

from sparsekit.benchmarks import config as module  # noqa: E402
from sparsekit.benchmarks.config import Setting, read_config, write_config  # noqa: E402
from sparsekit.benchmarks.recipe import Recipe  # noqa: E402

SETTINGS = {
    "methods": Setting(str, "Methods.", many=True),
    "sparsity": Setting(float, "Fractions.", many=True),
    "seed": Setting(int),
    "seeds": Setting(int),
    "epochs": Setting(int, "Epochs of one phase. " * 8),
    "lr": Setting(float),
    "gamma": Setting(float),
    "limit": Setting(int),
    "device": Setting(str),
    "skip": Setting(str, many=True),
    "dry": Setting(bool),
}
VALUES = {"methods": ["imp", "bip"], "sparsity": [0.5, 0.9], "lr": 0.1, "epochs": 3, "dry": True, "skip": ["a.*"]}


def write(tmp_path: Path, text: str, name: str = "run.toml") -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


@pytest.mark.parametrize(
    "name, text",
    [
        (
            "a.toml",
            'methods = ["imp", "bip"]\nsparsity = [0.5, 0.9]\nlr = 0.1\nepochs = 3\ndry = true\nskip = ["a.*"]',
        ),
        ("a.yaml", "methods: [imp, bip]\nsparsity: [0.5, 0.9]\nlr: 0.1\nepochs: 3\ndry: true\nskip:\n- a.*\n"),
        ("a.YML", "methods: [imp, bip]\nsparsity: [0.5, 0.9]\nlr: 1.0e-1\nepochs: 3\ndry: yes\nskip: ['a.*']\n"),
        ("a.json", json.dumps(VALUES)),
    ],
)
def test_all_formats_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    assert read_config(write(tmp_path, text, name), SETTINGS) == VALUES


def test_integers_are_numbers_dashes_are_underscores_and_empty_files_are_fine(tmp_path: Path) -> None:
    settings = {"dense_epochs": Setting(int), "gamma": Setting(float)}
    values = read_config(write(tmp_path, "dense-epochs = 2\ngamma = inf"), settings)
    assert values == {"dense_epochs": 2, "gamma": math.inf}
    value = read_config(write(tmp_path, "gamma = 2"), settings)["gamma"]
    assert value == 2 and type(value) is float
    assert read_config(write(tmp_path, ""), settings) == read_config(write(tmp_path, "", "a.yaml"), settings) == {}


@pytest.mark.parametrize(
    "text, message",
    [
        ("epoch = 3", "epoch: expected epochs perhaps, got an unknown key"),
        ("colour = 3", "colour: expected one of methods, sparsity, .*, got an unknown key"),
        ("[recipe]\nepochs = 3", "recipe: expected one of methods, .*, got an unknown key"),
        ("epochs = '3'", "epochs: expected an integer, got '3'"),
        ("epochs = 3.0", "epochs: expected an integer, got 3.0"),
        ("epochs = true", "epochs: expected an integer, got True"),
        ("lr = true", "lr: expected a number, got True"),
        ("dry = 1", "dry: expected true or false, got 1"),
        ("device = 1", "device: expected a text, got 1"),
        ("epochs = [3]", r"epochs: expected an integer, got \[3\]"),
        ("methods = 'imp'", "methods: expected a list, each entry a text, got 'imp'"),
        ("sparsity = [0.5, 'x']", r"sparsity: expected a list, each entry a number, got \[0.5, 'x'\]"),
        ("sparsity = [0.5, 1.0]", r"sparsity: expected a number in \[0, 1\), got 1.0"),
        ("seed = -1", "seed: expected an int >= 0, got -1"),
        ("seeds = 0", "seeds: expected an int >= 1, got 0"),
        ("epochs = 0", "epochs: expected an int >= 1, got 0"),
        ("lr = nan", "lr: expected a finite number > 0, got nan"),
        ("gamma = 0", "gamma: expected a number > 0 or inf, got 0.0"),
        ("limit = 0", "limit: expected an int >= 1, got 0"),
        ("device = 'tpu'", "device: expected cpu or cuda, got 'tpu'"),
        ("methods = ['imp', 'magic']", "methods: expected one of imp, .*, got 'magic'"),
        ("epochs = 1\nepochs = 2", "content: expected TOML, got an error: .*"),
        ("epochs 1", "content: expected TOML, got an error: .*"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ValueError) as caught:
        read_config(file, SETTINGS)
    assert re.fullmatch(f"config {re.escape(str(file))}: {message}", str(caught.value)), caught.value


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.yaml", "lr: 1e-4", "lr: expected a number, got '1e-4'; YAML reads a number as text unless it has a point"),
        ("a.yaml", "epochs: 1\nepochs: 2", "content: expected YAML, got an error: epochs occurs twice"),
        ("a.yaml", "- 1", "content: expected one value per key, got list"),
        ("a.yaml", "a: [", "content: expected YAML, got an error"),
        ("a.yaml", "a: !!python/object/apply:os.getcwd []", "content: expected YAML, got an error"),
        ("a.json", "{", "content: expected JSON, got an error"),
        ("a.json", '{"epochs": 1, "epochs": 2}', "content: expected JSON, got an error: epochs occurs twice"),
        ("a.json", '{"dense-x": 1}', "dense-x: expected"),
        ("a.ini", "", "name: expected one that ends in .toml, .yaml or .json, got 'a.ini'"),
    ],
)
def test_mistakes_of_other_formats(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_config(write(tmp_path, text, name), SETTINGS)
    assert str(caught.value).startswith(f"config {tmp_path / name}: ") and "\n" not in str(caught.value)


def test_the_same_key_in_two_spellings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a-b: expected every key once, got it twice"):
        read_config(write(tmp_path, "a_b = 1\na-b = 2"), {"a_b": Setting(int)})


def test_no_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="config: file: expected a file, got '.*', which does not exist"):
        read_config(tmp_path / "a.toml", SETTINGS)
    (tmp_path / "a.toml").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="content: expected text in UTF-8"):
        read_config(tmp_path / "a.toml", SETTINGS)


@pytest.mark.parametrize("name", ["yaml", "tomli"])
def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def none(wanted: str) -> Any:
        raise ModuleNotFoundError(wanted)

    monkeypatch.setattr(module.importlib, "import_module", none)
    file = write(tmp_path, "", "a.yaml" if name == "yaml" else "a.toml")
    with pytest.raises(ValueError, match=f"expected the package {name} .*torch-sparsekit\\[config\\]"):
        read_config(file, SETTINGS)


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    values = dict.fromkeys(SETTINGS) | VALUES | {"gamma": math.inf, "device": "cpu"}
    values["skip"] = ['quo"te', "back\\slash", "n\u00e4me", "\x7f\x01", "#"]
    text = write_config("Title.", values, SETTINGS)
    assert read_config(write(tmp_path, text), SETTINGS) == {k: v for k, v in values.items() if v is not None}
    assert "# limit is not set; an integer\n" in text and text.startswith("# Title.\n")
    assert all(len(line) <= 88 for line in text.splitlines() if line.startswith("#"))


def test_every_range_of_a_recipe_is_checked(tmp_path: Path) -> None:
    numbers = {f.name for f in fields(Recipe) if f.type in ("int", "float", "int | None")}
    for name in numbers:
        with pytest.raises(ValueError, match=f": {name}: expected .*, got -1"):
            read_config(write(tmp_path, f"{name} = -1"), {name: Setting(int)})
