# SPDX-License-Identifier: Apache-2.0
"""Criteria against tables by hand, autograd and the composed objective of BiP; wrong formulas must be told apart."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsekit import criteria

THETA = torch.tensor([2.0, -3.0, 0.5, -1.0])
MASK = torch.tensor([True, True, False, False])
DZ = torch.tensor([0.5, 2.0, -4.0, 3.0])
SCORES = torch.tensor([1.0, -2.0, -3.0, 0.0])


def doubles(seed: int, n: int) -> list[Tensor]:
    """theta, dz and scores of n entries, fixed by the seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (criteria.gate_gradient(THETA, DZ), [1.0, -6.0, -2.0, -3.0]),
        (criteria.gradient_flow(THETA, DZ), [1.0, -6.0, -2.0, -3.0]),
        (criteria.synaptic_flow(THETA, DZ), [1.0, 6.0, 2.0, 3.0]),
        (criteria.hydra(THETA, DZ, SCORES), [1.0, 6.0, 2.0, -3.0]),
        (criteria.bip_hypergradient(THETA, MASK, DZ, SCORES, 1.0), [0.75, 10.0, 2.0, -3.0]),
        (criteria.bip_hypergradient(THETA, MASK, DZ, SCORES, 2.0), [0.875, 8.0, 2.0, -3.0]),
        (criteria.bip_hypergradient(THETA, MASK, DZ, SCORES, 1.0, key="value"), [0.75, -10.0, -2.0, -3.0]),
        (criteria.released_hypergradient(THETA, DZ, SCORES, lr2=0.5), [0.5, -12.0, 0.0, 0.0]),
    ],
)
def test_table(result: Tensor, expected: list[float]) -> None:
    assert torch.equal(result, torch.tensor(expected))


def test_sign_of_zero_is_plus_one_for_both_zeros() -> None:
    one, zeros = torch.ones(2), torch.tensor([0.0, -0.0])
    assert torch.equal(criteria.hydra(one, one, zeros), one)
    kept = torch.tensor([True, True])
    assert torch.equal(criteria.bip_hypergradient(one, kept, 2 * one, zeros, 4.0), one)
    assert torch.equal(criteria.released_hypergradient(one, one, zeros), torch.zeros(2))


@given(st.integers(0, 10**6))
def test_infinite_gamma_is_hydra_exactly(seed: int) -> None:
    theta, dz, scores = doubles(seed, 7)
    everything = torch.ones(7, dtype=torch.bool)
    result = criteria.bip_hypergradient(theta, everything, dz, scores, math.inf)
    assert torch.equal(result, criteria.hydra(theta, dz, scores))


def test_infinite_gamma_ignores_an_overflow_of_the_second_term() -> None:
    theta, dz, scores, mask = torch.zeros(1), torch.full((1,), 1e30), torch.ones(1), torch.tensor([True])
    assert torch.equal(criteria.bip_hypergradient(theta, mask, dz, scores, math.inf), torch.zeros(1))


def test_second_term_does_not_leak_through_a_zero_bit() -> None:
    theta, scores, mask = torch.tensor([0.0, 1.0]), torch.ones(2), torch.tensor([False, False])
    dz = torch.tensor([1e30, math.inf])
    assert torch.equal(criteria.bip_hypergradient(theta, mask, dz, scores, 1.0), torch.tensor([0.0, math.inf]))


def composed(mask: Tensor, cost: Tensor, gamma: float) -> Tensor:
    """Upper objective of the linear loss c'z with the exact lower solution theta*(m) = -(1/gamma) m c."""
    return (cost * mask * (-(mask * cost) / gamma)).sum()


