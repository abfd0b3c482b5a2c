# SPDX-License-Identifier: Apache-2.0
"""docs/cli.md is what the commands say, and what it promises for all of them holds."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")
typer_testing = pytest.importorskip("typer.testing")

import sparsekit as sk  # noqa: E402
from sparsekit import cli, cli_docs  # noqa: E402
from sparsekit.benchmarks.networks import build_network  # noqa: E402

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
NAMES = [name for name, _ in cli_docs.commands(cli.app)]


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_docs.main([str(PAGE), "--check"]) == 0, "run python -m sparsekit.cli_docs docs/cli.md"
    assert "up to date" in capsys.readouterr().out


def test_an_old_page_is_noticed_and_rewritten(tmp_path: Path) -> None:
    file = tmp_path / "cli.md"
    assert cli_docs.main([str(file), "--check"]) == 1
    file.write_text(PAGE.read_text().replace("--check", "--chuck"))
    assert cli_docs.main([str(file), "--check"]) == 1
    assert cli_docs.main([str(file)]) == 0 and file.read_text() == PAGE.read_text()
    assert cli_docs.main([]) == cli_docs.main(["--check"]) == 2


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_json_and_its_help_names_what_the_page_names(name: str) -> None:
    function = dict(cli_docs.commands(cli.app))[name]
    parameters = inspect.signature(function).parameters
    assert "as_json" in parameters
    arguments = [*name.split()[1:], "--help"]
    result = typer_testing.CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "300", "NO_COLOR": "1"})
    assert result.exit_code == 0
    section = PAGE.read_text().split(f"## {name}\n")[1].split("\n## ")[0]
    for line in section.splitlines():
        if line.startswith("| `--"):
            assert all(option in result.stdout for option in line.split("`")[1].replace("/", ", ").split(", ")), line
    assert (inspect.getdoc(function) or "?").splitlines()[0] in section


@pytest.mark.parametrize("name", NAMES)
def test_unknown_options_are_bad_input(name: str) -> None:
    result = typer_testing.CliRunner().invoke(cli.app, [*name.split()[1:], "--no-such-option"])
    assert result.exit_code == 2 and result.stdout == ""


def test_from_a_configuration_to_an_exported_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.toml").write_text('network = "mlp"\nlimit = 64\ndense_epochs = 2\nepochs = 1\nbatch_size = 16\n')
    command = [
        sys.executable,
        "-m",
        "sparsekit",
        "prune",
        "--config",
        "run.toml",
        "--method",
        "oneshot",
        "--sparsity",
        "0.5",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--json", "--out", "run"], cwd=tmp_path, capture_output=True, text=True, timeout=200, env=environment
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    monkeypatch.chdir(tmp_path)
    seen = typer_testing.CliRunner().invoke(cli.app, ["inspect", "run", "--check"])
    assert seen.exit_code == 0 and row["result"]["mask_hash"] in seen.stdout
    found = typer_testing.CliRunner().invoke(cli.app, ["diff", "run", "run", "--check", "--json"])
    assert found.exit_code == 0 and len(json.loads(found.stdout)["runs"]["pairs"]) == 1
    done = typer_testing.CliRunner().invoke(cli.app, ["export", "run", "hub", "--to", "hub", "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["network"] == "mlp"
    plain = build_network("mlp", classes=10, channels=1, image_size=8, seed=9)
    assert sk.masks(sk.load(plain, tmp_path / "hub", masks="infer")).hash().startswith(row["result"]["mask_hash"])


def test_a_reader_that_has_read_enough_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m sparsekit doctor --json | head -c 1"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.stdout == "{" and "error" not in done.stderr and "Traceback" not in done.stderr


def json_keys(name: str) -> set[str]:
    return set(cli_docs.JSON[name].split("`")[1::2])


def test_documented_keys(tmp_path: Path) -> None:
    def run(*arguments: str) -> Any:
        return json.loads(typer_testing.CliRunner().invoke(cli.app, [*arguments, "--json"]).stdout)

    model = build_network("mlp", classes=10, channels=1, image_size=8, seed=0)
    sk.sparsify(model)
    folder = str(sk.save(model, tmp_path))
    assert set(run("doctor")) == json_keys("doctor")
    assert set(run("inspect", folder)) == json_keys("inspect")
    assert set(run("diff", folder, folder)) == json_keys("diff")
    sizes = ["--network", "mlp", "--classes", "10", "--channels", "1", "--image-size", "8"]
    assert set(run("export", folder, str(tmp_path / "a.safetensors"), *sizes)) == json_keys("export")
