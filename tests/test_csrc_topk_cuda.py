# SPDX-License-Identifier: Apache-2.0
"""CUDA selections beyond the fuzz: one per row, misled samples, warm starts, geometry, repetition, size, capture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from emulator import SMALL, emulated
from packed import layout, new_words, unpack
from selections import Case, assert_equal, code_of, contents, draw, draw_kept, expected, sampled_positions, select_cuda

from sparsekit import _C, ops


@pytest.mark.parametrize("key", ["value", "magnitude"])
@pytest.mark.parametrize("nan", ["error", "drop", "keep"])
def test_rows(key: str, nan: str) -> None:
    module, rng = emulated(*SMALL), np.random.default_rng(3)
    for _ in range(60):
        scores = draw(rng, 12)[0]
        rows, cols = layout(scores.shape)
        kept = draw_kept(rng, cols)
        words, invalid = new_words(scores.shape), torch.zeros(1, dtype=torch.uint8)
        pointers = scores.data_ptr(), words.data_ptr()
        module.cuda_topk_mask_rows(
            *pointers, rows, cols, kept, code_of(module, [scores]), key, nan, invalid.data_ptr(), 0, 0
        )
        got, nans = unpack(words, scores.shape).reshape(rows, cols), 0
        for row, mask in zip(scores.reshape(rows, cols), got, strict=True):
            (want,), found = expected([row], kept, key, nan)
            assert_equal([mask], [want], (row, kept))
            nans += found
        assert bool(invalid) == (nan == "error" and nans > 0)


@pytest.mark.parametrize("sizes", [(), SMALL], ids=["real sizes", "small"])
@pytest.mark.parametrize("kind", ["normal", "few", "two", "zeros", "close"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_tiles_at_once(kind: str, dtype: torch.dtype, sizes: tuple[str, ...]) -> None:
    """Large enough for candidates to be gathered, scattered, and cut at a boundary."""
    rng, module = np.random.default_rng(5), emulated(*sizes)
    for share in (0.05, 0.5, 0.95):
        flat = torch.from_numpy(contents(rng, kind, 100_000)).to(dtype)
        scores = [flat[:64_000].reshape(250, 256), flat[64_000:90_000], flat[90_000:].reshape(100, 100)]
        case = Case(scores, int(share * 100_000), "magnitude", "error")
        assert_equal(select_cuda(module, case)[0], expected(scores, case.kept, "magnitude", "error")[0], (kind, share))


def test_a_misled_sample_costs_passes_not_exactness() -> None:
    """Every sampled score is far above, far below, or a tie in the middle of the others."""
    module = emulated(*SMALL)
    for value in (100.0, 0.0, 0.3):
        scores = torch.randn(40, 160, generator=torch.Generator().manual_seed(1))
        scores.view(-1)[torch.from_numpy(sampled_positions(6400, 8).astype(np.int64))] = value
        for kept in (1, 100, 3200, 6300):
            case = Case([scores], kept, "magnitude", "error")
            assert_equal(select_cuda(module, case)[0], expected([scores], kept, "magnitude", "error")[0], (value, kept))


def test_warm_starts_follow_the_scores() -> None:
    """A drifting threshold, a sudden jump, other counts and keys: the warm start is never trusted, only tried."""
    module, warm = emulated(*SMALL), ops.warm_start(1)
    generator = torch.Generator().manual_seed(2)
    scores, used = torch.randn(50, 128, generator=generator), 0
    for step in range(12):
        scores = scores + 0.01 * torch.randn(50, 128, generator=generator)
        scores = scores * 3 if step == 8 else scores
        case = Case([scores], 3000 if step != 5 else 50, "magnitude" if step != 7 else "value", "error")
        used += int(warm[0, 2])
        assert_equal(select_cuda(module, case, warm=warm)[0], expected([scores], case.kept, case.key, "error")[0], step)
        assert warm[0, 2] == 0 or warm[0, 0] < warm[0, 1]
    assert used >= 6, "hardly any selection left something to begin with"


def test_the_result_is_a_function_of_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 repetitions, each with another grid and another order of the threads."""
    module = emulated(*SMALL)
    scores = [torch.randn(30, 96).mul(8).round().div(8), torch.randn(700).bfloat16().float(), torch.zeros(9, 33)]
    case = Case(scores, 1700, "magnitude", "error")
    want, _ = expected(scores, 1700, "magnitude", "error")
    for repetition in range(100):
        monkeypatch.setenv("EMULATOR_SEED", str(repetition))
        monkeypatch.setenv("EMULATOR_PROCESSORS", str(1 + repetition % 5))
        assert_equal(select_cuda(module, case, max_blocks=repetition % 7)[0], want, repetition)


