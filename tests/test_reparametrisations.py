# SPDX-License-Identifier: Apache-2.0
"""Reparametrisations by hand, and their gradients against finite differences in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparsekit.reparametrisations import (
    crossing,
    powered,
    powered_gradient,
    rooted,
    soft_threshold,
    soft_threshold_gradients,
    threshold_margin,
)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def values(count: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def differences(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences of a scalar function, entry by entry."""
    slopes = []
    for i in range(at.numel()):
        moved = torch.zeros_like(at).reshape(-1)
        moved[i] = step
        moved = moved.reshape(at.shape)
        slopes.append((function(at + moved) - function(at - moved)) / (2 * step))
    return torch.stack(slopes).reshape(at.shape)


def test_soft_thresholds_by_hand() -> None:
    u = torch.tensor([2.0, -2.0, 0.5, -0.25, 0.0, -0.0])
    assert soft_threshold(u, torch.tensor(0.0)).tolist() == [1.5, -1.5, 0.0, 0.0, 0.0, 0.0]
    assert soft_threshold(u, torch.tensor(-3200.0)).tolist() == u.tolist()
    assert soft_threshold(u, torch.tensor(-math.inf)).tolist() == u.tolist()
    assert soft_threshold(u, torch.tensor(math.inf)).tolist() == [1.0, -1.0, 0.0, 0.0, 0.0, 0.0]
    du, ds = soft_threshold_gradients(u, torch.tensor(0.0), torch.tensor([1.0, 10.0, 100.0, 1.0, 1.0, 1.0]))
    assert du.tolist() == [1.0, 10.0, 0.0, 0.0, 0.0, 0.0]
    assert float(ds) == -0.25 * (1 - 10)
    du, ds = soft_threshold_gradients(u, torch.tensor(-3200.0), torch.ones(6))
    assert du.tolist() == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0] and float(ds) == 0


@pytest.mark.parametrize("s", [-4.0, -0.5, 1.0])
def test_gradients_of_soft_thresholds_are_slopes(s: float) -> None:
    u, dw = values(), values(seed=1)
    du, ds = soft_threshold_gradients(u, number(s), dw)
    slopes = differences(lambda leaf: (soft_threshold(leaf, number(s)) * dw).sum(), u)
    torch.testing.assert_close(du, slopes, rtol=1e-6, atol=1e-8)
    slope = differences(lambda level: (soft_threshold(u, level) * dw).sum(), number(s))
    torch.testing.assert_close(ds, slope, rtol=1e-6, atol=1e-8)
    assert 0 < int((du == 0).sum()) < u.numel() and float(ds) != 0
    for level in (math.inf, -math.inf):
        assert float(soft_threshold_gradients(u, number(level), dw)[1]) == 0


def test_margins_and_crossings() -> None:
    u = torch.tensor([0.75, -0.75, 0.25, 0.0, 1.0, -3.0], dtype=torch.float64)
    assert threshold_margin(u, number(0)).tolist() == [0.25, 0.25, -0.25, -0.5, 0.5, 2.5]
    b = crossing(u, number(0.5))
    assert b.tolist() == pytest.approx([math.log(3) - 0.5] * 2 + [-math.log(3) - 0.5, -math.inf, math.inf, math.inf])
    for leaf, shift in zip(u[:3], b[:3], strict=True):
        assert float(soft_threshold(leaf, 0.5 + shift + 1e-9)) == 0 != float(soft_threshold(leaf, 0.5 + shift - 1e-9))


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0, 4.0])
def test_gradients_of_powers_are_slopes(alpha: float) -> None:
    phi, dw = values(), values(seed=1)
    found = powered_gradient(phi, alpha, dw)
    slopes = differences(lambda leaf: (powered(leaf, alpha) * dw).sum(), phi)
    torch.testing.assert_close(found, slopes, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(rooted(powered(phi, alpha), alpha), phi)
    torch.testing.assert_close(powered(rooted(dw, alpha), alpha), dw)
    at_zero = powered_gradient(number(0.0), alpha, number(3.0))
    assert float(at_zero) == (3.0 if alpha == 1 else 0.0)


def test_powers_by_hand() -> None:
    phi = torch.tensor([2.0, -3.0, 0.0])
    assert powered(phi, 2.0).tolist() == [4.0, -9.0, 0.0] and powered(phi, 3.0).tolist() == [8.0, -27.0, 0.0]
    assert powered_gradient(phi, 3.0, torch.tensor([1.0, 1.0, 5.0])).tolist() == [12.0, 27.0, 0.0]
    assert rooted(torch.tensor([4.0, -9.0]), 2.0).tolist() == [2.0, -3.0]
