# SPDX-License-Identifier: Apache-2.0
"""The Python on the pages about many processes, about trainers and about surgery runs as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from processes import check, run
from snippets import python, run_snippet

import sparsekit as sk

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def test_distributed(tmp_path: Path) -> None:
    check(run(2, "snippet_jobs", ["distributed_page"], tmp_path)["distributed_page"])


def test_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)  # checkpoints and logs go where the run begins
    data = torch.utils.data.TensorDataset(torch.randn(64, 8), torch.arange(64) % 4)
    for name, value in {"MAX_EPOCHS": "1", "ACCELERATOR": "cpu", "ENABLE_PROGRESS_BAR": "False"}.items():
        monkeypatch.setenv(f"PL_TRAINER_{name}", value)  # Lightning's own way to other defaults
    found = run_snippet(python("integrations.md")[0], {"loader": torch.utils.data.DataLoader(data, 8)})
    assert sk.masks(found["module"]).sparsity == pytest.approx(0.9, abs=1e-3)


def test_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    sizes = {"vocab_size": 32, "n_positions": 8, "n_layer": 1, "n_embd": 16, "n_head": 2}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=1))
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
    arguments = transformers.TrainingArguments(str(tmp_path), max_steps=8, **quiet)
    data = [{"input_ids": row, "labels": row} for row in torch.randint(2, 32, (12, 6))]
    run_snippet(python("integrations.md")[1], {"model": model, "arguments": arguments, "data": data})
    assert sk.masks(model).sparsity == pytest.approx(0.9, abs=1e-3)


def test_compact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_pruning")
    monkeypatch.chdir(tmp_path)
    data = [(torch.randn(8, 3, 16, 16), torch.arange(8) % 10) for _ in range(2)]
    found: dict[str, object] = {"loader": data}
    for block in python("compact.md"):
        found = run_snippet(block, found)
    report, small, again, x = (found[name] for name in ("report", "small", "again", "x"))
    assert isinstance(report, sk.CompactReport) and report.parameters[1] < 0.3 * report.parameters[0]
    assert all(layer.outputs.asked == layer.outputs.removed for layer in report.layers)
    assert torch.equal(small.eval()(x), again.eval()(x))  # pyright: ignore
    exported = found["exported"]
    assert isinstance(exported, sk.ExportReport) and exported.compact and exported.difference < 1e-4
    assert exported.compact.parameters == report.parameters


def test_diagnostics(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = python("diagnostics.md")
    found = run_snippet(second, run_snippet(first, {}))
    assert 0 < found["found"].count() < found["masks"].count() == found["others"]["ERK"].count()
    assert capsys.readouterr().out.splitlines()[-1] == "()"


def test_every_block_is_run() -> None:
    pages = ("compact.md", "diagnostics.md", "distributed.md", "integrations.md", "peers.md")
    assert [len(python(page)) for page in pages] == [3, 2, 2, 2, 0]
