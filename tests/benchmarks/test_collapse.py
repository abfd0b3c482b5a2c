# SPDX-License-Identifier: Apache-2.0
"""What SynFlow leaves of each layer: rows, their table and the command."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsekit as sk
from sparsekit.allocation import kept_count
from sparsekit.benchmarks import collapse
from sparsekit.benchmarks.collapse import collapse_table, layers_left, main
from sparsekit.benchmarks.networks import build_network
from sparsekit.benchmarks.reporting.markdown import EMPTY
from sparsekit.benchmarks.rows import read_rows

SPACE = "\N{NO-BREAK SPACE}"
SETTING: dict[str, Any] = {"network": "resnet8", "classes": 10, "size": 16, "rounds": 3}


@pytest.mark.parametrize("method", collapse.VARIANTS)
def test_a_row_is_what_synflow_keeps(method: str) -> None:
    row = layers_left(method, 0.9, 1, **SETTING)
    model = build_network("resnet8", classes=10, channels=3, image_size=16, seed=1)
    sk.sparsify(model)
    how = {} if method == "synflow" else {"batchnorm": "train", "double": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sk.CollapseWarning)
        sk.SynFlow(model, lambda m, b: torch.zeros(()), 0.9, rounds=3, input_shape=(3, 16, 16), **how).step(iter([]))
    assert row["layers"] == [[name, mask.numel, mask.count()] for name, mask in sk.masks(model).items()]
    assert sum(kept for _, _, kept in row["layers"]) == kept_count(sum(n for _, n, _ in row["layers"]), 0.9)
    of = {"kind": "collapse", "method": method, "sparsity": 0.9, "seed": 1, "image_size": 16, "rounds": 3}
    assert of.items() <= row.items() and row["environment"]


def row(method: str, seed: int, kept: list[int], sparsity: float = 0.9) -> dict[str, Any]:
    names = {"network": "net", "classes": 10, "image_size": 16, "rounds": 100}
    layers = [[f"layer{i}", 200, n] for i, n in enumerate(kept)]
    return {"kind": "collapse", "method": method, "seed": seed, "sparsity": sparsity, "layers": layers, **names}


def test_the_table() -> None:
    rows = [row("synflow", 0, [50, 3]), row("synflow", 1, [51, 2]), row("synflow-released", 0, [53, 0])]
    rows += [row("synflow-released", 1, [0, 0]), row("synflow", 0, [9, 9], 0.98), {"kind": "compare"}]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in collapse_table(rows).splitlines()[2:]]
    what = "net, 10 classes, 16 px, 100 rounds"
    assert lines == [
        [what, f"90{SPACE}%", "SynFlow", "2", "0", "2", "1 to 1.5"],
        [what, f"90{SPACE}%", "SynFlow (as released)", "2", "1 to 2", "2", "0"],
        [what, f"98{SPACE}%", "SynFlow", "1", "0", "2", "4.5"],
    ]
    assert "| 100 |" in collapse_table([row("synflow", 0, [200, 200], 0.0)])
    alike = [
        row("synflow", seed, [kept]) | {"layers": [["one", 10**6, kept]]} for seed, kept in ((0, 60001), (1, 60002))
    ]
    assert "| 6 |" in collapse_table(alike)  # equal as they are shown
    assert collapse_table([{"kind": "compare"}]) == EMPTY


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, threads = tmp_path / "some" / "rows.jsonl", torch.get_num_threads()
    words = ["--out", str(out), "--network", "resnet8", "--size", "16", "--rounds", "2"]
    main([*words, "--sparsity", "0.9", "0.8", "--seeds", "2", "--threads", str(threads)])
    rows = read_rows(out)
    assert [(r["seed"], r["sparsity"], r["method"]) for r in rows] == [
        (seed, s, method) for seed in (0, 1) for s in (0.9, 0.8) for method in ("synflow", "synflow-released")
    ]
    assert capsys.readouterr().out == f"{collapse_table(rows)}rows: {out}\n"
    for wrong in (["--sparsity", "1.5"], ["--seeds", "0"], ["--rounds", "0"], ["--network", "none"]):
        with pytest.raises(SystemExit):
            main([*words, *wrong, "--threads", str(threads)])
    assert read_rows(out) == rows


def test_the_defaults_are_those_of_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(collapse, "run", lambda *a, **b: seen.append((a, b)) or [])
    main(["--out", str(tmp_path / "rows.jsonl"), "--threads", str(torch.get_num_threads())])
    sparsities, setting = (
        [0.9, 0.93, 0.95, 0.965, 0.98],
        {"network": "vgg19", "classes": 200, "size": 64, "rounds": 100},
    )
    assert seen == [((("synflow", "synflow-released"), sparsities, 3), setting)]
