# SPDX-License-Identifier: Apache-2.0
"""topk_mask: literal tables first, then a stable sort in numpy."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import topk_oracle
from torch import Tensor

from sparsekit import ops
from sparsekit.ops import reference

NAN, INF = float("nan"), float("inf")
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
DENORMAL = 1e-45  # the smallest float32


def select(scores: list[list[float]], kept, dtype: torch.dtype = torch.float32, **options) -> tuple[list, bool]:
    """Kept flags as 0/1 lists, and the invalid flag."""
    selection = ops.topk_mask([torch.tensor(s, dtype=dtype) for s in scores], kept, out="bool", **options)
    assert selection.invalid.dtype == torch.bool and selection.invalid.shape == ()
    return [mask.int().tolist() for mask in selection.masks], bool(selection.invalid)


# scores, kept, options -> masks: global scope
GLOBAL = [
    ("all equal", [[1, 1, 1], [1, 1]], 2, {}, [[1, 1, 0], [0, 0]]),
    ("all equal, over the border", [[1, 1, 1], [1, 1]], 4, {}, [[1, 1, 1], [1, 0]]),
    ("tie across tensors", [[0, 5], [5, 9]], 2, {}, [[0, 1], [0, 1]]),
    ("tie by magnitude", [[-2, 1], [2, 3]], 2, {}, [[1, 0], [0, 1]]),
    ("signed value", [[-2, 1], [2, 3]], 2, {"key": "value"}, [[0, 0], [1, 1]]),
    ("signed value, all negative", [[-3, -1, -2]], 2, {"key": "value"}, [[0, 1, 1]]),
    ("zeros are equal", [[-0.0, 0.0, -0.0]], 1, {}, [[1, 0, 0]]),
    ("zeros are equal by value", [[-0.0, 0.0, -0.0, 0.0]], 2, {"key": "value"}, [[1, 1, 0, 0]]),
    ("zero ties over tensors", [[-1, 0.0], [-0.0, -2]], 1, {"key": "value"}, [[0, 1], [0, 0]]),
    ("infinite by magnitude", [[1, -INF, INF, 2]], 2, {}, [[0, 1, 1, 0]]),
    ("infinite by value", [[1, -INF, INF, 2]], 3, {"key": "value"}, [[1, 0, 1, 1]]),
    ("infinite ties", [[INF], [-INF], [INF]], 2, {}, [[1], [1], [0]]),
    ("minus infinity is a number", [[-INF, -INF]], 1, {"key": "value"}, [[1, 0]]),
    ("denormals", [[DENORMAL, 0.0, 2 * DENORMAL, -DENORMAL]], 2, {}, [[1, 0, 1, 0]]),
    ("denormals by value", [[-DENORMAL, 0.0, -2 * DENORMAL]], 2, {"key": "value"}, [[1, 1, 0]]),
    ("none", [[3, 1], [2]], 0, {}, [[0, 0], [0]]),
    ("all", [[3, 1], [2]], 3, {}, [[1, 1], [1]]),
    ("empty tensors between", [[], [1, 2], []], 1, {}, [[], [0, 1], []]),
    ("only empty tensors", [[], []], 0, {}, [[], []]),
    ("one element", [[7]], 1, {}, [[1]]),
]


@pytest.mark.parametrize(("scores", "kept", "options", "masks"), [c[1:] for c in GLOBAL], ids=[c[0] for c in GLOBAL])
def test_global_literal(scores, kept, options, masks) -> None:
    assert select(scores, kept, **options) == (masks, False)


# policy -> masks, invalid; scores [nan, 3], [1, nan, -inf]
NANS = [
    ("error", "magnitude", 3, [[0, 1], [1, 0, 1]], True),
    ("drop", "magnitude", 3, [[0, 1], [1, 0, 1]], False),
    ("drop", "magnitude", 5, [[0, 1], [1, 0, 1]], False),
    ("drop", "value", 2, [[0, 1], [1, 0, 0]], False),
    ("keep", "magnitude", 1, [[1, 0], [0, 0, 0]], False),
    ("keep", "magnitude", 3, [[1, 0], [0, 1, 1]], False),
    ("keep", "value", 3, [[1, 1], [0, 1, 0]], False),
    ("error", "magnitude", 0, [[0, 0], [0, 0, 0]], True),
    ("keep", "value", 0, [[0, 0], [0, 0, 0]], False),
]


@pytest.mark.parametrize(("nan", "key", "kept", "masks", "invalid"), NANS)
def test_nan_literal(nan, key, kept, masks, invalid) -> None:
    assert select([[NAN, 3], [1, NAN, -INF]], kept, nan=nan, key=key) == (masks, invalid)


@pytest.mark.parametrize("nan", ["error", "drop", "keep"])
def test_nan_sign_does_not_matter(nan: str) -> None:
    negative = torch.tensor([-1], dtype=torch.int32).view(torch.float32)  # NaN with the sign bit set
    scores = [torch.cat([torch.tensor([1.0, NAN, -3.0]), negative])]
    for key in ("value", "magnitude"):
        selection = ops.topk_mask(scores, 2, key=key, nan=nan, out="bool")
        expected, invalid = topk_oracle(scores, 2, key=key, nan=nan)
        assert torch.equal(selection.masks[0], expected[0]) and bool(selection.invalid) == invalid


@pytest.mark.parametrize("nan", ["error", "drop", "keep"])
def test_all_nan(nan: str) -> None:
    masks, invalid = select([[NAN, NAN, NAN]], 2, nan=nan)
    assert masks == ([[1, 1, 0]] if nan == "keep" else [[0, 0, 0]]) and invalid == (nan == "error")


def test_tensor_scope_literal() -> None:
    scores = [[1, 9, 5], [2, 2], [], [4]]
    assert select(scores, [2, 1, 0, 0], scope="tensor") == ([[0, 1, 1], [1, 0], [], [0]], False)


def test_row_scope_literal() -> None:
    scores = [[[1, 9, 5], [3, 3, 3], [-7, 0, NAN]], [[0.0], [1.0]]]
    masks = [[[0, 1, 1], [1, 1, 0], [1, 1, 0]], [[1], [1]]]
    assert select(scores, [2, 1], scope="row", nan="drop") == (masks, False)
    assert select(scores, [0, 0], scope="row", nan="error")[1]


def test_a_vector_is_one_row() -> None:
    assert select([[3, 1, 2]], [1], scope="row") == ([[1, 0, 0]], False)


def test_no_tensors() -> None:
    for scope, kept in (("global", 0), ("tensor", []), ("row", [])):
        selection = ops.topk_mask([], kept, scope=scope)
        assert selection.masks == [] and not selection.invalid


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("scope", ["global", "tensor", "row"])
def test_empty_shapes(shape: tuple[int, ...], scope: str) -> None:
    selection = ops.topk_mask([torch.zeros(shape)], 0 if scope == "global" else [0], scope=scope)
    assert tuple(selection.masks[0].shape) == ops.words_shape(shape) and not selection.invalid
    selection = ops.topk_mask([torch.zeros(shape)], 0 if scope == "global" else [0], scope=scope, out="bool")
    assert tuple(selection.masks[0].shape) == shape


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_extremes_of_each_dtype(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    scores = [
        torch.tensor([info.tiny, info.smallest_normal / 2, info.max, -info.max, INF, 0.0, -0.0, info.eps], dtype=dtype)
    ]
    for key in ("value", "magnitude"):
        for kept in range(9):
            assert torch.equal(
                ops.topk_mask(scores, kept, key=key, out="bool").masks[0], topk_oracle(scores, kept, key)[0][0]
            )


def test_neighbouring_float64_are_told_apart() -> None:
    base = torch.tensor(1.0, dtype=torch.float64)
    scores = [torch.stack([base, torch.nextafter(base, base * 2), torch.nextafter(base, base * 0)])]
    assert ops.topk_mask(scores, 1, out="bool").masks[0].tolist() == [False, True, False]
    assert ops.topk_mask(scores, 2, out="bool").masks[0].tolist() == [True, True, False]


def test_mixed_dtypes_compare_by_value() -> None:
    scores = [torch.tensor([0.1], dtype=torch.float16), torch.tensor([0.1]), torch.tensor([0.1], dtype=torch.float64)]
    assert topk_oracle(scores, 1)[0][1].item()  # float32 rounds 0.1 up, float16 down
    for kept in range(4):
        got = ops.topk_mask(scores, kept, out="bool").masks
        assert [m.item() for m in got] == [m.item() for m in topk_oracle(scores, kept)[0]]


def crowded(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32, specials: bool = False) -> Tensor:
    """Scores with many ties, and some NaN and infinities if asked for."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(shape, generator=generator).mul(3).round().div(3).to(dtype)
    if specials and scores.numel():
        dice = torch.rand(shape, generator=generator)
        scores = scores.masked_fill(dice < 0.1, NAN).masked_fill(dice > 0.95, INF).masked_fill(dice > 0.98, -INF)
    return scores


