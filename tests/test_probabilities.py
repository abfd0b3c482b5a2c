# SPDX-License-Identifier: Apache-2.0
"""Probabilities: soft masks against formulas and differences, the projection against a QP solver and the sorted solution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsekit.probabilities import logistic_noise, onto_budget, soft_mask

D = torch.float64


def exact(p: Tensor, budget: int) -> Tensor:
    """The projection by its sorted breakpoints, one linear piece after the other, in Python."""
    values = [float(x) for x in p]
    total = lambda v: math.fsum(min(max(x - v, 0.0), 1.0) for x in values)  # noqa: E731
    if total(0.0) <= budget:
        return p.clamp(0, 1)
    bends = sorted({0.0, *(x for x in values if x > 0), *(x - 1 for x in values if x > 1)})
    for low, high in zip(bends, bends[1:], strict=False):
        if total(high) <= budget:
            fall = (total(low) - total(high)) / (high - low)
            return (p - (low + (total(low) - budget) / fall)).clamp(0, 1)
    raise AssertionError("the sum at the largest entry is 0")


POINTS = st.lists(st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, -0.5]), st.floats(-2, 3, width=32)), min_size=1)


@given(POINTS, st.integers(0, 60))
@settings(max_examples=300, deadline=None)
def test_the_projection_is_that_of_the_sorted_breakpoints(values: list[float], budget: int) -> None:
    p = torch.tensor(values, dtype=D)
    (found,) = onto_budget([p], budget)
    torch.testing.assert_close(found, exact(p, budget), rtol=0, atol=1e-12)
    assert found.min() >= 0 and found.max() <= 1 and float(found.sum()) <= budget + 1e-9
    if p.clamp(0, 1).sum() > budget:
        assert float(found.sum()) == pytest.approx(budget, abs=1e-9)
    assert torch.equal(p, torch.tensor(values, dtype=D))


@pytest.mark.parametrize("seed", range(12))
def test_the_projection_is_that_of_a_qp_solver(seed: int) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 9))
    p, budget = rng.normal(0.6, 0.7, n), int(rng.integers(0, n + 1))
    if seed % 3 == 0:
        p = np.round(p, 1)  # ties
    solved = optimize.minimize(
        lambda x: 0.5 * ((x - p) ** 2).sum(),
        np.clip(p, 0, 1) * min(1.0, budget / max(np.clip(p, 0, 1).sum(), 1e-9)),
        jac=lambda x: x - p,
        bounds=[(0, 1)] * n,
        constraints={"type": "ineq", "fun": lambda x: budget - x.sum(), "jac": lambda x: -np.ones(n)},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    (found,) = onto_budget([torch.from_numpy(p)], budget)
    np.testing.assert_allclose(found.numpy(), solved.x, atol=2e-6)
    # Nothing feasible is nearer, not even by rounding of the solver.
    assert ((found.numpy() - p) ** 2).sum() <= ((np.clip(solved.x, 0, 1) - p) ** 2).sum() + 1e-7


@pytest.mark.parametrize("value", [0.3, 1.0, 2.5])
def test_equal_entries_share_the_budget(value: float) -> None:
    for n, budget in ((7, 0), (7, 1), (7, 2), (1000, 333)):
        (found,) = onto_budget([torch.full((n,), value, dtype=D)], budget)
        torch.testing.assert_close(found, torch.full((n,), min(value, 1.0, budget / n), dtype=D), rtol=1e-14, atol=0)
    assert not onto_budget([torch.full((7,), value)], 0)[0].any()


def test_entries_at_the_ends_of_the_bracket_count() -> None:
    # Halvings of [0, 1] pass 0.5, where half of the entries reach 0; the shift is just below.
    p = torch.cat([torch.ones(500, dtype=D), torch.full((500,), 0.5, dtype=D)])
    (found,) = onto_budget([p], 252)
    torch.testing.assert_close(p - found, torch.full((1000,), 0.498, dtype=D), rtol=1e-12, atol=0)
    # Ones leave 1 at a shift of 0, where the bracket begins.
    (found,) = onto_budget([torch.ones(1000, dtype=D)], 999)
    torch.testing.assert_close(found, torch.full((1000,), 0.999, dtype=D), rtol=1e-13, atol=0)


def test_entries_that_nearly_tie_are_told_apart() -> None:
    near = 0.5 + 1e-8 * torch.arange(100, dtype=D)
    p = torch.cat([near, torch.tensor([1.5 + 5e-7], dtype=D)])
    (found,) = onto_budget([p], 1)
    torch.testing.assert_close(found, exact(p, 1), rtol=0, atol=1e-13)
    assert 0 < int((found[:100] > 0).sum()) < 50


def test_a_budget_that_suffices_only_clips() -> None:
    p = torch.tensor([-0.5, 0.2, 1.7, 1.0], dtype=D)
    for budget in (3, 4, 1000):
        assert torch.equal(onto_budget([p], budget)[0], p.clamp(0, 1))


def test_small_shifts_are_found_too() -> None:
    p = torch.full((1000,), 0.5, dtype=D)
    p[0] += 1e-9
    (found,) = onto_budget([p], 500)
    assert float(found.sum()) == pytest.approx(500, abs=1e-12)
    torch.testing.assert_close(p - found, torch.full((1000,), 1e-12, dtype=D), rtol=1e-3, atol=0)


def test_tensors_share_one_shift_and_keep_shapes_and_dtypes() -> None:
    generator = torch.Generator().manual_seed(0)
    p = [torch.rand(3, 4, generator=generator), torch.rand(5, generator=generator, dtype=D), torch.empty(0, 2)]
    found = onto_budget(p, 4)
    whole = torch.cat([x.double().reshape(-1) for x in p])
    (together,) = onto_budget([whole], 4)
    torch.testing.assert_close(torch.cat([x.double().reshape(-1) for x in found]), together, rtol=0, atol=1e-7)
    assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in p]
    assert onto_budget([torch.empty(0)], 3)[0].shape == (0,)


def test_nan_shows_everywhere() -> None:
    found = onto_budget([torch.tensor([0.5, math.nan]), torch.ones(2)], 1)
    assert all(x.isnan().all() for x in found)


@pytest.mark.parametrize(
    ("p", "budget", "error", "text"),
    [
        ([], 1, ValueError, "p: expected tensors, got none"),
        ([torch.ones(2)], -1, ValueError, "budget: expected an int >= 0, got -1"),
        ([torch.ones(2)], 1.5, TypeError, "budget: expected an int >= 0, got 1.5"),
        ([torch.ones(2)], True, TypeError, "budget: expected an int >= 0, got True"),
    ],
)
def test_what_is_no_problem_is_refused(p, budget, error, text) -> None:
    with pytest.raises(error, match=f"^onto_budget: {text}"):
        onto_budget(p, budget)


# Soft masks


def test_a_soft_mask_by_hand() -> None:
    # T = 2, p = 0.8, noise ln 3: (4 * 3)^2 / (1 + 144); the slope is 2 m (1 - m) (1/0.8 + 1/0.2).
    p, noise = torch.tensor([0.8], dtype=D), torch.tensor([math.log(3)], dtype=D)
    mask, slope = soft_mask(p, noise, 2.0)
    assert float(mask) == pytest.approx(144 / 145, rel=1e-12)
    assert float(slope) == pytest.approx(2 * 144 / 145**2 * 6.25, rel=1e-12)


@pytest.mark.parametrize("sharpness", [1.0, 3.5, 1 / 0.03])
def test_the_slope_is_the_derivative(sharpness: float) -> None:
    generator = torch.Generator().manual_seed(1)
    p = torch.rand(50, dtype=D, generator=generator) * 0.98 + 0.01
    noise = logistic_noise(p, generator)
    _, slope = soft_mask(p, noise, sharpness)
    step = 1e-7
    found = (soft_mask(p + step, noise, sharpness)[0] - soft_mask(p - step, noise, sharpness)[0]) / (2 * step)
    torch.testing.assert_close(slope, found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_certain_entries_are_finite(dtype: torch.dtype) -> None:
    p = torch.tensor([0.0, 1.0], dtype=dtype)
    for noise in (-3.0, 0.0, 3.0):
        for sharpness in (1.0, 33.0):
            mask, slope = soft_mask(p, torch.full_like(p, noise), torch.tensor(sharpness, dtype=dtype))
            assert mask.isfinite().all() and slope.isfinite().all()
            assert float(mask[0]) < 1e-15 and float(mask[1]) == 1 and float(slope[1]) == 0


def test_a_sharp_soft_mask_is_one_with_probability_p() -> None:
    generator = torch.Generator().manual_seed(2)
    for chance in (0.1, 0.5, 0.93):
        p = torch.full((40000,), chance)
        mask, _ = soft_mask(p, logistic_noise(p, generator), 1e4)
        assert float(mask.mean()) == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / 40000))


def test_noise_is_logistic() -> None:
    x = logistic_noise(torch.empty(40000), torch.Generator().manual_seed(3))
    assert x.isfinite().all() and x.dtype == torch.float32
    assert float(x.mean()) == pytest.approx(0, abs=0.05)
    assert float(x.var()) == pytest.approx(math.pi**2 / 3, rel=0.04)
    assert torch.equal(x, logistic_noise(torch.empty(40000), torch.Generator().manual_seed(3)))


def test_noise_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^soft_mask: noise: expected the shape \(2,\) of p, got \(3,\)"):
        soft_mask(torch.ones(2), torch.zeros(3), 1.0)
