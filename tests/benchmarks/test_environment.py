# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsekit.benchmarks import environment as module
from sparsekit.benchmarks.environment import environment


def test_the_stamp_is_json_and_names_versions_and_machine():
    stamp = environment()
    assert json.loads(json.dumps(stamp)) == stamp
    assert stamp["torch"] == torch.__version__ and stamp["cpu"]["threads"] == torch.get_num_threads()
    assert stamp["cpu"]["model"] and stamp["cpu"]["cores"] >= 1
    assert datetime.fromisoformat(stamp["timestamp"]).utcoffset() == timedelta(0)
    assert (stamp["gpu"] is None) == (not torch.cuda.is_available())


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """The source is looked up once in a process."""
    module._source.cache_clear()
    yield
    module._source.cache_clear()


def test_it_never_fails(monkeypatch):
    def broken(*_, **__):
        raise OSError("nothing works")

    monkeypatch.setattr(subprocess, "run", broken)
    monkeypatch.setattr(Path, "read_text", broken)
    monkeypatch.setattr(module.importlib.metadata, "version", broken)
    monkeypatch.setattr(torch.cuda, "is_available", broken)
    stamp = environment()
    assert stamp["git"] == {"commit": None, "dirty": None} and stamp["gpu"] is None and stamp["triton"] is None


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch) -> Path:
    """A repository whose benchmarks/environment.py pretends to be the module."""
    try:
        git(tmp_path, "init", "-q")
    except FileNotFoundError:
        pytest.skip("git is not installed")
    file = tmp_path / "benchmarks" / "environment.py"
    file.parent.mkdir()
    file.write_text("")
    monkeypatch.setattr(module, "__file__", str(file))
    return tmp_path


def stamp_now() -> dict[str, Any]:
    module._source.cache_clear()
    return environment()["git"]


def test_commit_and_dirty_flag(repository: Path):
    assert stamp_now() == {"commit": None, "dirty": None}
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "first")
    stamp = stamp_now()
    assert len(stamp["commit"]) >= 7 and stamp["dirty"] is False
    (repository / "benchmarks" / "results").mkdir()
    (repository / "benchmarks" / "results" / "new.jsonl").write_text("{}")
    (repository / "notes.txt").write_text("not part of the source")
    assert stamp_now()["dirty"] is False
    (repository / "benchmarks" / "environment.py").write_text("changed")
    assert stamp_now() == {"commit": stamp["commit"], "dirty": True}


def test_a_copy_inside_another_repository_has_no_commit(repository: Path):
    (repository / "other.py").write_text("")
    git(repository, "add", "other.py")
    git(repository, "commit", "-q", "-m", "first")
    assert environment()["git"] == {"commit": None, "dirty": None}
