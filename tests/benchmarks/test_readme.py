# SPDX-License-Identifier: Apache-2.0
"""README tables come from rows alone, and --check sees when they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from comparison_rows import CONFIG, ENVIRONMENT, comparison

from sparsekit.benchmarks.readme import DOCUMENTS, EMPTY, RESULTS, TABLES, fill, kernel_table, main, topk_table
from sparsekit.benchmarks.rows import append_row, read_rows, rows_so_far

TEXT = """# x

<!-- table:compare-digits -->
old
<!-- /table -->

between

<!-- table:kernels -->
<!-- /table -->
end
"""


def bench(**changes: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "kind": "bench",
        "bench": "topk_mask",
        "problem": "resnet18",
        "provider": "sparsekit",
        "baseline": "kthvalue",
        "median_s": 1e-3,
        "q20_s": 9e-4,
        "q80_s": 1.1e-3,
        "baseline_median_s": 2e-3,
        "ratio": 2.0,
        "environment": ENVIRONMENT,
    } | changes


def test_fill_replaces_only_tables_and_is_stable() -> None:
    rows = [*comparison(), bench()]
    text = fill(TEXT, rows)
    assert text.startswith("# x\n") and "\nbetween\n" in text and text.endswith("\nend\n") and "old" not in text
    assert fill(text, rows) == text
    lines = [line for line in text.splitlines() if line.startswith("| 90\N{NO-BREAK SPACE}% | BiP |")]
    assert len(lines) == 1 and "1.50×" in lines[0] and "non-inferior" in lines[0]
    assert "| topk_mask | resnet18 | sparsekit | 1.00\N{NO-BREAK SPACE}ms |" in text
    columns = {line.count("|") for line in text.splitlines() if line.startswith("|") and "topk" not in line}
    assert columns == {12, 10}


def test_no_rows_no_claim() -> None:
    text = fill(TEXT, [])
    assert text.count(EMPTY) == 2 and "|" not in text
    assert all(table([]) == EMPTY for table in TABLES.values())


def test_data_sets_are_kept_apart() -> None:
    rows = comparison()
    assert TABLES["compare-cifar10"](rows) == EMPTY == TABLES["compare-mlp"](rows)
    assert TABLES["compare-digits"](rows) != EMPTY
    folder = {"config": CONFIG | {"data": "some/where/CIFAR-10-jpeg", "network": "resnet20"}}
    text = TABLES["compare-cifar10"]([row | folder for row in rows])
    assert "resnet20 on CIFAR-10-jpeg" in text and "some/where" not in text


def test_kernel_table_takes_the_last_row_and_names_losses() -> None:
    text = kernel_table([bench(ratio=9.0), bench(ratio=0.5), bench(provider="kthvalue", ratio=1.0)])
    assert "9.00×" not in text and "0.50× (slower)" in text and text.count("topk_mask") == 1
    other = bench(environment=ENVIRONMENT | {"gpu": {"name": "Example GPU"}})
    assert kernel_table([bench(), other]).count("topk_mask") == 2


def topk(provider: str, ratio: float, problem: str = "1e6/float32/normal/20%", **changes: Any) -> dict[str, Any]:
    facts = {"baseline": "kthvalue + compare", "contents": problem.split("/")[2], "floor_ratio": 4.0}
    return bench(problem=problem, provider=provider, ratio=ratio, **facts) | changes


def cells(text: str) -> list[list[str]]:
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [lines[0], *lines[2:]]


def test_topk_table_has_one_line_for_each_problem() -> None:
    rows = [
        topk("kthvalue + compare", 1.0, note="not exact under ties"),
        topk("topk + scatter", 0.5),
        topk("copy floor", 80.0),
        topk("sparsekit, packed", 20.0),
        topk("topk + scatter", 0.5, "resnet50-161/bfloat16/normal/5%"),
        topk("sparsekit, packed", 0.25, "resnet50-161/bfloat16/normal/5%", median_s=2.0, floor_ratio=1.25),
        topk("kthvalue + compare", 1.0, "1e7/float32/two/5%"),  # nothing of ours: no line
    ]
    space = "\N{NO-BREAK SPACE}"
    assert cells(topk_table(rows)) == [
        ["scores", "kept", "packed masks", "times the copy", "against kthvalue + compare", "against topk + scatter"],
        ["1e6 float32 normal", "20%", f"1.00{space}ms", "4.00×", "20.0× †", "40.0×"],
        ["resnet50-161 bfloat16 normal", "5%", f"2.00{space}s", "1.25×", "–", "0.50× (slower)"],
    ]


def test_topk_table_takes_the_last_row_of_each_machine() -> None:
    other = {"environment": ENVIRONMENT | {"gpu": {"name": "Example GPU"}}}
    late = {"environment": ENVIRONMENT | {"timestamp": "2026-11-22T03:00:00+00:00"}}
    rows = [
        topk("kthvalue + compare", 1.0),
        topk("sparsekit, packed", 20.0),
        topk("sparsekit, packed", 30.0, **late),
        topk("kthvalue + compare", 1.0, **other),
    ]
    text = topk_table(rows)
    assert "30.0×" in text and "20.0×" not in text and "Example GPU" not in text
    text = topk_table([*rows, topk("sparsekit, packed", 70.0, **other)])
    assert text.count("| scores |") == 2 and "70.0×" in text and "Example GPU" in text
    assert topk_table([topk("kthvalue + compare", 1.0)]) == EMPTY


def test_every_kernel_row_is_shown_in_one_table() -> None:
    old, new = bench(), topk("sparsekit, packed", 20.0)
    assert kernel_table([new]) == EMPTY == topk_table([old])
    assert kernel_table([old, new]) == kernel_table([old]) and topk_table([old, new]) == topk_table([new])
    committed = [row for row in read_rows(RESULTS) if row.get("kind") == "bench"]
    others = [row for row in committed if row["bench"] != "topk_mask"]
    assert len(committed) > len(others) > 0 and kernel_table(committed) == kernel_table(others)
    assert all(row["problem"] in kernel_table(committed) for row in others)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table:other -->\n<!-- /table -->", "expected a table among compare-digits"),
        ("<!-- table:kernels -->\n", "1 opened and 0 closed"),
        ("<!-- /table -->\n", "0 opened and 1 closed"),
    ],
)
def test_bad_markers(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fill(text, [])


def test_main(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme, results = tmp_path / "README.md", tmp_path / "results"
    readme.write_text(TEXT, encoding="utf-8")
    readme.chmod(0o640)
    for found in comparison():
        append_row(results / "rows.jsonl", found)
    arguments = ["--readme", str(readme), "--results", str(results)]
    assert main([*arguments, "--check"]) == 1 and readme.read_text(encoding="utf-8") == TEXT
    assert "stale" in capsys.readouterr().err
    assert main(arguments) == 0 and main([*arguments, "--check"]) == 0
    assert "BiP" in readme.read_text(encoding="utf-8") and readme.stat().st_mode & 0o777 == 0o640
    with pytest.raises(SystemExit):
        main(["--readme", str(tmp_path / "none.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_committed_tables_are_fresh(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert fill(text, rows_so_far(RESULTS)) == text