def test_many_tensors_take_several_tables() -> None:
    """More tensors than fit into the arguments of one launch."""
    module, generator = emulated(*SMALL), torch.Generator().manual_seed(4)
    scores = [torch.randn(1 + i % 3, 5, generator=generator) for i in range(130)]
    kept = [i % 5 for i in range(130)]
    case = Case(scores, 700, "value", "error")
    assert_equal(select_cuda(module, case)[0], expected(scores, 700, "value", "error")[0], "global")
    for score, k, mask in zip(scores, kept, select_cuda(module, case, kept)[0], strict=True):
        assert_equal([mask], expected([score], k, "value", "error")[0], k)


def test_bad_arguments_are_refused() -> None:
    module = emulated(*SMALL)
    score, words = torch.randn(4, 8), new_words((4, 8))
    lists = [score.data_ptr()], [words.data_ptr()], [4], [8]
    rest = (0, "value", "error", 0, 0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="kept: expected 0 to 32, got 33"):
        module.cuda_topk_mask(*lists, [33], False, *rest)
    with pytest.raises(ValueError, match="words: expected 1 entries, got 2"):
        module.cuda_topk_mask(lists[0], lists[1] * 2, *lists[2:], [3], False, *rest)
    with pytest.raises(ValueError, match="kept: expected 1 entries, got 2"):
        module.cuda_topk_mask(*lists, [3, 3], True, *rest)
    with pytest.raises(ValueError, match="workspace_bytes: expected at least"):
        module.cuda_topk_mask(*lists, [3], False, *rest)
    with pytest.raises(ValueError, match="method: expected one of bracket, radix, got sort"):
        module.cuda_topk_mask(*lists, [3], False, *rest, method="sort")
    with pytest.raises(ValueError, match=r"topk_mask_rows: cols: expected less than 2\^32, got 4294967296"):
        module.cuda_topk_mask_rows(0, 0, 0, 2**32, 1, 0, "value", "error", 0, 0, 0)
    assert (words == -1).all()


def test_a_device_that_runs_no_block_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    module, device = emulated(*SMALL), 63  # which nothing has asked how many it runs
    score, words, invalid = torch.randn(4, 8), new_words((4, 8)), torch.zeros(1, dtype=torch.uint8)
    workspace = torch.zeros(module.cuda_topk_workspace([4], [8], False, 0), dtype=torch.uint8)
    memory = invalid.data_ptr(), 0, workspace.data_ptr(), len(workspace)
    monkeypatch.setenv("EMULATOR_PROCESSORS", "0")
    with pytest.raises(RuntimeError, match="CUDA error"):
        module.cuda_topk_mask(
            [score.data_ptr()], [words.data_ptr()], [4], [8], [3], False, 0, "value", "error", *memory, device, 0
        )


@pytest.mark.gpu
def test_100_repetitions_on_a_device() -> None:
    scores = [torch.randn(3000, 1000).mul(100).round().div(100), torch.randn(70, 147)]
    case = Case(scores, 700_000, "magnitude", "error")
    want, _ = expected(scores, case.kept, "magnitude", "error")
    for repetition in range(100):
        got, _ = select_cuda(_C, case, device="cuda", max_blocks=[0, 1, 7, 100][repetition % 4])
        assert_equal(got, want, repetition)


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements() -> None:
    """Keys in closed form: the score of element i is hash(i) mod 2^16, so ranks and ties are known without a sort."""
    n, period = 2**31 + 2**20 + 64, 2**16
    scores = (torch.arange(n, device="cuda", dtype=torch.int64) * 40503 % period).to(torch.float16).view(-1, 64)
    flat = scores.view(-1)
    kept = n // 3
    words = ops.topk_mask([scores], kept, key="value").masks[0]
    assert int(ops.popcount(words)) == kept
    mask = ops.unpack_mask(words, scores.shape).view(-1)
    lowest_kept = min(
        float(part[m].min()) for part, m in zip(flat.split(2**28), mask.split(2**28), strict=True) if m.any()
    )
    seen_tie_left_out = False
    for part, m in zip(flat.split(2**28), mask.split(2**28), strict=True):
        assert bool(m[part > lowest_kept].all()) and not bool(m[part < lowest_kept].any())
        ties = m[part == lowest_kept]
        assert not (seen_tie_left_out and bool(ties.any())), "a later tie was kept instead of an earlier one"
        first_out = int((~ties).to(torch.int8).argmax()) if not bool(ties.all()) else len(ties)
        assert not bool(ties[first_out:].any())
        seen_tie_left_out |= first_out < len(ties)


@pytest.mark.gpu
def test_capture_and_replay() -> None:
    scores = [torch.randn(500, 300, device="cuda"), torch.randn(999, device="cuda")]
    ops.topk_mask(scores, 40_000)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = ops.topk_mask(scores, 40_000)
    for seed in range(3):
        for score in scores:
            score.copy_(torch.randn(score.shape, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        want, _ = expected([s.cpu() for s in scores], 40_000, "magnitude", "error")
        assert_equal([unpack(w.cpu(), s.shape) for w, s in zip(result.masks, scores, strict=True)], want, seed)
