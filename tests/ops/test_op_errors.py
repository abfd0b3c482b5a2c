# SPDX-License-Identifier: Apache-2.0
"""Texts of the errors: function: argument: expected ..., got ...; and no error leaves anything half done."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from sparsekit import ops

X, W, B = torch.ones(3, 8), torch.ones(5, 8), torch.ones(5)
M = ops.pack_mask(torch.ones(5, 8, dtype=torch.bool))
IMAGE, KERNEL = torch.ones(1, 4, 6, 6), torch.ones(5, 4, 3, 3)
KM = ops.pack_mask(torch.ones(5, 4, 3, 3, dtype=torch.bool))
S = [torch.ones(2, 3), torch.ones(4)]


def raised(call) -> tuple[type, str]:
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    return type(caught.value), str(caught.value)


ERRORS = [
    (lambda: ops.pack_mask(torch.ones(3)), TypeError, "pack_mask: mask: expected a bool tensor, got torch.float32"),
    (lambda: ops.pack_mask([True]), TypeError, "pack_mask: mask: expected a bool tensor, got list"),
    (
        lambda: ops.unpack_mask(M, (5, 33)),
        ValueError,
        "unpack_mask: words: expected shape (5, 2) for a mask of shape (5, 33), got (5, 1)",
    ),
    (
        lambda: ops.unpack_mask(M.long(), (5, 8)),
        TypeError,
        "unpack_mask: words: expected dtype torch.int32, got torch.int64",
    ),
    (lambda: ops.popcount(M.long()), TypeError, "popcount: words: expected dtype torch.int32, got torch.int64"),
    (
        lambda: ops.mask_counts([M, M.long()], [M, M]),
        TypeError,
        "mask_counts: before[1]: expected an int32 tensor of words, got torch.int64",
    ),
    (
        lambda: ops.mask_iou(M, [True]),
        TypeError,
        "mask_iou: after[0]: expected an int32 tensor of words, got bool",
    ),
    (
        lambda: ops.regrow_count([M, M], M),
        ValueError,
        "regrow_count: after: expected 2 tensors (before's), got 1",
    ),
    (
        lambda: ops.mask_counts([M, M], [M, KM]),
        ValueError,
        "mask_counts: after[1]: expected shape (5, 1) (before's), got (5, 2)",
    ),
    (
        lambda: ops.mask_counts([M, M], [M, M.to("meta")]),
        ValueError,
        "mask_counts: after[1]: expected device cpu, got meta",
    ),
    (
        lambda: ops.flip_rate(M, M, numel=161),
        ValueError,
        "flip_rate: numel: expected an int in [0, 160], got 161",
    ),
    (
        lambda: ops.flip_rate(M, M, numel=True),
        ValueError,
        "flip_rate: numel: expected an int in [0, 160], got True",
    ),
    (
        lambda: ops.mask_weight(W.t(), M),
        ValueError,
        "mask_weight: words: expected shape (8, 1) for weight (8, 5), got (5, 1)",
    ),
    (lambda: ops.topk_mask(S[0], 1), TypeError, "topk_mask: scores: expected a sequence of tensors, got one tensor"),
    (
        lambda: ops.topk_mask([S[0], torch.ones(3, dtype=torch.int64)], 1),
        TypeError,
        "topk_mask: scores[1]: expected a float64/32/16 or bfloat16 tensor, got torch.int64",
    ),
    (lambda: ops.topk_mask(S, 11), ValueError, "topk_mask: kept: expected an int in [0, 10], got 11"),
    (lambda: ops.topk_mask(S, -1), ValueError, "topk_mask: kept: expected an int in [0, 10], got -1"),
    (lambda: ops.topk_mask(S, True), TypeError, "topk_mask: kept: expected an int in [0, 10], got True"),
    (lambda: ops.topk_mask(S, None), TypeError, "topk_mask: kept: expected an int in [0, 10], got None"),
    (lambda: ops.topk_mask(None, 1), TypeError, "topk_mask: scores: expected a sequence of tensors, got NoneType"),
    (
        lambda: ops.topk_mask(S, 2**70),
        ValueError,
        "topk_mask: kept: expected an int in [0, 10], got 1180591620717411303424",
    ),
    (
        lambda: ops.topk_mask(S, 1, warm=torch.zeros(3)),
        TypeError,
        "topk_mask: warm: expected a contiguous int64 tensor of shape (1, 3) on cpu, as warm_start makes it, got torch.float32",
    ),
    (
        lambda: ops.topk_mask(S, 1, warm=ops.warm_start(2)),
        ValueError,
        "topk_mask: warm: expected a contiguous int64 tensor of shape (1, 3) on cpu, as warm_start makes it, got (2, 3) on cpu",
    ),
    (
        lambda: ops.topk_mask(S, [1, 1], scope="row", warm=ops.warm_start(2)),
        ValueError,
        "topk_mask: warm: expected None for scope 'row', got a tensor",
    ),
    (lambda: ops.topk_mask_radix(S, 11), ValueError, "topk_mask: kept: expected an int in [0, 10], got 11"),
    (lambda: ops.topk_mask(S, [1, 2]), ValueError, "topk_mask: kept: expected one int for scope 'global', got [1, 2]"),
    (
        lambda: ops.topk_mask(S, 3, scope="tensor"),
        ValueError,
        "topk_mask: kept: expected a sequence of 2 ints for scope 'tensor', got 3",
    ),
    (lambda: ops.topk_mask(S, [1, 5], scope="tensor"), ValueError, "topk_mask: kept: expected an int in [0, 4], got 5"),
    (lambda: ops.topk_mask(S, [4, 1], scope="row"), ValueError, "topk_mask: kept: expected an int in [0, 3], got 4"),
    (
        lambda: ops.topk_mask(S, [1.0, 1], scope="row"),
        TypeError,
        "topk_mask: kept: expected an int in [0, 3], got 1.0",
    ),
    (lambda: ops.topk_mask(S, 1, key="abs"), ValueError, "topk_mask: key: expected one of value, magnitude, got 'abs'"),
    (
        lambda: ops.topk_mask(S, 1, scope="layer"),
        ValueError,
        "topk_mask: scope: expected one of global, tensor, row, got 'layer'",
    ),
    (
        lambda: ops.topk_mask(S, 1, nan="zero"),
        ValueError,
        "topk_mask: nan: expected one of error, drop, keep, got 'zero'",
    ),
    (lambda: ops.topk_mask(S, 1, out="int"), ValueError, "topk_mask: out: expected one of words, bool, got 'int'"),
    (
        lambda: ops.group_scores(torch.ones(3, 4, dtype=torch.int64), "filter"),
        TypeError,
        "group_scores: scores: expected a float64/32/16 or bfloat16 tensor, got torch.int64",
    ),
    (
        lambda: ops.group_scores([[1.0]], "filter"),
        TypeError,
        "group_scores: scores: expected a float64/32/16 or bfloat16 tensor, got list",
    ),
    (
        lambda: ops.group_scores(W, "row"),
        ValueError,
        "group_scores: groups: expected 'filter', 'channel' or a block (h, w) of ints >= 1, got 'row'",
    ),
    (
        lambda: ops.group_scores(W, (0, 4)),
        ValueError,
        "group_scores: groups: expected 'filter', 'channel' or a block (h, w) of ints >= 1, got (0, 4)",
    ),
    (
        lambda: ops.group_scores(B, "channel"),
        ValueError,
        "group_scores: shape: expected at least 2 dimensions for channels, got (5,)",
    ),
    (
        lambda: ops.group_scores(W, "filter", p=0),
        ValueError,
        "group_scores: p: expected a number > 0 or inf, got 0",
    ),
    (
        lambda: ops.group_scores(W, "filter", p=float("nan")),
        ValueError,
        "group_scores: p: expected a number > 0 or inf, got nan",
    ),
    (
        lambda: ops.group_scores(W, "filter", key="abs"),
        ValueError,
        "group_scores: key: expected one of value, magnitude, got 'abs'",
    ),
    (
        lambda: ops.expand_units(M, (5, 8), "filter"),
        ValueError,
        "expand_units: words: expected shape (1, 1) for units (5,), got (5, 1)",
    ),
    (
        lambda: ops.expand_units(M.long(), (5, 8), (1, 2)),
        TypeError,
        "expand_units: words: expected dtype torch.int32, got torch.int64",
    ),
    (
        lambda: ops.expand_units(M, (5,), "filter"),
        ValueError,
        "expand_units: shape: expected at least 2 dimensions for filters, got (5,)",
    ),
    (
        lambda: ops.mask_weight(W, M.to("meta")),
        ValueError,
        "mask_weight: words: expected device cpu (weight's), got meta",
    ),
    (lambda: ops.mask_weight(None, M), TypeError, "mask_weight: weight: expected a tensor, got NoneType"),
    (
        lambda: ops.masked_linear(X, W, M.to("meta")),
        ValueError,
        "masked_linear: words: expected device cpu (weight's), got meta",
    ),
    (
        lambda: ops.masked_conv2d(IMAGE, KERNEL, KM.to("meta")),
        ValueError,
        "masked_conv2d: words: expected device cpu (weight's), got meta",
    ),
    (lambda: ops.popcount(None), TypeError, "popcount: words: expected dtype torch.int32, got NoneType"),
    (lambda: ops.unpack_mask(None, (5, 8)), TypeError, "unpack_mask: words: expected dtype torch.int32, got NoneType"),
    (lambda: ops.warm_start(-1), ValueError, "warm_start: selections: expected an int >= 0, got -1"),
    (lambda: ops.warm_start(None), ValueError, "warm_start: selections: expected an int >= 0, got None"),
    (
        lambda: ops.topk_mask([W], np.array([3])),
        TypeError,
        "topk_mask: kept: expected an int in [0, 40], got array([3])",
    ),
    (
        lambda: ops.topk_mask([W, W.to_sparse()], 3),
        TypeError,
        "topk_mask: scores[1]: expected a strided tensor, got layout torch.sparse_coo",
    ),
    (
        lambda: ops.topk_mask([torch.nested.nested_tensor([W, W[:3]], layout=torch.jagged)], 3),
        TypeError,
        "topk_mask: scores[0]: expected a strided tensor, got a nested tensor",
    ),
    (
        lambda: ops.group_scores(W.to_sparse(), "filter"),
        TypeError,
        "group_scores: scores: expected a strided tensor, got layout torch.sparse_coo",
    ),
    (
        lambda: ops.transposable_nm_mask(w for w in [W]),
        TypeError,
        "transposable_nm_mask: scores: expected a sequence of tensors, got generator",
    ),
    (lambda: ops.nm_mask(None, 2, 4), TypeError, "nm_mask: scores: expected a sequence of tensors, got NoneType"),
    (
        lambda: ops.nm_mask(W, 2, 4),
        TypeError,
        "nm_mask: scores: expected a sequence of tensors, got one tensor",
    ),
    (
        lambda: ops.nm_mask([W, W.int()], 2, 4),
        TypeError,
        "nm_mask: scores[1]: expected a float64/32/16 or bfloat16 tensor, got torch.int32",
    ),
    (
        lambda: ops.nm_mask([W], 2, 3),
        ValueError,
        "nm_mask: scores[0]: expected dim 1 divisible by 3, got shape (5, 8)",
    ),
    (
        lambda: ops.nm_mask([W, B], 1, 1),
        ValueError,
        "nm_mask: scores[1]: expected at least 2 dimensions, got shape (5,)",
    ),
    (lambda: ops.nm_mask([W], 5, 4), ValueError, "nm_mask: n, m: expected integers, 1 <= n <= m, got 5, 4"),
    (lambda: ops.nm_mask([W], True, 4), ValueError, "nm_mask: n, m: expected integers, 1 <= n <= m, got True, 4"),
    (lambda: ops.nm_mask([W], 2, 4, key="s"), ValueError, "nm_mask: key: expected one of value, magnitude, got 's'"),
    (
        lambda: ops.nm_mask([W], 2, 4, nan="zero"),
        ValueError,
        "nm_mask: nan: expected one of error, drop, keep, got 'zero'",
    ),
    (
        lambda: ops.nm_mask([W, W.to("meta")], 2, 4),
        ValueError,
        "nm_mask: scores[1]: expected device cpu, got meta",
    ),
    (
        lambda: ops.transposable_nm_mask([W]),
        ValueError,
        "transposable_nm_mask: scores[0]: expected dim 0 divisible by 4 and dim 1 divisible by 4, got shape (5, 8)",
    ),
    (
        lambda: ops.transposable_nm_mask([W], nan="zero"),
        ValueError,
        "transposable_nm_mask: nan: expected one of error, drop, keep, got 'zero'",
    ),
    (
        lambda: ops.masked_linear(X, KERNEL, KM),
        ValueError,
        "masked_linear: weight: expected 2 dimensions, got shape (5, 4, 3, 3)",
    ),
    (
        lambda: ops.masked_linear(X[:, :7], W, M),
        ValueError,
        "masked_linear: x: expected last dimension 8, got shape (3, 7)",
    ),
    (lambda: ops.masked_linear(X.sum(), W, M), ValueError, "masked_linear: x: expected last dimension 8, got shape ()"),
    (
        lambda: ops.masked_linear(X, W, M[:4]),
        ValueError,
        "masked_linear: words: expected shape (5, 1) for weight (5, 8), got (4, 1)",
    ),
    (
        lambda: ops.masked_linear(X, W, M.float()),
        TypeError,
        "masked_linear: words: expected dtype torch.int32, got torch.float32",
    ),
    (
        lambda: ops.masked_linear(X.double(), W, M),
        TypeError,
        "masked_linear: x: expected dtype torch.float32 (weight's), got torch.float64",
    ),
    (lambda: ops.masked_linear(X, W, M, B[:1]), ValueError, "masked_linear: bias: expected shape (5,), got (1,)"),
    (
        lambda: ops.masked_linear(X, W, M, B.double()),
        TypeError,
        "masked_linear: bias: expected dtype torch.float32 (weight's), got torch.float64",
    ),
    (
        lambda: ops.masked_conv2d(IMAGE, W, M),
        ValueError,
        "masked_conv2d: weight: expected 4 dimensions, got shape (5, 8)",
    ),
    (
        lambda: ops.masked_conv2d(X, KERNEL, KM),
        ValueError,
        "masked_conv2d: x: expected 3 or 4 dimensions, got shape (3, 8)",
    ),
    (
        lambda: ops.masked_conv2d(IMAGE[:, :3], KERNEL, KM),
        ValueError,
        "masked_conv2d: x: expected 4 input channels for weight (5, 4, 3, 3) and groups=1, got 3",
    ),
    (
        lambda: ops.masked_conv2d(torch.ones(1, 8, 6, 6), KERNEL, KM, groups=2),
        ValueError,
        "masked_conv2d: groups: expected a divisor of the 5 output channels, got 2",
    ),
    (
        lambda: ops.masked_conv2d(IMAGE, KERNEL, KM, groups=0),
        ValueError,
        "masked_conv2d: groups: expected a divisor of the 5 output channels, got 0",
    ),
    (
        lambda: ops.masked_conv2d(IMAGE, KERNEL, KM, stride=(1, 2, 3)),
        ValueError,
        "masked_conv2d: stride: expected an int or 2 ints, got (1, 2, 3)",
    ),
    (
        lambda: ops.masked_conv2d(IMAGE, KERNEL, KM, padding="full"),
        ValueError,
        "masked_conv2d: padding: expected one of same, valid, got 'full'",
    ),
    (
        lambda: ops.masked_conv2d(IMAGE, KERNEL, KM, stride=2, padding="same"),
        ValueError,
        "masked_conv2d: padding: expected numbers for a strided convolution, got 'same'",
    ),
    (
        lambda: ops.masked_conv2d(IMAGE, KERNEL, KM, padding_mode="mirror"),
        ValueError,
        "masked_conv2d: padding_mode: expected one of zeros, reflect, replicate, circular, got 'mirror'",
    ),
    (
        lambda: ops.masked_conv2d(IMAGE, KERNEL, KM, B[:4]),
        ValueError,
        "masked_conv2d: bias: expected shape (5,), got (4,)",
    ),
    (
        lambda: ops.masked_conv2d(IMAGE.half(), KERNEL, KM),
        TypeError,
        "masked_conv2d: x: expected dtype torch.float32 (weight's), got torch.float16",
    ),
    (lambda: ops.masked_conv1d(X, W, M), ValueError, "masked_conv1d: weight: expected 3 dimensions, got shape (5, 8)"),
    (lambda: ops.masked_conv3d(X, W, M), ValueError, "masked_conv3d: weight: expected 5 dimensions, got shape (5, 8)"),
]


@pytest.mark.parametrize(("call", "kind", "text"), ERRORS, ids=[text[:60] for _, _, text in ERRORS])
def test_text(call, kind: type, text: str) -> None:
    assert raised(call) == (kind, text)


def test_all_texts_have_the_house_form() -> None:
    assert all(re.fullmatch(r"\w+: [\w\[\], ]+: expected .+, got .+", text) for _, _, text in ERRORS)


def test_int_input_under_autocast_is_refused_as_by_the_dense_layer() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(TypeError, match="x: expected dtype torch.float32"):
        ops.masked_linear(X.long(), W, M)
