# SPDX-License-Identifier: Apache-2.0
"""Which route a masked product takes, and what autotuning remembers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from sparsekit import ops
from sparsekit.kernels import masked_linear_configs as configs
from sparsekit.ops import autotune, proofs
from sparsekit.ops.triton_linear import route
from sparsekit.ops.triton_linear_problems import Problem, candidates

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Tiles:
    """A config of two numbers."""

    rows: int
    cols: int


CANDIDATES = [Tiles(1, 2), Tiles(3, 4), Tiles(5, 6)]


@pytest.fixture(autouse=True)
def tuner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(autotune, "_chosen", {})
    monkeypatch.setattr(autotune, "place", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(autotune, "seconds", lambda run, device: run())


def times(*values: float | None):
    """A ``run`` by which each candidate takes so long; None must not serve."""
    table = dict(zip(CANDIDATES, values, strict=True))
    return lambda config: None if table[config] is None else (lambda: table[config])


def refuses(config: Tiles):
    raise AssertionError("nothing is timed here")


def test_the_fastest_serves_and_is_remembered_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    assert autotune.pick("a", CANDIDATES, times(3.0, 1.0, 2.0), CPU) == Tiles(3, 4)
    assert autotune.pick("a", CANDIDATES, refuses, CPU) == Tiles(3, 4)
    assert autotune.pick("b", CANDIDATES, times(3.0, None, 2.0), CPU) == Tiles(5, 6)
    assert json.loads(autotune.cache_file().read_text()) == {
        "a GPU": {"a": {"rows": 3, "cols": 4}, "b": {"rows": 5, "cols": 6}}
    }
    monkeypatch.setattr(autotune, "_chosen", {})
    assert autotune.pick("a", CANDIDATES, refuses, CPU) == Tiles(3, 4)
    monkeypatch.setattr(autotune, "_chosen", {})
    monkeypatch.setattr(autotune, "place", lambda device: "another GPU")
    assert autotune.pick("a", CANDIDATES, times(1.0, 2.0, 3.0), CPU) == Tiles(1, 2)
    assert set(json.loads(autotune.cache_file().read_text())) == {"a GPU", "another GPU"}
    assert [file.name for file in autotune.cache_file().parent.iterdir()] == ["autotune.json"]


def test_a_remembered_choice_that_is_no_candidate_any_more_is_timed_again() -> None:
    autotune.save("a GPU", "a", Tiles(7, 8))
    assert autotune.pick("a", CANDIDATES, times(2.0, 1.0, 3.0), CPU) == Tiles(3, 4)


def test_inside_a_capture_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert autotune.pick("a", CANDIDATES, refuses, CPU) == Tiles(1, 2)
    assert not autotune._chosen and not autotune.cache_file().exists()


def test_where_nothing_may_serve_nothing_is_remembered() -> None:
    assert autotune.pick("a", CANDIDATES, times(None, None, None), CPU) == Tiles(1, 2)
    assert not autotune.cache_file().exists()


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a GPU": 3}', "\x00"])
def test_a_file_that_is_broken_is_ignored_with_a_warning_and_replaced(text: str) -> None:
    autotune.cache_file().parent.mkdir(parents=True)
    autotune.cache_file().write_text(text)
    with pytest.warns(RuntimeWarning, match="autotune.json: not readable as a cache of tuned kernels; ignored"):
        assert autotune.pick("a", CANDIDATES, times(2.0, 1.0, 3.0), CPU) == Tiles(3, 4)
    assert autotune.load() == {"a GPU": {"a": {"rows": 3, "cols": 4}}}


def test_a_folder_that_cannot_be_written_costs_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(autotune, "cache_file", lambda: tmp_path / "file" / "folder" / "autotune.json")
    monkeypatch.setattr(autotune, "load", dict)
    with pytest.warns(RuntimeWarning, match="tuned kernels are not remembered"):
        assert autotune.pick("a", CANDIDATES, times(2.0, 1.0, 3.0), CPU) == Tiles(3, 4)


def test_routes() -> None:
    hopper, big = (9, 0), (4096, 4096)
    assert route(1, *big, BF16, BF16, hopper) == "fused"
    most = configs.FUSED_TOKENS
    for kind, types in {"narrow": (FP16, FP16), "masters": (BF16, FP32)}.items():
        assert route(most[kind], *big, *types, hopper) == "fused"
        assert route(most[kind] + 1, *big, *types, hopper) == "hybrid"
    assert route(most["fp32"] + 1, *big, FP32, FP32, hopper) == "hybrid"
    assert route(most["fp32"] + 1, *big, FP32, FP32, hopper, tf32=True) == "fused"
    assert route(1024, *big, BF16, BF16, (8, 0)) == "hybrid"
    assert route(16, *big, BF16, BF16, (8, 0)) == "fused"
    for plain in (
        route(0, *big, BF16, BF16, hopper),
        route(8, 1000, 1000, BF16, BF16, hopper),
        route(8, *big, FP64, FP64, hopper),
        route(8, *big, FP32, BF16, hopper),
        route(8, *big, BF16, FP16, hopper),
        route(8, *big, BF16, BF16, (7, 5)),
    ):
        assert plain == "hybrid"


def test_tiles_of_every_size_of_problem() -> None:
    types = [(BF16, BF16, False), (FP16, FP32, False), (FP32, FP32, True), (FP32, FP32, False)]
    for capability in ((9, 0), (8, 6), (10, 0)):
        for x_type, weight_type, tf32 in types:
            for tokens in (1, 16, 17, 64, 100, 512, 5000):
                for product in ("y", "dx", "dw", "dense dw"):
                    problem = Problem(product, x_type, weight_type, tf32, tokens, 4096, 1024)
                    assert candidates(problem, capability, 132)


def test_sums_are_split_until_the_device_is_full_but_not_into_crumbs() -> None:
    tiles = configs.ProductConfig(64, 16, 128, 4, 4)
    assert configs.split_for(tiles, 16, 4096, 4096, 132) == 4
    assert configs.split_for(tiles, 16, 8192, 8192, 132) == 2
    assert configs.split_for(tiles, 16, 1024, 65536, 132) == 16
    assert configs.split_for(tiles, 16, 1024, 1024, 132) == 2
    assert configs.split_for(tiles, 16, 64, 128, 132) == 1
    assert configs.split_for(tiles, 16, 65536, 65536, 132) == 1
    large = configs.ProductConfig(128, 128, 64, 8, 4)
    assert [configs.split_for(large, tokens, 4096, 4096, 132) for tokens in (128, 256, 512, 1024)] == [4, 2, 1, 1]
    assert configs.split_for(configs.ProductConfig(64, 16, 128, 4, 4, 3), 16, 64, 64, 132) == 3


def test_what_serves_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "_proofs", {})
    assert ops.capabilities()["masked_linear"]["cuda"].startswith("triton | ")
    proofs._proofs["masked_linear", 0, "one"] = True
    assert ops.capabilities()["masked_linear"]["cuda"].startswith("triton, proven | ")
    proofs._proofs["masked_linear", 0, "two"] = False
    assert ops.capabilities()["masked_linear"]["cuda"].startswith("triton failed its proof | ")
    assert "triton" not in ops.capabilities()["topk_mask"]["cuda"]
