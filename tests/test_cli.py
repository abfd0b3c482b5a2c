# SPDX-License-Identifier: Apache-2.0
"""The command line end to end on tiny problems: what it writes, what it prints where, and how it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sklearn")

from command_line import run  # noqa: E402

import sparsekit as sk  # noqa: E402
from sparsekit.allocation import kept_count  # noqa: E402
from sparsekit.benchmarks import forecast  # noqa: E402
from sparsekit.benchmarks.methods import METHODS  # noqa: E402
from sparsekit.benchmarks.networks import build_network  # noqa: E402
from sparsekit.benchmarks.rows import read_rows  # noqa: E402

SIZES = {"network": "mlp", "limit": 64, "dense-epochs": 2, "epochs": 1, "batch-size": 16}
PRUNE = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]
TINY = [*PRUNE, "--ode-steps", "2", "--ode-batch", "32", "--seeds", "1"]
TOTAL = 64 * 256 + 256 * 128 + 128 * 10


def compare(out: Path, *arguments: str, methods: str = "oneshot,bip") -> Any:
    return run("compare", *TINY, "--methods", methods, "--sparsity", "0.5", "--out", str(out), *arguments)


def rows_of(out: Path) -> list[dict[str, Any]]:
    return read_rows(out / "rows.jsonl")


# doctor


def test_doctor_prints_what_it_finds() -> None:
    result = run("doctor")
    assert result.exit_code == 0 and result.stderr == ""
    for word in ("sparsekit doctor", "torch-sparsekit", "what serves each op", "topk_mask", "masked_conv2d"):
        assert word in result.stdout


def test_doctor_as_json() -> None:
    result = run("doctor", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout) == json.loads(json.dumps(sk.diagnose()))


def test_doctor_gives_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsekit import ops

    monkeypatch.setattr(ops, "native_info", lambda: {"built": False, "cuda": False, "cpu_features": []})
    result = run("doctor")
    assert "not built" in result.stdout and "advice: The compiled module" in result.stdout


def test_the_installed_command_and_the_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sparsekit", "doctor", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["packages"]["torch-sparsekit"] == sk.__version__


def test_help_names_every_command() -> None:
    result = run("--help")
    assert result.exit_code == 0 and all(name in result.stdout for name in ("doctor", "compare", "prune"))


# compare


def test_compare_writes_rows_and_a_report_and_the_second_time_skips(tmp_path: Path) -> None:
    result = compare(tmp_path, methods="imp,omp,bip,spode")
    assert result.exit_code == 0, result.output
    rows = rows_of(tmp_path)
    assert [row["method"] for row in rows] == ["imp", "omp", "bip", "spode"]
    assert all(row["result"]["kept"] == kept_count(TOTAL, 0.5) for row in rows)
    assert result.stderr.count("done ") == 4 and "done" not in result.stdout
    assert "OMP, BiP and SpODE against IMP" in result.stdout
    assert str(tmp_path / "report.html").replace("\n", "") in result.stdout.replace("\n", "")
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!") and "SpODE" in page
    assert len(list((tmp_path / "dense").iterdir())) == 1
    before = (tmp_path / "rows.jsonl").read_bytes()
    again = compare(tmp_path, methods="imp,omp,bip,spode")
    assert again.exit_code == 0 and again.stderr.count("have ") == 4 and "done" not in again.stderr
    assert (tmp_path / "rows.jsonl").read_bytes() == before
    more = compare(tmp_path, "--json", methods="oneshot,omp")
    assert more.exit_code == 0 and more.stderr.count("have ") == 1 and more.stderr.count("done ") == 1
    assert json.loads(more.stdout) == [rows_of(tmp_path)[-1], rows[1]]


def test_json_alone_on_stdout(tmp_path: Path) -> None:
    result = compare(tmp_path, "--json", "--gamma", "inf")
    rows = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert rows == rows_of(tmp_path) and [row["config"]["gamma"] for row in rows] == ["inf", "inf"]


def test_options_reach_the_recipe(tmp_path: Path) -> None:
    options = {"lr": 0.02, "weight-decay": 0.0, "upper-lr": 0.3, "gamma": 2.0, "radius": 1.5, "imp-rate": 0.4}
    options |= {"ode-steps": 3, "ode-batch": 20, "budget-epochs": 4}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    result = compare(tmp_path, *words, "--skip", "5, 3", "--json", methods="oneshot")
    assert result.exit_code == 0, result.output
    (row,) = rows_of(tmp_path)
    assert {name.replace("-", "_"): value for name, value in options.items()}.items() <= row["config"].items()
    assert row["config"]["skip"] == ["5", "3"] and row["result"]["total"] == 64 * 256
    assert (row["config"]["network"], row["config"]["limit"], row["config"]["batch_size"]) == ("mlp", 64, 16)


def test_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "PROBE_STEPS", 1)
    torch.set_num_threads(2)
    assert compare(tmp_path, "--dry-run").exit_code == 0 and torch.get_num_threads() == 1
    assert compare(tmp_path, "--dry-run", "--threads", "2").exit_code == 0 and torch.get_num_threads() == 2


def test_dry_run_predicts_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "PROBE_STEPS", 2)
    out = tmp_path / "out"
    result = compare(out, "--dry-run", methods="imp,bip")
    assert result.exit_code == 0 and "dry run" in result.stdout and "all together about" in result.stdout
    facts = json.loads(compare(out, "--dry-run", "--json", "--seeds", "2", methods="imp,bip").stdout)
    assert [(r["method"], r["seed"], r["dense_epochs"]) for r in facts["runs"]] == [
        ("imp", 0, 3.0),
        ("bip", 0, 2.0),
        ("imp", 1, 3.0),
        ("bip", 1, 2.0),
    ]
    total = 2 * facts["dense_seconds_per_seed"] + sum(r["seconds"] for r in facts["runs"])
    assert facts["total_seconds"] == pytest.approx(total) and not out.exists()


# Failing and interrupted runs


def raising(error: BaseException) -> Any:
    def build(start: Any) -> Any:
        raise error

    return build


@pytest.mark.parametrize("error", [ValueError("no [bold]luck[/bold]"), RuntimeError("no [bold]luck[/bold]")])
def test_a_failed_run_gives_exit_code_1_and_the_others_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "omp", replace(METHODS["omp"], build=raising(error)))
        result = compare(tmp_path, methods="omp,oneshot,bip")
    assert result.exit_code == 1
    rows = rows_of(tmp_path)
    assert [row.get("error") for row in rows] == [str(error), None, None]
    assert result.stderr.count("failed ") == 1 and str(error) in result.stderr and result.stderr.count("done ") == 2
    assert (tmp_path / "report.html").exists() and "Failed runs" in result.stdout
    again = compare(tmp_path, methods="omp,oneshot,bip")
    assert again.exit_code == 0 and again.stderr.count("have ") == 2 and again.stderr.count("done ") == 1


def test_when_every_run_fails_there_is_no_report(tmp_path: Path) -> None:
    result = compare(tmp_path, "--lr", "1e30")
    assert result.exit_code == 1 and not (tmp_path / "report.html").exists()
    assert all("NaN or inf" in row["error"] for row in rows_of(tmp_path))
    assert "report: none, as no run has finished" in result.stdout
    result = compare(tmp_path, "--lr", "1e30", "--json")
    assert result.exit_code == 1 and all("error" in row for row in json.loads(result.stdout))


def test_an_interrupted_comparison_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "whole"
    compare(whole, methods="oneshot,bip,omp")
    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "bip", replace(METHODS["bip"], build=raising(KeyboardInterrupt())))
        result = compare(cut, methods="oneshot,bip,omp")
    assert result.exit_code == 130 and "interrupted: finished runs are kept" in result.stderr
    assert [row["method"] for row in rows_of(cut)] == ["oneshot"]
    result = compare(cut, methods="oneshot,bip,omp")
    assert result.exit_code == 0 and result.stderr.count("have ") == 1 and result.stderr.count("done ") == 2
    assert [row["result"] for row in rows_of(cut)] == [row["result"] for row in rows_of(whole)]


# prune


def network() -> torch.nn.Module:
    return build_network("mlp", classes=10, channels=1, image_size=8, seed=3)


def test_prune_saves_what_loads(tmp_path: Path) -> None:
    out = tmp_path / "pruned"
    result = run("prune", *PRUNE, "--method", "oneshot", "--sparsity", "0.5", "--seed", "2", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "50.00%" in result.stdout and "test accuracy" in result.stdout and "done" not in result.stdout
    model = sk.load(network(), out)
    assert sk.masks(model).count() == kept_count(TOTAL, 0.5)
    (dense,) = (out / "dense").iterdir()
    other = tmp_path / "again"
    arguments = [
        "--method",
        "oneshot",
        "--sparsity",
        "0.5",
        "--seed",
        "2",
        "--weights",
        str(dense),
        "--out",
        str(other),
    ]
    row = json.loads(run("prune", *PRUNE, *arguments, "--json").stdout)
    assert row["dense"]["epochs"] == 0 and row["seed"] == 2 and row["result"]["kept"] == kept_count(TOTAL, 0.5)
    again = sk.load(network(), other)  # the same dense weights, so the same run, to the bit
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


# Bad options: exit code 2, one line on stderr, nothing on stdout, nothing on disk


def bad(options: str, message: str) -> Any:
    return pytest.param(options.split(), message, id=options)


BAD = [
    bad("--sparsity 1.0", "RunConfig: sparsity: expected a number in [0, 1), got 1.0"),
    bad("--sparsity -0.1", "RunConfig: sparsity: expected a number in [0, 1), got -0.1"),
    bad("--sparsity nan", "RunConfig: sparsity: expected a number in [0, 1), got nan"),
    bad("--sparsity 0.5,high", "--sparsity: expected comma-separated float values, got '0.5,high'"),
    bad("--sparsity ,", "compare: expected at least one method, one sparsity and one seed"),
    bad("--methods imp,magic", "error: method: expected one of imp,"),
    bad("--methods ,", "compare: expected at least one method, one sparsity and one seed"),
    bad("--seeds 0", "compare: expected at least one method, one sparsity and one seed"),
    bad("--seeds -1", "compare: expected at least one method, one sparsity and one seed"),
    bad("--network resnet99", "build_network: name: expected one of mlp, convnet"),
    bad("--network timm:none-such", "build_network: name: expected a network of timm"),
    bad("--network nowhere:build", "build_network: name: expected an importable module:function"),
    bad("--network os:getcwd", "expected os:getcwd to return a Module"),
    bad("--data mnist", "imagenet, imagenet-spode or a folder of images, got 'mnist'"),
    bad("--data cifar10 --root /nowhere", "load_data: root: expected the files of CIFAR10 under /nowhere"),
    bad("--limit 0", "Recipe: limit: expected an int >= 1, got 0"),
    bad("--limit 64 --batch-size 65", "error: batch_size: expected <= 64 images, got 65"),
    bad("--batch-size 1", "Recipe: batch_size: expected an int >= 2, got 1"),
    bad("--epochs 0", "Recipe: epochs: expected an int >= 1, got 0"),
    bad("--dense-epochs 0", "Recipe: dense_epochs: expected an int >= 1, got 0"),
    bad("--lr -0.1", "Recipe: lr: expected a finite number > 0, got -0.1"),
    bad("--lr 0", "Recipe: lr: expected a finite number > 0, got 0.0"),
    bad("--lr inf", "Recipe: lr: expected a finite number > 0, got inf"),
    bad("--weight-decay -1", "Recipe: weight_decay: expected a finite number >= 0, got -1.0"),
    bad("--upper-lr nan", "Recipe: upper_lr: expected a finite number > 0, got nan"),
    bad("--gamma 0", "Recipe: gamma: expected a number > 0 or inf, got 0.0"),
    bad("--ode-steps 0", "Recipe: ode_steps: expected an int >= 1, got 0"),
    bad("--ode-batch 1", "Recipe: ode_batch: expected an int >= 2, got 1"),
    bad("--radius 0.5", "Recipe: radius: expected a finite number >= 1, got 0.5"),
    bad("--imp-rate 1", "Recipe: imp_rate: expected a number in [0.001, 1), got 1.0"),
    bad("--imp-rate 1e-9", "Recipe: imp_rate: expected a number in [0.001, 1), got 1e-09"),
    *(
        bad(f"--{name} {10**20}", f"{name.replace('-', '_')}: expected an int <= {most}, got {10**20}")
        for name, most in [
            ("dense-epochs", 10**5),
            ("epochs", 10**5),
            ("budget-epochs", 10**6),
            ("batch-size", 10**7),
            ("ode-steps", 10**6),
            ("ode-batch", 10**7),
            ("limit", 10**9),
            ("seeds", 10**4),
            ("threads", 1024),
        ]
    ),
    bad("--budget-epochs -1", "Recipe: budget_epochs: expected an int >= 0, got -1"),
    bad("--skip conv*", "sparsify: skip: expected globs that match a module, got 'conv*'"),
    bad("--skip *", "sparsify: model: expected at least one layer to mask, got none"),
    bad("--device tpu", "Recipe: device: expected cpu or cuda, got 'tpu'"),
    bad("--threads 0", "--threads: expected an int >= 1, got 0"),
    bad("--structure block", "Recipe: structure: expected one of unstructured, filter, channel, got 'block'"),
    bad(
        "--structure filter --methods imp,bip-released",
        "error: structure: expected unstructured for bip-released, got 'filter'",
    ),
    bad(
        "--structure channel --skip 1,3",
        "error: structure: expected a layer to prune by channel but the first, got none",
    ),
]


def check_refusal(result: Any, message: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and len(result.stderr.splitlines()) == 1, result.output
    assert result.stderr.startswith("error: ") and message in result.stderr


@pytest.mark.parametrize("options, message", BAD)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry"])
def test_bad_options_of_compare(tmp_path: Path, options: list[str], message: str, dry: list[str]) -> None:
    check_refusal(compare(tmp_path / "out", *options, *dry), message)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("command", ["compare", "prune"])
def test_cuda_without_cuda(tmp_path: Path, command: str) -> None:
    result = run(command, "--network", "mlp", "--device", "cuda", "--out", str(tmp_path / "out"))
    check_refusal(result, "error: device: expected a CUDA device, got none; see `sparsekit doctor`")


@pytest.mark.parametrize("options", ["--seeds many", "--epochs 1.5", "--lr fast", "--epsilon 1", "--sparsity"])
def test_what_cannot_be_parsed_gives_exit_code_2(tmp_path: Path, options: str) -> None:
    result = compare(tmp_path / "out", *options.split())
    assert result.exit_code == 2 and result.stdout == "" and options.split()[0] in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        bad("--sparsity 1.5", "RunConfig: sparsity: expected a number in [0, 1), got 1.5"),
        bad("--method magic", "error: method: expected one of imp,"),
        bad("--seed -1", "RunConfig: seed: expected an int >= 0, got -1"),
        bad(f"--seed {10**20}", f"RunConfig: seed: expected an int <= {2**32 - 1}, got {10**20}"),
        bad(f"--epochs {10**20}", f"Recipe: epochs: expected an int <= 100000, got {10**20}"),
        bad("--structure cube", "Recipe: structure: expected one of unstructured, filter, channel, got 'cube'"),
        bad("--structure filter --method bip-released", "error: structure: expected unstructured for bip-released"),
        bad("--network resnet99", "build_network: name: expected one of mlp"),
        bad("--data nowhere", "load_data: name: expected digits"),
        bad("--batch-size 100", "error: batch_size: expected <= 64 images, got 100"),
        bad(
            "--weights nowhere.safetensors",
            "load: path: expected a directory with model.safetensors or a safetensors file",
        ),
        bad("--threads -2", "--threads: expected an int >= 1, got -2"),
    ],
)
def test_bad_options_of_prune(tmp_path: Path, options: list[str], message: str) -> None:
    result = run("prune", *PRUNE, "--out", str(tmp_path / "out"), *options)
    check_refusal(result, message)
    assert not (tmp_path / "out").exists()


def test_prune_needs_a_folder() -> None:
    assert run("prune", *PRUNE).exit_code == 2


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    check_refusal(compare(tmp_path / "out"), str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "mine"


def test_weights_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save(network().state_dict(), file)
    result = run("prune", *PRUNE, "--out", str(tmp_path / "out"), "--weights", str(file))
    check_refusal(result, "load: path: expected a readable safetensors file")


def test_rows_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("not a row\n")
    check_refusal(compare(tmp_path), "expected a JSON object")


# Folders of images


def image_folder(root: Path, classes: dict[str, list[str]], size: int = 8) -> Path:
    image = pytest.importorskip("PIL.Image")
    generator = torch.Generator().manual_seed(0)
    for split, names in classes.items():
        for name in names:
            (root / split / name).mkdir(parents=True)
            for i in range(24):
                pixels = torch.randint(0, 256, (size, size), generator=generator, dtype=torch.uint8)
                image.fromarray(pixels.numpy()).save(root / split / name / f"{i}.png")
    return root


def test_a_folder_of_images(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", {"train": ["cat", "dog"], "test": ["cat", "dog"]})
    arguments = ["--data", str(data), "--root", str(tmp_path / "root"), "--lr", "0.01"]
    result = compare(tmp_path / "out", *arguments, methods="oneshot")
    assert result.exit_code == 0, result.output
    (row,) = rows_of(tmp_path / "out")
    assert row["config"]["data"] == str(data) and row["result"]["total"] == 64 * 256 + 256 * 128 + 128 * 2


@pytest.mark.parametrize(
    "classes, message",
    [
        ({"train": ["cat", "dog"], "test": ["cat", "eel"]}, "only classes of the training set, got 'eel'"),
        ({"train": [], "test": []}, "load_data: name: expected"),
        ({"cat": [], "dog": []}, "load_data: name: expected images in"),
    ],
)
def test_folders_whose_labels_do_not_fit(tmp_path: Path, classes: dict[str, list[str]], message: str) -> None:
    data = image_folder(tmp_path / "data", classes)
    for split in classes:
        (data / split).mkdir(parents=True, exist_ok=True)
    check_refusal(compare(tmp_path / "out", "--data", str(data), "--root", str(tmp_path / "root")), message)


def test_a_reader_that_stops_is_no_failed_check(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "sparsekit", "doctor"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