@settings(max_examples=120)
@given(
    st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=4),
    st.floats(0, 1),
    st.sampled_from(["value", "magnitude"]),
    st.sampled_from(["global", "tensor", "row"]),
    st.sampled_from(["error", "drop", "keep"]),
    st.sampled_from(FLOATS),
    st.booleans(),
    st.integers(0, 1000),
)
def test_matches_the_stable_sort(shapes, density, key, scope, nan, dtype, specials, seed) -> None:
    scores = [crowded(shape, seed + i, dtype, specials) for i, shape in enumerate(shapes)]
    limits = [s.numel() if scope == "tensor" else ops.rows_cols(s.shape)[1] for s in scores]
    kept = (
        [round(density * n) for n in limits] if scope != "global" else round(density * sum(s.numel() for s in scores))
    )
    expected, invalid = topk_oracle(scores, kept, key, scope, nan)
    selection = ops.topk_mask(scores, kept, key=key, scope=scope, nan=nan)
    for words, mask in zip(selection.masks, expected, strict=True):
        assert torch.equal(words, reference.pack_mask(mask))
    assert bool(selection.invalid) == invalid


LARGE = [(257, 129), (4096,), (64, 16, 3, 3), (1, 70_001)]


@pytest.mark.parametrize("kept", [1, 2, 63, 50_000, 116_465, 116_466])
@pytest.mark.parametrize("ties", [False, True])
def test_large_lists(kept: int, ties: bool) -> None:
    generator = torch.Generator().manual_seed(kept)
    scores = [crowded(s, i) if ties else torch.randn(s, generator=generator) for i, s in enumerate(LARGE)]
    assert sum(s.numel() for s in scores) == 116_466
    for key in ("value", "magnitude"):
        got = ops.topk_mask(scores, kept, key=key)
        expected, _ = topk_oracle(scores, kept, key)
        assert sum(int(ops.popcount(w)) for w in got.masks) == kept
        assert all(torch.equal(w, reference.pack_mask(m)) for w, m in zip(got.masks, expected, strict=True))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_large_tensors_by_scope(scope: str, dtype: torch.dtype) -> None:
    scores = [crowded(s, i, dtype, specials=True) for i, s in enumerate(((33, 1025), (9000,), (16, 8, 3, 3)))]
    kept = [s.numel() // 3 if scope == "tensor" else ops.rows_cols(s.shape)[1] // 3 for s in scores]
    got = ops.topk_mask(scores, kept, scope=scope, nan="drop")
    expected, _ = topk_oracle(scores, kept, scope=scope, nan="drop")
    assert all(torch.equal(w, reference.pack_mask(m)) for w, m in zip(got.masks, expected, strict=True))


@pytest.mark.parametrize("scope", ["global", "tensor", "row"])
def test_strides_do_not_matter(scope: str) -> None:
    base = [crowded((24, 40), 1), crowded((8, 6, 3, 3), 2), crowded((50, 30), 3), crowded((1, 12), 4)]
    views = [
        base[0].t()[:, ::2],
        base[1].to(memory_format=torch.channels_last),
        base[2][5:29, 3:20],
        base[3].expand(5, 12),
    ]
    copies = [v.clone(memory_format=torch.contiguous_format) for v in views]
    kept = 300 if scope == "global" else [5, 7, 11, 3]
    got, same = ops.topk_mask(views, kept, scope=scope), ops.topk_mask(copies, kept, scope=scope)
    expected, _ = topk_oracle(copies, kept, scope=scope)
    for a, b, mask in zip(got.masks, same.masks, expected, strict=True):
        assert torch.equal(a, b) and torch.equal(a, reference.pack_mask(mask))


def test_scores_are_not_modified_and_may_require_grad() -> None:
    score = crowded((20, 20), 0).requires_grad_()
    before = score.detach().clone()
    selection = ops.topk_mask([score], 100)
    assert torch.equal(score.detach(), before)
    assert not selection.masks[0].requires_grad


def test_result_is_a_pure_function_of_the_values() -> None:
    scores = [crowded((100, 100), 0), crowded((37,), 1)]
    first = ops.topk_mask(scores, 4321)
    for _ in range(3):
        again = ops.topk_mask([s.clone() for s in scores], 4321)
        assert all(torch.equal(a, b) for a, b in zip(first.masks, again.masks, strict=True))


def test_permuting_the_rest_keeps_the_same_values() -> None:
    # Ties aside, which values survive cannot depend on where they stand.
    scores = torch.randn(500, generator=torch.Generator().manual_seed(3))
    order = torch.randperm(500, generator=torch.Generator().manual_seed(4))
    one, two = (
        ops.topk_mask([scores], 123, out="bool").masks[0],
        ops.topk_mask([scores[order]], 123, out="bool").masks[0],
    )
    assert torch.equal(one[order], two)


@pytest.mark.parametrize("name", ["reference", "op"])
@pytest.mark.parametrize("nan", ["error", "drop", "keep"])
def test_reference_and_op_agree_with_the_oracle(name: str, nan: str) -> None:
    scores = [crowded((9, 70), 5, specials=True), crowded((40,), 6, specials=True)]
    function = reference.topk_mask if name == "reference" else torch.ops.sparsekit.topk_mask
    for scope, kept in (("global", [200]), ("tensor", [100, 7]), ("row", [11, 13])):
        words, invalid, _ = function(scores, kept, "magnitude", scope, nan)
        expected, flag = topk_oracle(scores, kept[0] if scope == "global" else kept, "magnitude", scope, nan)
        assert all(torch.equal(w, reference.pack_mask(m)) for w, m in zip(words, expected, strict=True))
        assert bool(invalid) == flag


def test_a_warm_start_is_written_tried_and_never_trusted() -> None:
    generator = torch.Generator().manual_seed(3)
    scores, warm = (
        [torch.randn(90, 100, generator=generator), torch.randn(5000, generator=generator)],
        ops.warm_start(1),
    )
    assert warm.tolist() == [[0, 0, 0]]
    first = ops.topk_mask(scores, 4000, warm=warm)
    assert warm[0, 2] == 1 and warm[0, 0] < warm[0, 1]
    again = ops.topk_mask(scores, 4000, warm=warm)
    assert all(torch.equal(a, b) for a, b in zip(first.masks, again.masks, strict=True))
    for kept in (4010, 13_000, 0, 14_000):
        got = ops.topk_mask(scores, kept, warm=warm, out="bool").masks
        assert all(torch.equal(a, b) for a, b in zip(got, topk_oracle(scores, kept)[0], strict=True))
    wrong = torch.tensor([[-5, 2**30, 1]])
    got = ops.topk_mask(scores, 4000, warm=wrong, out="bool").masks
    assert all(torch.equal(a, b) for a, b in zip(got, topk_oracle(scores, 4000)[0], strict=True))


def test_a_warm_start_for_each_tensor() -> None:
    scores, warm = [crowded((60, 70), 1), torch.randn(3000), torch.ones(50)], ops.warm_start(3)
    for _ in range(3):
        got = ops.topk_mask(scores, [2000, 900, 7], scope="tensor", warm=warm, out="bool").masks
        want = topk_oracle(scores, [2000, 900, 7], scope="tensor")[0]
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert warm[1, 2] == 1


@pytest.mark.parametrize("key", ["value", "magnitude"])
def test_radix_gives_the_same_masks(key: str) -> None:
    scores = [crowded((30, 70), 5), torch.randn(4000), torch.zeros(0, 3)]
    for kept in (0, 1, 3000, 6100):
        got, want = ops.topk_mask_radix(scores, kept, key=key), ops.topk_mask(scores, kept, key=key)
        assert all(torch.equal(a, b) for a, b in zip(got.masks, want.masks, strict=True))
