# SPDX-License-Identifier: Apache-2.0
"""key_histogram and mask_at_threshold, native and readable: keys by hand, counts and masks by Python integers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import pack_oracle
from torch import Tensor

from sparsekit.ops import threshold

NAN, INF = math.nan, math.inf
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
ROUTES = ["native", "readable"]


def route(name: str, function: str):
    return getattr(torch.ops.sparsekit if name == "native" else threshold, function)


# dtype, score -> key by value, with "keep" for NaN
KEYS = [
    (torch.float32, 0.0, 0),
    (torch.float32, -0.0, 0),
    (torch.float32, 1.0, 0x3F800000),
    (torch.float32, -1.0, ~0x3F800000),
    (torch.float32, 2.0**-149, 1),
    (torch.float32, -(2.0**-149), ~1),
    (torch.float32, INF, 0x7F800000),
    (torch.float32, -INF, ~0x7F800000),
    (torch.float32, NAN, 0x7FFFFFFE),
    (torch.float16, -INF, ~0x7C00),
    (torch.float16, NAN, 0x7FFE),
    (torch.bfloat16, 1.0, 0x3F80),
    (torch.float64, -INF, ~0x7FF0000000000000),
    (torch.float64, NAN, 2**63 - 2),
]


@pytest.mark.parametrize(("dtype", "score", "key"), KEYS)
def test_keys_by_hand(dtype: torch.dtype, score: float, key: int) -> None:
    scores = torch.tensor([score], dtype=dtype)
    assert threshold.order_keys(scores, "value", "keep").tolist() == [key]
    magnitude = key if key >= 0 else ~key
    assert threshold.order_keys(scores, "magnitude", "keep").tolist() == [magnitude]
    if math.isnan(score):
        lowest = -(2 ** (8 * dtype.itemsize - 1))
        assert threshold.order_keys(scores, "value", "drop").tolist() == [lowest]
        assert threshold.order_keys(-scores, "magnitude", "error").tolist() == [lowest]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_range_of_numbers_is_tight(dtype: torch.dtype) -> None:
    ends = torch.tensor([-INF, INF, NAN, 0.0], dtype=dtype)
    for key, low in (("value", ends[:1]), ("magnitude", ends[3:])):
        first, bits = threshold.number_range(dtype, key)
        assert threshold.order_keys(low, key, "drop").tolist() == [first]
        assert bits == 8 * dtype.itemsize - (key == "magnitude")
        assert int(threshold.order_keys(ends, key, "keep").max()) - first < 2**bits
        assert threshold.order_keys(ends[2:3], key, "drop").item() < first


SHAPES = st.sampled_from([(), (0,), (1,), (31,), (32,), (33,), (0, 3), (3, 0), (4, 65), (2, 3, 5), (3, 64)])


def pool(dtype: torch.dtype) -> Tensor:
    info = torch.finfo(dtype)
    special = [0.0, -0.0, 1.0, -1.0, 1.5, INF, -INF, NAN, -NAN, info.max, info.min, info.tiny, -info.tiny / 2]
    return torch.tensor(special, dtype=dtype)


@settings(max_examples=150)
@given(st.data())
def test_both_routes_are_the_definition(data: st.DataObject) -> None:
    dtype, key = data.draw(st.sampled_from(FLOATS)), data.draw(st.sampled_from(["value", "magnitude"]))
    nan = data.draw(st.sampled_from(["error", "drop", "keep"]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    values, scores = pool(dtype), []
    for shape in data.draw(st.lists(SHAPES, max_size=3)):
        scores.append(values[torch.randint(len(values), shape, generator=generator)])
    keys = [threshold.order_keys(s, key, nan).tolist() for s in scores]
    bits = 8 * dtype.itemsize
    inner = st.integers(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 2)
    near = [k + d for part in keys for k in part for d in (-1, 0, 1) if abs(k + d) < 2 ** (bits - 1) - 1]
    pick = st.one_of(inner, st.sampled_from(near)) if near else inner
    first, shift = data.draw(pick), data.draw(st.integers(0, bits - 1))
    bins = data.draw(st.sampled_from([1, 2, 3, 1000, 2048]))
    counts = torch.zeros(len(scores), bins, dtype=torch.int64)
    for row, part in zip(counts, keys, strict=True):
        for k in part:
            if k >= first and (k - first) >> shift < bins:
                row[(k - first) >> shift] += 1
    limit, ties = data.draw(pick), [data.draw(st.sampled_from([0, 1, 2, 7, 10**6])) for _ in scores]
    masks = []
    for part, s, left in zip(keys, scores, ties, strict=True):
        equal = [i for i, k in enumerate(part) if k == limit][:left]
        flags = [k > limit or i in equal for i, k in enumerate(part)]
        masks.append(torch.from_numpy(pack_oracle(torch.tensor(flags, dtype=torch.bool).reshape(s.shape).numpy())))
    for name in ROUTES:
        got = route(name, "key_histogram")(scores, torch.tensor(first), shift, bins, key, nan)
        assert got.dtype == torch.int64 and torch.equal(got, counts), name
        quotas = torch.tensor(ties, dtype=torch.int64)
        words = route(name, "mask_at_threshold")(scores, torch.tensor(limit), quotas, key, nan)
        assert len(words) == len(masks) and all(torch.equal(w, m) for w, m in zip(words, masks, strict=True)), name


@pytest.mark.parametrize("name", ROUTES)
def test_strides_and_pending_signs(name: str) -> None:
    base = torch.randn(12, 40).mul(4).round()
    pending = torch.complex(base, base).conj().imag
    assert pending.is_neg()
    for view, copy in ((base.t(), base.t().contiguous()), (base[::2, 3:], base[::2, 3:].clone()), (pending, -base)):
        first, ties = torch.tensor(0), torch.tensor([5])
        counts = route(name, "key_histogram")([view], first, 21, 2048, "value", "error")
        assert torch.equal(counts, route(name, "key_histogram")([copy], first, 21, 2048, "value", "error"))
        words = route(name, "mask_at_threshold")([view], first, ties, "value", "error")
        assert torch.equal(words[0], route(name, "mask_at_threshold")([copy], first, ties, "value", "error")[0])


def test_empty_lists() -> None:
    for name in ROUTES:
        counts = route(name, "key_histogram")([], torch.tensor(0), 0, 8, "value", "error")
        assert counts.shape == (0, 8) and counts.dtype == torch.int64
        assert (
            list(route(name, "mask_at_threshold")([], torch.tensor(0), torch.zeros(0).long(), "value", "error")) == []
        )
