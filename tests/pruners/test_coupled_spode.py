# SPDX-License-Identifier: Apache-2.0
"""SpODE with a gate for every unit of coupled filters, against the equations with gates as leaves, in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsekit as sk
from sparsekit.coupled import FilterGroup

# Two units of (a, b) with one filter of each, two of (a, b, b), three of c alone; filter 4 of a, 6 of b and all of d are free.
GROUPS = (
    FilterGroup("one", (("a", ((0,), (2,))), ("b", ((1,), (5,))))),
    FilterGroup("two", (("a", ((3,), (1,))), ("b", ((0, 4), (2, 3))))),
    FilterGroup("c", (("c", ((2,), (0,), (1,))),)),
)
SHAPES = {"a": (5, 2, 3, 3), "b": (7, 2, 1, 1), "c": (3, 60), "d": (4, 3)}
PATTERN = sk.CoupledFilters(GROUPS, tuple(SHAPES.items()))
UNITS = [(group.name, i) for group in GROUPS for i in range(len(group))]
MEMBERS = {("a", 0): 0, ("b", 1): 0, ("a", 2): 1, ("b", 5): 1, ("a", 3): 2, ("b", 0): 2, ("b", 4): 2, ("a", 1): 3} | {
    ("b", 2): 3, ("b", 3): 3, ("c", 2): 4, ("c", 0): 5, ("c", 1): 6,
}  # fmt: skip


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(2, 7, 1)
        self.c, self.d = nn.Linear(60, 3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(torch.cat([self.a(x), self.b(x)], 1))
        return self.d(torch.tanh(self.c(F.adaptive_avg_pool2d(y, (1, 5)).flatten(1))))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    model = Net()
    sk.sparsify(model)
    return model


def stream(seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(8, 2, 5, 5, generator=generator), torch.randint(0, 4, (8,), generator=generator)


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def factors(leaves: Tensor) -> dict[str, Tensor]:
    """Of every layer the gate of each filter, one by one; 1 where a filter is in no unit."""
    rows = {
        name: [
            leaves[MEMBERS[name, i]] if (name, i) in MEMBERS else torch.ones((), dtype=torch.float64)
            for i in range(s[0])
        ]
        for name, s in SHAPES.items()
    }
    return {name: torch.stack(row).reshape(-1, *[1] * (len(SHAPES[name]) - 1)) for name, row in rows.items()}


def flat(gates: dict[str, Tensor]) -> Tensor:
    return torch.stack([gates[name][i] for name, i in UNITS]).double()


def weights_of_units() -> Tensor:
    found = torch.zeros(len(UNITS), dtype=torch.float64)
    for (name, _), unit in MEMBERS.items():
        found[unit] += math.prod(SHAPES[name][1:])
    return found


def l1_of_units(theta: dict[str, Tensor]) -> Tensor:
    found = torch.zeros(len(UNITS), dtype=torch.float64)
    for (name, row), unit in MEMBERS.items():
        found[unit] += theta[name][row].double().abs().sum()
    return found


def descent(model: nn.Module, leaves: Tensor, batch: Any) -> Tensor:
    """-dE/dm by automatic differentiation of the gates themselves, in float64."""
    double = copy.deepcopy(model).double()
    theta = {name: layer.weight.detach() for name, layer in sk.masked_layers(double).items()}
    leaves = leaves.clone().requires_grad_()
    z = {name: factor * theta[name] for name, factor in factors(leaves).items()}
    with sk.effective_weights(double, z):
        (gradient,) = torch.autograd.grad(loss(double, (batch[0].double(), batch[1])), leaves)
    return -gradient


def moved(m: Tensor, e: Tensor, energy: str, r: float, dt: float) -> Tensor:
    """m + dt F in the form with two coefficients."""
    w = weights_of_units()
    size = ((w * m * m).sum() / w.sum()).sqrt()
    g = -w * (m / size if energy == "l2" else m.sign()) / w.sum()
    x = torch.sqrt((r * r - 1) / (e.dot(e) * g.dot(g) - e.dot(g) ** 2))
    return m + dt * (x * e + (1 - x * e.dot(g)) / g.dot(g) * g)


@pytest.mark.parametrize("energy", ["l2", "l1"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("polariser", ["ohh", "ohm"])
def test_steps_equal_the_equations_by_hand(polariser: str, allocation: str, energy: str) -> None:
    model, batches, copied = net(), stream(), stream()
    options = sk.SpODEOptions(reproject=False)
    projection = sk.Projection(PATTERN, allocation)
    pruner = sk.SpODE(
        model,
        loss,
        0.6,
        steps=4,
        radius=1.4,
        polariser=polariser,
        energy=energy,
        projection=projection,
        options=options,
    )
    pruned = 0
    for step in range(3):
        m, batch = flat(pruner.gates), next(copied)
        dense = {name: mask.dense().flatten(1).any(1) for name, mask in sk.masks(model).items()}
        hard = torch.tensor([float(dense[name][row]) for name, row in map(member, range(len(UNITS)))]).double()
        pruned += int((hard == 0).sum())
        if polariser == "ohh":
            e = descent(model, hard, batch)
        else:
            kept = polarised(m, l1_of_units(pruner.weights), round(1 - pruner.density, 12), allocation)
            e = descent(model, m * kept, batch) * kept
        dt = 0.4 ** (step / 4) - 0.4 ** ((step + 1) / 4)
        pruner.step(batches)
        torch.testing.assert_close(flat(pruner.gates), moved(m, e, energy, 1.4, dt), rtol=2e-4, atol=2e-5)
    assert pruned > 0


def member(unit: int) -> tuple[str, int]:
    return next(place for place, own in MEMBERS.items() if own == unit)


def polarised(m: Tensor, l1: Tensor, q: float, allocation: str) -> Tensor:
    """1 for gates above the int(q n)-th smallest |m| l1 of all, or of their group, if that is the second or more."""
    kept, context = torch.ones_like(m), m.abs() * l1
    sizes = [len(UNITS)] if allocation == "global" else [len(group) for group in GROUPS]
    start = 0
    for n in sizes:
        part = context[start : start + n]
        count = int((q if allocation == "global" else 1 - sk.kept_count(n, q) / n) * n + 1e-9)
        if count > 1:
            kept[start : start + n] = (part > part.sort().values[count - 1]).double()
        start += n
    return kept


@pytest.mark.filterwarnings("ignore::sparsekit.CollapseWarning")
@pytest.mark.parametrize("polariser", ["ohh", "ohm", "qt", "gau"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_counts_are_exact_and_units_are_ranked_by_gate_times_l1_norm(allocation: str, polariser: str) -> None:
    model, batches = net(1), stream(1)
    options = sk.SpODEOptions(radius_search="auto" if polariser in ("ohh", "gau") else "none")
    pruner = sk.SpODE(
        model, loss, 0.6, steps=5, polariser=polariser, projection=sk.Projection(PATTERN, allocation), options=options
    )
    while not pruner.done:
        pruner.step(batches)
        removed = 0.6 if pruner.done else round(1 - pruner.density, 12)
        rank = (flat(pruner.gates).abs() * l1_of_units(pruner.weights)).tolist()
        sizes = [range(7)] if allocation == "global" else [range(2), range(2, 4), range(4, 7)]
        kept = {u for part in sizes for u in sorted(part, key=lambda u: -rank[u])[: sk.kept_count(len(part), removed)]}
        for name, mask in sk.masks(model).items():
            filters = mask.dense().flatten(1)
            assert torch.equal(filters.any(1), filters.all(1))
            assert filters.any(1).tolist() == [MEMBERS.get((name, i)) in kept | {None} for i in range(len(filters))]


def test_density_counts_gated_weights_alone() -> None:
    model = net(2)
    pruner = sk.SpODE(model, loss, 0.6, steps=5, projection=sk.Projection(PATTERN, "uniform"))
    pruner.step(stream(2))
    w, m = weights_of_units(), flat(pruner.gates)
    assert float(((w * m * m).sum() / w.sum()).sqrt()) == pytest.approx(pruner.density, rel=1e-6)


@pytest.mark.parametrize("option", ["mask", "sign"])
def test_kept_weights_take_their_gate_and_free_ones_none(option: str) -> None:
    model, theta = net(3), {name: layer.weight.detach().clone() for name, layer in sk.masked_layers(net(3)).items()}
    pruner = sk.SpODE(
        model, loss, 0.4, steps=3, radius=2.0, recalibrate=0, projection=sk.Projection(PATTERN, "global"),
        options=sk.SpODEOptions(mask_option=option),
    )  # fmt: skip
    pruner.fit([next(stream(3))])
    gates = flat(pruner.gates)
    expected = factors(gates if option == "mask" else gates.sign())
    for name, layer in sk.masked_layers(model).items():
        kept = layer.mask.dense()
        torch.testing.assert_close(layer.weight.detach()[kept], (theta[name] * expected[name]).float()[kept])
    assert torch.equal(model.d.weight.detach(), theta["d"])


def test_one_filter_a_unit_is_the_filter_pattern() -> None:
    """Units of one filter each, all filters in one: the steps, thresholds and masks of whole filters."""
    groups = tuple(FilterGroup(n, ((n, tuple((i,) for i in range(s[0]))),)) for n, s in SHAPES.items())
    found = {}
    for pattern in (sk.CoupledFilters(groups, tuple(SHAPES.items())), "filter"):
        pruner = sk.SpODE(net(4), loss, 0.5, steps=6, polariser="qt", projection=sk.Projection(pattern, "uniform"))
        pruner.fit([next(stream(4))])
        found[str(pattern)] = pruner.masks.hash(), pruner.gates
    (one, gates), (other, reference) = found.values()
    assert one == other and gates.keys() == reference.keys()
    for name, m in gates.items():
        torch.testing.assert_close(m, reference[name], rtol=1e-4, atol=1e-5)


def test_a_run_goes_on_from_its_state_bit_by_bit() -> None:
    def made(seed: int) -> sk.SpODE:
        options = sk.SpODEOptions(score_momentum=0.5)
        return sk.SpODE(net(seed), loss, 0.6, steps=6, projection=sk.Projection(PATTERN, "uniform"), options=options)

    whole, stopped, fresh = made(5), made(5), made(6)
    batches, rest = stream(5), stream(5)
    for _ in range(6):
        whole.step(batches)
    for _ in range(3):
        stopped.step(rest)
    fresh.model.load_state_dict(copy.deepcopy(stopped.model.state_dict()))
    fresh.load_state_dict(copy.deepcopy(stopped.state_dict()))
    while not fresh.done:
        fresh.step(rest)
    assert fresh.masks == whole.masks
    assert all(torch.equal(m, whole.gates[name]) for name, m in fresh.gates.items())


def test_it_starts_from_masks_of_whole_units_alone() -> None:
    model = net(7)
    weights = {name: layer.weight.detach() for name, layer in sk.masked_layers(model).items()}
    projection = sk.Projection(PATTERN, "uniform")
    sk.set_masks(model, projection(weights, 0.4).masks)
    pruner = sk.SpODE(model, loss, 0.6, steps=3, projection=projection)
    assert len({float(g) for m in pruner.gates.values() for g in m}) == 2  # zeros, and ones scaled to the density
    assert {n: int(m.count_nonzero()) for n, m in pruner.gates.items()} == {
        g.name: sk.kept_count(len(g), 0.4) for g in GROUPS
    }
    for name, row in (("b", 4), ("d", 0)):  # a part of a unit; a filter in no unit
        dense = sk.masks(net(7))[name].dense()
        dense[row] = False
        torn = net(7)
        sk.set_masks(torn, {name: sk.Mask.from_dense(dense)})
        with pytest.raises(
            ValueError, match=f"SpODE: model: expected masks of whole units of CoupledFilters.* in `{name}`"
        ):
            sk.SpODE(torn, loss, 0.6, steps=3, projection=projection)