def difference(value: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences of a function of a vector."""
    basis = torch.eye(at.numel(), dtype=at.dtype) * step
    return torch.stack([(value(at + e) - value(at - e)) / (2 * step) for e in basis])


COST = torch.tensor([0.5, -2.0, 1.5, 3.0, -0.25], dtype=torch.float64)
GAMMA = 0.8
BITS = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64)


def test_bip_is_the_derivative_of_the_composed_objective() -> None:
    theta = -BITS * COST / GAMMA
    ours = criteria.bip_hypergradient(theta, BITS.bool(), COST, BITS, GAMMA, key="value")
    truth = difference(lambda m: composed(m, COST, GAMMA), BITS)
    torch.testing.assert_close(ours, truth, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(ours, -2 / GAMMA * BITS * COST**2)


def test_bip_is_the_derivative_with_respect_to_signed_scores() -> None:
    """The mask is |s| at scores of +-1 and 0: the chain rule through |s| is the sign."""
    signs = torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    scores = BITS * signs
    theta = -BITS * COST / GAMMA
    ours = criteria.bip_hypergradient(theta, BITS.bool(), COST, scores, GAMMA)
    truth = difference(lambda s: composed(s.abs(), COST, GAMMA), scores)
    torch.testing.assert_close(ours, truth, rtol=1e-7, atol=1e-8)


MUTANTS = {
    "score gradient squared": lambda t, m, h, s, g: criteria.hydra(t, h, s) - (t * h) ** 2 / g,
    "theta in the second term": lambda t, m, h, s, g: s.sign() * (t * h - t * m * h * h / g),
    "no sign": lambda t, m, h, s, g: t * h - m * h * h / g,
    "no sign in the second term": lambda t, m, h, s, g: s.sign() * t * h - m * h * h / g,
    "no mask": lambda t, m, h, s, g: s.sign() * (t * h - h * h / g),
    "gamma instead of its inverse": lambda t, m, h, s, g: s.sign() * (t * h - g * m * h * h),
    "plus": lambda t, m, h, s, g: s.sign() * (t * h + m * h * h / g),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_differ(name: str) -> None:
    theta, mask = torch.tensor([2.0, -3.0, 0.5]), torch.tensor([True, True, False])
    dz, scores, gamma = torch.tensor([0.5, 2.0, -4.0]), torch.tensor([1.0, -2.0, -3.0]), 4.0
    ours = criteria.bip_hypergradient(theta, mask, dz, scores, gamma)
    assert torch.equal(ours, torch.tensor([0.9375, 7.0, 2.0]))
    assert not torch.allclose(ours, MUTANTS[name](theta, mask, dz, scores, gamma))


def test_mutants_of_the_composed_objective_differ() -> None:
    """The first two mutants are also refuted by the finite differences, not only by our formula."""
    scores = torch.where(torch.arange(5) % 2 == 0, -BITS, BITS)
    theta = -BITS * COST / GAMMA
    truth = difference(lambda s: composed(s.abs(), COST, GAMMA), scores)
    for name in ("score gradient squared", "theta in the second term", "no sign"):
        assert not torch.allclose(truth, MUTANTS[name](theta, BITS, COST, scores, GAMMA), rtol=1e-3), name


@given(st.integers(0, 10**6))
def test_gate_gradient_is_what_autograd_says(seed: int) -> None:
    theta, target, gates = doubles(seed, 6)
    gates.requires_grad_()
    z = gates * theta
    loss = ((z - target) ** 3).sum()
    dz, truth = torch.autograd.grad(loss, [z, gates])
    torch.testing.assert_close(criteria.gate_gradient(theta, dz), truth)


@given(st.integers(0, 10**6))
def test_hydra_and_the_released_form_are_what_autograd_says(seed: int) -> None:
    theta, target, scores = doubles(seed, 6)
    scores.requires_grad_()
    # Straight through: the mask is taken as |s| in the backward pass.
    z = theta * scores.abs()
    dz, truth = torch.autograd.grad(((z - target) ** 2).sum(), [z, scores])
    torch.testing.assert_close(criteria.hydra(theta, dz, scores.detach()), truth)
    released = criteria.released_hypergradient(theta, dz, scores.detach(), lr2=0.3)
    torch.testing.assert_close(released, truth - 0.3 * truth * truth)


def test_arguments_are_not_modified() -> None:
    before = [t.clone() for t in (THETA, DZ, SCORES)]
    criteria.bip_hypergradient(THETA, MASK, DZ, SCORES, 1.0)
    criteria.released_hypergradient(THETA, DZ, SCORES)
    assert all(torch.equal(a, b) for a, b in zip(before, (THETA, DZ, SCORES), strict=True))


@pytest.mark.parametrize("gamma", [0.0, -1.0, math.nan, True, "1"])
def test_gamma_is_checked(gamma: float) -> None:
    with pytest.raises(ValueError, match=r"bip_hypergradient: gamma: expected a number > 0 or inf, got"):
        criteria.bip_hypergradient(THETA, MASK, DZ, SCORES, gamma)


def test_other_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match=r"bip_hypergradient: mask: expected a bool tensor, got torch.float32"):
        criteria.bip_hypergradient(THETA, MASK.float(), DZ, SCORES, 1.0)
    with pytest.raises(ValueError, match=r"bip_hypergradient: key: expected 'magnitude' or 'value', got 'norm'"):
        criteria.bip_hypergradient(THETA, MASK, DZ, SCORES, 1.0, key="norm")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"released_hypergradient: lr2: expected a finite number >= 0, got inf"):
        criteria.released_hypergradient(THETA, DZ, SCORES, math.inf)
    with pytest.raises(ValueError, match=r"hydra: scores: expected the shape \(4,\) of theta, got \(1,\)"):
        criteria.hydra(THETA, DZ, SCORES[:1])
    with pytest.raises(ValueError, match=r"gate_gradient: dz: expected"):
        criteria.gate_gradient(THETA, DZ[None])
