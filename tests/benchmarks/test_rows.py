# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsekit.benchmarks.rows import append_row, read_rows, rows_so_far


def test_rows_come_back_in_order(tmp_path: Path):
    path = tmp_path / "new" / "rows.jsonl"
    rows = [{"n": 1, "name": "ä\nb", "deep": {"x": [1, 2.5, None, True]}}, {"n": 2}]
    for row in rows:
        append_row(path, row)
    assert read_rows(path) == rows and path.read_bytes().count(b"\n") == 2


def test_tensors_arrays_and_paths_become_json(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    append_row(path, {"t": torch.tensor(1.5), "a": np.arange(2), "s": np.float32(2), "p": Path("x"), "l": (1, 2)})
    append_row(path, {"bad": [float("nan"), float("inf"), torch.tensor(float("-inf"))]})
    assert read_rows(path) == [{"t": 1.5, "a": [0, 1], "s": 2.0, "p": "x", "l": [1, 2]}, {"bad": [None] * 3}]


def test_values_without_a_json_form_are_refused_and_nothing_is_written(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    with pytest.raises(TypeError, match=r"row\.a\[1\]: expected a JSON value, got object"):
        append_row(path, {"a": [1, object()]})
    with pytest.raises(TypeError, match="row.a: expected keys of type str, got 1"):
        append_row(path, {"a": {1: 2}})
    assert not path.exists()


@pytest.mark.parametrize("tail", [b'{"n": 2, "na', b'{"n": 2', b'{"name": "\xc3', b"{"])
def test_an_unfinished_last_line_is_skipped_then_removed(tmp_path: Path, caplog, tail: bytes):
    path = tmp_path / "rows.jsonl"
    append_row(path, {"n": 1})
    with path.open("ab") as file:
        file.write(tail)
    with caplog.at_level(logging.WARNING):
        assert read_rows(path) == [{"n": 1}]
    assert "rows.jsonl:2: unfinished last line skipped" in caplog.text
    append_row(path, {"n": 3})
    assert read_rows(path) == [{"n": 1}, {"n": 3}]


def test_a_file_that_is_one_unfinished_line(tmp_path: Path, caplog):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n"')
    with caplog.at_level(logging.WARNING):
        append_row(path, {"n": 1})
    assert read_rows(path) == [{"n": 1}]


def test_a_last_line_that_lacks_only_its_newline_is_kept(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": 1}')
    assert read_rows(path) == [{"n": 1}]
    append_row(path, {"n": 2})
    assert read_rows(path) == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize("line", ["{", "[1]", "3", "text"])
def test_other_damaged_lines_are_errors_with_their_place(tmp_path: Path, line: str):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"n": 1}}\n\n{line}\n{{"n": 2}}\n')
    with pytest.raises(ValueError, match="rows.jsonl:3: expected a JSON object"):
        read_rows(path)
    path.write_text(f'{{"n": 1}}\n{line}\n')
    with pytest.raises(ValueError, match="rows.jsonl:2: expected a JSON object"):
        read_rows(path)


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path):
    append_row(tmp_path / "b.jsonl", {"n": 2})
    append_row(tmp_path / "a.jsonl", {"n": 1})
    (tmp_path / "notes.txt").write_text("no rows")
    assert read_rows(tmp_path) == [{"n": 1}, {"n": 2}]
    with pytest.raises(ValueError, match="expected a file or folder, got .*missing"):
        read_rows(tmp_path / "missing")


def test_before_the_first_row_there_are_none(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    assert rows_so_far(path) == []
    append_row(path, {"n": 1})
    assert rows_so_far(path) == rows_so_far(tmp_path) == [{"n": 1}]


def test_many_writers_leave_whole_lines(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: append_row(path, {"n": n, "text": "x" * 5000}), range(40)))
    assert sorted(row["n"] for row in read_rows(path)) == list(range(40))


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on files")
def test_a_full_disk_names_the_file_and_the_next_row_mends_it(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    append_row(path, {"n": 1})
    program = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    program += "resource.setrlimit(resource.RLIMIT_FSIZE, (60, 60))\n"
    program += "from sparsekit.benchmarks.rows import append_row\n"
    program += "try: append_row(sys.argv[1], {'n': 'x' * 99})\nexcept OSError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout and str(path) in done.stdout
    assert path.stat().st_size == 60 and read_rows(path) == [{"n": 1}]
    append_row(path, {"n": 2})
    assert read_rows(path) == [{"n": 1}, {"n": 2}]
