# SPDX-License-Identifier: Apache-2.0
"""The eight polarisers: literal tables, slopes against finite differences, thresholds, groups that pass through."""

from __future__ import annotations

import math

import pytest
import torch

from sparsekit.pruners import polarisers
from sparsekit.pruners.polarisers import POLARISERS, polarise

DOUBLE = torch.float64
M = {"a": torch.tensor([[2.0, -1.0], [0.5, 4.0]], dtype=DOUBLE), "b": torch.tensor([-3.0, 0.25], dtype=DOUBLE)}
A = {"a": torch.tensor([[1.0, 5.0], [2.0, 0.5]], dtype=DOUBLE), "b": torch.tensor([0.5, 8.0], dtype=DOUBLE)}
# Contexts |m| a: [[2, 5], [1, 2]], [1.5, 2]; in order 1, 1.5, 2, 2, 2, 5.


def literal(a: list[list[float]], b: list[float]) -> dict[str, torch.Tensor]:
    return {"a": torch.tensor(a, dtype=DOUBLE), "b": torch.tensor(b, dtype=DOUBLE)}


HOT = {
    "oh": (literal([[1, 1], [0, 1]], [0, 1]), literal([[0.5, -1], [0, 0.25]], [0, 4])),
    "ohm": (literal([[2, -1], [0, 4]], [0, 0.25]), literal([[1, 1], [0, 1]], [0, 1])),
    "ohh": (literal([[1, 1], [0, 1]], [0, 1]), literal([[1, 1], [1, 1]], [1, 1])),
    "ohhm": (literal([[2, -1], [0, 4]], [0, 0.25]), literal([[1, 1], [1, 1]], [1, 1])),
}


@pytest.mark.parametrize("kind", HOT)
def test_one_hot_tables(kind):
    values, slopes = polarise(kind, M, A, 0.34)
    torch.testing.assert_close(values, HOT[kind][0], rtol=0, atol=0)
    torch.testing.assert_close(slopes, HOT[kind][1], rtol=0, atol=0)


def test_one_hot_drops_whatever_ties_with_the_threshold():
    values, _ = polarise("ohh", M, A, 0.5)
    torch.testing.assert_close(values, literal([[0, 1], [0, 0]], [0, 0]))


def test_thresholds_for_each_layer():
    values, slopes = polarise("oh", M, A, {"a": 0.5, "b": 0.5})
    torch.testing.assert_close(values["a"], torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=DOUBLE))
    assert values["b"] is not M["b"]
    torch.testing.assert_close(values["b"], M["b"])
    torch.testing.assert_close(slopes["b"], torch.ones(2, dtype=DOUBLE))


def sigmoids(a: list[list[float]], b: list[float]) -> dict[str, torch.Tensor]:
    return {name: torch.sigmoid(math.log(9.0) * (2 * t - 1)) for name, t in literal(a, b).items()}


def test_quantile_sigmoid_table():
    """Of the contexts 1, 1.5, 2, 2, 2, 5 the quantile 0.9 is u = 3.5 (position 4.5), that of 0.2 is l = 1.5."""
    values, slopes = polarise("qt", M, A, 0.9, ratio=2 / 9, eps=0.9)
    expected = sigmoids([[0.25, 1.75], [-0.25, 0.25]], [0.0, 0.25])
    torch.testing.assert_close(values, expected, rtol=1e-9, atol=0)
    scale = 2 * math.log(9.0) / 2.0
    for name, p in expected.items():
        torch.testing.assert_close(slopes[name], p * (1 - p) * scale * M[name].sign() * A[name], rtol=1e-9, atol=0)
    assert float(values["b"][0]) == pytest.approx(0.1)


