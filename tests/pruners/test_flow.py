# SPDX-License-Identifier: Apache-2.0
"""The flow's direction against its defining properties and a numerical optimiser, the densities, steps and radii."""

from __future__ import annotations

import math

import pytest
import torch

from sparsekit.pruners import flow

DOUBLE = torch.float64


def gates(*values: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"layer{i}": v for i, v in enumerate(values)}


def random_pair(seed: int, dtype: torch.dtype = DOUBLE) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """e and g of random scales, over two tensors."""
    generator = torch.Generator().manual_seed(seed)
    scales = 10.0 ** (4 * torch.rand(2, generator=generator) - 2)
    made = [
        gates(*(s * torch.randn(shape, generator=generator, dtype=DOUBLE).to(dtype) for shape in ((2, 3), (4,))))
        for s in scales
    ]
    return made[0], made[1]


def flat(values: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([v.reshape(-1) for v in values.values()]).double()


@pytest.mark.parametrize("radius", [1.0, 1.01, 1.1, 4.0])
@pytest.mark.parametrize("seed", range(5))
def test_the_direction_buys_one_unit_at_the_radius(seed, radius):
    e, g = random_pair(seed)
    delta = flow.direction(e, g, radius)
    assert float(flow.dot(g, delta)) == pytest.approx(1.0, rel=1e-12)
    assert float(flow.norm(delta) * flow.norm(g)) == pytest.approx(radius, rel=1e-12)
    cosine = flow.dot(delta, g) / (flow.norm(delta) * flow.norm(g))
    assert float(cosine) == pytest.approx(1 / radius, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_direction_is_the_two_coefficient_form(seed):
    """F = x e + y g, x = sqrt((r^2 - 1)/(|g|^2 |e|^2 - (g'e)^2)), y = (1 - x g'e)/|g|^2, far from parallel."""
    e, g = random_pair(seed)
    r = 1.4
    a, b = flat(e), flat(g)
    x = torch.sqrt((r * r - 1) / (a.dot(a) * b.dot(b) - a.dot(b) ** 2))
    expected = x * a + (1 - x * a.dot(b)) / b.dot(b) * b
    torch.testing.assert_close(flat(flow.direction(e, g, r)), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 7.0, 1e12])
def test_only_the_direction_of_e_counts(scale):
    e, g = random_pair(1)
    scaled = {name: x * scale for name, x in e.items()}
    torch.testing.assert_close(flow.direction(scaled, g, 1.3), flow.direction(e, g, 1.3), rtol=1e-10, atol=0)


@pytest.mark.parametrize("case", ["parallel", "opposite", "zero", "radius 1"])
def test_without_a_sideways_part_the_direction_has_least_norm(case):
    e, g = random_pair(2)
    factor = {"parallel": 3.0, "opposite": -0.2, "zero": 0.0}.get(case)
    if factor is not None:
        e = {name: factor * x for name, x in g.items()}
    delta = flow.direction(e, g, 1.0 if case == "radius 1" else 2.0)
    expected = {name: x / float(flow.dot(g, g)) for name, x in g.items()}
    torch.testing.assert_close(delta, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("seed", range(8))
def test_the_direction_is_the_optimum(seed):
    """Against a general constrained optimiser: max e'd subject to g'd = 1 and |d| <= r/|g|."""
    optimize = pytest.importorskip("scipy.optimize")
    e, g = random_pair(seed)
    r = (1.01, 1.1, 2.0, 11.0)[seed % 4]
    a, b = flat(e).numpy(), flat(g).numpy()
    # Unit lengths for the optimiser's sake; the problem is invariant under both scalings.
    length = math.sqrt(b @ b)
    a, b = a / math.sqrt(a @ a), b / length
    found = optimize.minimize(
        lambda d: -a @ d,
        b,
        jac=lambda d: -a,
        method="SLSQP",
        constraints=[
            {"type": "eq", "fun": lambda d: b @ d - 1, "jac": lambda d: b},
            {"type": "ineq", "fun": lambda d: r * r - d @ d, "jac": lambda d: -2 * d},
        ],
        options={"ftol": 1e-14, "maxiter": 500},
    )
    closed = flat(flow.direction(e, g, r)).numpy() * length
    assert a @ closed >= a @ found.x - 1e-8
    assert abs(closed - found.x).max() < 1e-5


@pytest.mark.parametrize("angle", [1e-3, 1e-4, 1e-5])
def test_float32_gradients_that_are_nearly_parallel(angle):
    """Against the same inputs in exact arithmetic, where the form in e and g themselves is off by a factor."""
    generator = torch.Generator().manual_seed(3)
    g = torch.randn(1000, generator=generator)
    side = torch.randn(1000, generator=generator)
    side -= g * (g @ side) / (g @ g)
    e = g + angle * side * g.norm() / side.norm()
    delta = flow.direction(gates(e), gates(g), 1.1)
    exact = flow.direction(gates(e.double()), gates(g.double()), 1.1)
    torch.testing.assert_close(delta["layer0"].double(), exact["layer0"], rtol=1e-6, atol=1e-9)
    assert delta["layer0"].dtype == torch.float32
    assert float(flow.norm(delta) * flow.norm(gates(g))) == pytest.approx(1.1, rel=1e-6)


def test_a_nan_is_not_taken_for_parallel():
    e, g = random_pair(0)
    e["layer1"][2] = torch.nan
    assert flow.direction(e, g, 1.1)["layer0"].isnan().all()


@pytest.mark.parametrize("kind", flow.ENERGIES)
def test_energy_and_its_gradient(kind):
    generator = torch.Generator().manual_seed(0)
    m = gates(torch.randn(3, 4, generator=generator, dtype=DOUBLE), torch.randn(5, generator=generator, dtype=DOUBLE))
    sizes = {"layer0": 2, "layer1": 7}
    every = torch.cat([m["layer0"].reshape(-1).repeat_interleave(2), m["layer1"].repeat_interleave(7)])
    expected = every.abs().mean() if kind == "l1" else every.square().mean().sqrt()
    torch.testing.assert_close(flow.energy(m, sizes, kind), expected)
    leaves = {name: x.clone().requires_grad_() for name, x in m.items()}
    slopes = torch.autograd.grad(flow.energy(leaves, sizes, kind), list(leaves.values()))
    torch.testing.assert_close(flow.energy_gradient(m, sizes, kind), gates(*(-s for s in slopes)))


@pytest.mark.parametrize("kind", flow.ENERGIES)
def test_full_gates_have_density_one_and_the_gradient_its_known_norm(kind):
    m = gates(torch.ones(3, 4), torch.ones(5))
    sizes = dict.fromkeys(m, 1)
    assert float(flow.energy(m, sizes, kind)) == pytest.approx(1.0, abs=1e-15)
    assert float(flow.norm(flow.energy_gradient(m, sizes, kind))) == pytest.approx(1 / math.sqrt(17), rel=1e-6)


@pytest.mark.parametrize("radius", [1.0, 1.1, 1.4, 5.5])
@pytest.mark.parametrize("schedule", ["exp", "lin", "invexp"])
def test_euler_steps_drift_as_predicted(schedule, radius):
    generator = torch.Generator().manual_seed(0)
    m, sizes, steps, predicted = gates(torch.ones(30, dtype=DOUBLE)), {"layer0": 1}, 100, 1.0
    for step in range(steps):
        before, after = (flow.density_at(schedule, i, steps, 1.0, 0.1) for i in (step, step + 1))
        e = gates(torch.randn(30, generator=generator, dtype=DOUBLE))
        delta = flow.direction(e, flow.energy_gradient(m, sizes, "l2"), radius)
        m["layer0"] += (before - after) * delta["layer0"]
        predicted = flow.drift(predicted, before - after, radius)
        assert float(flow.energy(m, sizes, "l2")) == pytest.approx(predicted, abs=1e-12)
    if schedule == "exp":
        assert predicted == pytest.approx({1.0: 0.1, 1.1: 0.1022, 1.4: 0.1099, 5.5: 0.33}[radius], abs=3e-3)


def test_a_radius_above_one_lowers_a_quadratic_more():
    generator = torch.Generator().manual_seed(0)
    n, steps = 20, 50
    root = torch.randn(n, n, generator=generator, dtype=DOUBLE)
    matrix, optimum = root @ root.t() / n, torch.rand(n, generator=generator, dtype=DOUBLE)

    def loss(m: torch.Tensor) -> float:
        return float((m - optimum) @ matrix @ (m - optimum)) / 2

    def run(radius: float, taken: int) -> float:
        m = torch.ones(n, dtype=DOUBLE)
        for _ in range(taken):
            e, g = gates(-matrix @ (m - optimum)), flow.energy_gradient(gates(m), {"layer0": 1}, "l2")
            m = m + 0.5 / steps * flow.direction(e, g, radius)["layer0"]
        return loss(m)

    for taken in (1, 10, steps):
        assert run(1.4, taken) < run(1.1, taken) < run(1.0, taken)


@pytest.mark.parametrize("schedule", ["exp", "lin", "invexp"])
def test_planned_densities(schedule):
    planned = [flow.density_at(schedule, i, 4, 1.0, 0.0625) for i in range(5)]
    expected = {
        "exp": [1, 0.5, 0.25, 0.125, 0.0625],
        "lin": [1, 0.765625, 0.53125, 0.296875, 0.0625],
        "invexp": [1, 0.9375, 0.8125, 0.5625, 0.0625],
    }
    assert planned == pytest.approx(expected[schedule], abs=1e-12)


def test_gradient_steps_are_small_where_e_is_steep_and_never_too_far():
    assert flow.gradient_step(0.9, 0.1, 4, 2.0) == pytest.approx(0.1)
    assert flow.gradient_step(0.9, 0.1, 4, 0.5) == pytest.approx(0.4)
    assert flow.gradient_step(0.9, 0.1, 4, 1e-9) == pytest.approx(0.8)
    assert flow.gradient_step(0.1, 0.1, 4, 0.0) == 0.0


def test_radii():
    assert [flow.radius_at("fix", 1.1, i, 3) for i in range(3)] == [1.1, 1.1, 1.1]
    assert [flow.radius_at("invexp", 1.0, i, 2) for i in range(2)] == pytest.approx([2.0, 4.0])
    assert flow.radius_at("hess", 1.1, 0, 3, 0.5) == 2.5
    assert flow.radius_at("hess", 1.1, 0, 3, 0.01) == 1.1
