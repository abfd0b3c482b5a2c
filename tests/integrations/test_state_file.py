# SPDX-License-Identifier: Apache-2.0
"""Nested state in one safetensors file: what goes in comes out, and nothing else is accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from sparsekit.integrations.state_file import load_state, save_state

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4)
KEYS = st.text(max_size=3) | st.integers()
NESTED = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=10,
)


@given(st.dictionaries(KEYS, NESTED, max_size=4))
def test_plain_values_come_back(tmp_path_factory: pytest.TempPathFactory, state: dict[Any, Any]) -> None:
    file = tmp_path_factory.getbasetemp() / "state.safetensors"
    save_state(state, file)
    again = load_state(file)
    assert again == state and repr(again) == repr(state)  # 1, 1.0 and True are equal, yet not the same


def test_tensors_come_back(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    state = {
        "t": base.t(),
        "same": base,
        3: [torch.tensor(True), (torch.ones(0, 2, dtype=torch.int64), {"x": torch.tensor(2.5, dtype=torch.bfloat16)})],
        "leaf": base.clone().requires_grad_(),
    }
    save_state(state, tmp_path / "s")
    again = load_state(tmp_path / "s")
    assert list(again) == list(state) and isinstance(again[3][1], tuple)
    pairs = [(again["t"], base.t()), (again["same"], base), (again[3][0], state[3][0]), (again["leaf"], base)]
    pairs += [(again[3][1][0], state[3][1][0]), (again[3][1][1]["x"], state[3][1][1]["x"])]
    assert all(torch.equal(a, b) and a.dtype == b.dtype and not a.requires_grad for a, b in pairs)


@pytest.mark.parametrize(
    "state, text",
    [
        ({"a": [object()]}, "save_state: state.0.0: expected tensors and plain values, got object"),
        ({"a": {1.5: 0}}, "save_state: state.0: expected keys of type str or int, got 1.5"),
    ],
)
def test_other_things_are_refused_and_leave_no_file(tmp_path: Path, state: dict[str, Any], text: str) -> None:
    with pytest.raises(TypeError, match=text):
        save_state(state, tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "plain")
    for i, text in enumerate(
        ["[1]", '{"set": []}', '{"tensor": "y"}', "{", '{"dict": [1]}', '{"dict": {}, "list": []}']
    ):
        save_file({"x": torch.ones(1)}, tmp_path / f"bad{i}", metadata={"sparsekit-state-1": text})
    (tmp_path / "text").write_text("hello")
    for file in [*tmp_path.iterdir(), tmp_path / "absent"]:
        with pytest.raises(ValueError, match="load_state: path: expected a saved state, got"):
            load_state(file)
