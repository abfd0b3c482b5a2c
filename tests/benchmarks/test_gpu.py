# SPDX-License-Identifier: Apache-2.0
"""The queue of GPU jobs, with a fake runner in place of the commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from sparsekit.benchmarks import gpu

JOBS = [gpu.Job(name, (name,), "source") for name in ("first", "second", "third")]


class Runner:
    """Records what it was asked to run; answers with the status given for the command, 0 by default."""

    def __init__(self, **statuses: int | None) -> None:
        self.statuses, self.ran = statuses, []

    def __call__(self, command: Sequence[str], seconds: float) -> int | None:
        self.ran.append(command[0])
        return self.statuses.get(command[0], 0)


def test_passed_jobs_are_not_run_again(tmp_path: Path) -> None:
    state = tmp_path / "deep" / "gpu.json"
    first = Runner(second=1)
    assert gpu.work(JOBS, "gpu", state, 100, first) == {"first": "passed", "second": "failed", "third": "passed"}
    again = Runner()
    assert gpu.work(JOBS, "gpu", state, 100, again) == {"first": "valid", "second": "passed", "third": "valid"}
    assert again.ran == ["second"]


def test_another_source_or_device_makes_results_invalid(tmp_path: Path) -> None:
    state = tmp_path / "gpu.json"
    gpu.work(JOBS, "gpu", state, 100, Runner())
    for jobs, device in ((JOBS, "other"), ([gpu.Job("first", ("first",), "changed")], "other")):
        runner = Runner()
        gpu.work(jobs, device, state, 100, runner)
        assert runner.ran == [job.name for job in jobs]


def test_untried_jobs_come_before_failed_ones(tmp_path: Path) -> None:
    state = tmp_path / "gpu.json"
    gpu.work(JOBS[:1], "gpu", state, 100, Runner(first=None))
    runner = Runner()
    gpu.work(JOBS, "gpu", state, 100, runner)
    assert runner.ran == ["second", "third", "first"]


def test_budget(tmp_path: Path) -> None:
    state, runner = tmp_path / "gpu.json", Runner()
    assert set(gpu.work(JOBS, "gpu", state, 1, runner).values()) == {"left"}
    assert runner.ran == []
    slow = {"first": {"source": "source", "device": "gpu", "outcome": "failed", "seconds": 50.0}}
    gpu.write_state(state, slow)
    assert gpu.work(JOBS, "gpu", state, 20, runner)["first"] == "left"
    assert runner.ran == ["second", "third"]
    assert "1 left" in gpu.summary({"first": "left"})


def test_unreadable_state_is_no_state(tmp_path: Path) -> None:
    state = tmp_path / "gpu.json"
    state.write_text("{", encoding="utf-8")
    assert gpu.work(JOBS[:1], "gpu", state, 100, Runner()) == {"first": "passed"}


def test_a_file_without_gpu_tests_passes(tmp_path: Path) -> None:
    assert gpu.work(JOBS[:1], "gpu", tmp_path / "gpu.json", 100, Runner(first=gpu.NO_TESTS)) == {"first": "passed"}


def test_run_stops_in_time() -> None:
    assert gpu.run((sys.executable, "-c", "raise SystemExit(3)"), 60) == 3
    assert gpu.run((sys.executable, "-c", "import time; time.sleep(600)"), 0.3) is None


def test_find_jobs_and_hash(tmp_path: Path) -> None:
    for folder in ("tests/deep", "benchmarks", "sparsekit"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "tests/deep/test_a.py").write_text("@pytest.mark" + ".gpu\n", encoding="utf-8")
    (tmp_path / "tests/test_b.py").write_text("pass\n", encoding="utf-8")
    (tmp_path / "benchmarks/bench_c.py").write_text("__main__ cuda\n", encoding="utf-8")
    (tmp_path / "benchmarks/bench_d.py").write_text("__main__\n", encoding="utf-8")
    test, bench = gpu.find_jobs(tmp_path)
    assert (test.name, bench.name) == ("tests/deep/test_a.py", "benchmarks/bench_c.py")
    assert bench.command[1:] == ("-m", "sparsekit.benchmarks.bench_c", "--device", "cuda")
    (tmp_path / "tests/test_b.py").write_text("changed\n", encoding="utf-8")
    test_later, bench_later = gpu.find_jobs(tmp_path)
    assert (test_later.source == test.source, bench_later.source == bench.source) == (False, True)


def test_without_a_device_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main([]) == 0
    assert "no CUDA device" in capsys.readouterr().out