def test_normal_sigmoid_table():
    """q = 0.5 puts u at the mean, and l lies one standard deviation below it."""
    contexts = torch.tensor([2.0, 5.0, 1.0, 2.0, 1.5, 2.0], dtype=DOUBLE)
    mean, deviation = contexts.mean(), contexts.std()
    # The standard normal distribution has 0.158655... of its mass below -1.
    low = 0.15865525393145707
    values, _ = polarise("gau", M, A, 0.5, ratio=low / 0.5)
    c = literal([[2, 5], [1, 2]], [1.5, 2])
    expected = {
        name: torch.sigmoid(math.log(9.0) * (2 * (x - mean + deviation) / deviation - 1)) for name, x in c.items()
    }
    torch.testing.assert_close(values, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", ["qt", "gau"])
def test_the_m_forms_multiply_by_the_gate(kind):
    plain, times = polarise(kind, M, A, 0.7), polarise(kind + "m", M, A, 0.7)
    torch.testing.assert_close(times.values, {n: p * M[n] for n, p in plain.values.items()})
    torch.testing.assert_close(times.slopes, plain.values)


@pytest.mark.parametrize("kind", ["qt", "gau"])
def test_sigmoid_slopes_are_derivatives_at_fixed_thresholds(kind):
    generator = torch.Generator().manual_seed(0)
    m, a = (torch.randn(50, generator=generator, dtype=DOUBLE) for _ in range(2))
    a = a.abs()
    quantiles = polarisers.quantiles if kind == "qt" else polarisers.normal_quantiles
    low, high = quantiles([m.abs() * a], (0.54, 0.6))
    _, slope = polarisers.sigmoid(kind, m, a, low, high, 0.9)
    step = 1e-6
    ahead, behind = (polarisers.sigmoid(kind, m + s, a, low, high, 0.9)[0] for s in (step, -step))
    torch.testing.assert_close(slope, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-6)


def test_the_slope_of_ohm_is_its_derivative_at_a_fixed_threshold():
    threshold, step = torch.tensor(1.75, dtype=DOUBLE), 1e-6
    context = M["a"].abs() * A["a"]
    _, slope = polarisers.one_hot("ohm", M["a"], context, threshold)
    ahead, behind = (polarisers.one_hot("ohm", M["a"] + s, context, threshold)[0] for s in (step, -step))
    torch.testing.assert_close(slope, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", POLARISERS)
@pytest.mark.parametrize("pruned", [0.0, 0.17, 0.33])
def test_a_group_that_would_lose_at_most_one_passes_through(kind, pruned):
    values, slopes = polarise(kind, M, A, pruned)
    torch.testing.assert_close(values, M, rtol=0, atol=0)
    torch.testing.assert_close(slopes, {n: torch.ones_like(m) for n, m in M.items()}, rtol=0, atol=0)


@pytest.mark.parametrize("kind", POLARISERS)
def test_equal_contexts_stay_finite(kind):
    ones = {"a": torch.ones(8)}
    values, slopes = polarise(kind, ones, ones, 0.5)
    assert values["a"].isfinite().all() and slopes["a"].isfinite().all()
    zeros = polarise(kind, ones, {"a": torch.zeros(8)}, 0.5)
    assert zeros.values["a"].isfinite().all() and zeros.slopes["a"].isfinite().all()


@pytest.mark.parametrize("kind", POLARISERS)
def test_the_shape_and_dtype_are_those_of_the_gates(kind):
    m = {"x": torch.randn(4, 5), "y": torch.randn(7)}
    a = {n: t.abs() for n, t in m.items()}
    for pruned in (0.6, {"x": 0.6, "y": 0.6}):
        for result in polarise(kind, m, a, pruned):
            assert all(result[n].shape == m[n].shape and result[n].dtype == torch.float32 for n in m)


def test_sigmoids_meet_their_promise_at_the_quantiles():
    m = {"x": torch.rand(101, dtype=DOUBLE)}
    a = {"x": torch.ones(101, dtype=DOUBLE)}
    p = polarise("qt", m, a, 0.8, ratio=0.5, eps=0.95).values["x"][m["x"].argsort()]
    assert float(p[80]) == pytest.approx(0.95, abs=1e-9) and float(p[40]) == pytest.approx(0.05, abs=1e-9)
    assert int((p <= 0.05 + 1e-9).sum()) == 41 and int((p >= 0.95 - 1e-9).sum()) == 21


def test_a_fraction_that_stands_for_a_count_removes_that_count():
    """1 - 0.9 is a little less than 0.1 in binary; 2 of 20 must still go."""
    m = {"x": torch.arange(1.0, 21.0)}
    values = polarise("ohh", m, {"x": torch.ones(20)}, 1 - 0.9).values["x"]
    assert values.tolist() == [0.0, 0.0] + [1.0] * 18


@pytest.mark.parametrize("sizes", [(1, 40), (13, 0, 28)])
def test_order_statistics_over_several_tensors(sizes):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randint(0, 9, (n,), generator=generator).float() for n in sizes]
    whole = torch.cat(parts)
    for rank in (1, 2, 20, len(whole)):
        assert float(polarisers.order_statistic(parts, rank)) == float(whole.kthvalue(rank).values)
    for q in (0.0, 0.3, 0.77, 1.0):
        assert float(polarisers.quantiles(parts, (q, q))[0]) == pytest.approx(float(whole.quantile(q)), abs=1e-5)
