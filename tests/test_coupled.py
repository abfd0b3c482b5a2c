# SPDX-License-Identifier: Apache-2.0
"""Coupled filters: who belongs together, exact budgets, scores against a plain sum of squares, and the pruners with them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import surgery_nets as nets
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import sparsekit as sk
from sparsekit.benchmarks.networks import build_network
from sparsekit.coupled import CoupledFilters, FilterGroup
from sparsekit.pruners.remaining import remaining_scores, remaining_units

pytest.importorskip("torch_pruning")

SHAPES = {"a": (4, 2, 3, 3), "b": (6, 5), "c": (4, 1, 3, 3), "d": (3, 2)}
# Two units of (a, b), one filter each; one of (a, b, b); two of c alone, of two filters each; d is in no unit.
GROUPS = (
    FilterGroup("a", (("a", ((0,), (2,))), ("b", ((1,), (5,))))),
    FilterGroup("a+b", (("a", ((3,),)), ("b", ((0, 4),)))),
    FilterGroup("c", (("c", ((0, 2), (1, 3))),)),
)
PATTERN = CoupledFilters(GROUPS, tuple(SHAPES.items()))
MEMBERS = {("a", 0): 0, ("b", 1): 0, ("a", 2): 1, ("b", 5): 1, ("a", 3): 2, ("b", 0): 2, ("b", 4): 2} | {
    ("c", 0): 3, ("c", 2): 3, ("c", 1): 4, ("c", 3): 4,
}  # fmt: skip


def drawn(seed: int, levels: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return {n: torch.round(s * levels) / levels for n, s in scores.items()} if levels else scores


def kept_by_hand(scores: dict[str, Tensor], kept: list[list[tuple[list[int], int]]], value: bool) -> dict[str, Tensor]:
    """Of every (units, number) the best, ties to the first unit; bool per filter."""
    sums = [0.0] * 5
    for (layer, row), unit in MEMBERS.items():
        entries = scores[layer][row].double().flatten().tolist()
        sums[unit] += math.fsum(entries) if value else math.fsum(e * e for e in entries)
    best = {u for part in kept for units, n in part for u in sorted(units, key=lambda u: -sums[u])[:n]}
    return {n: torch.tensor([MEMBERS.get((n, i)) in best | {None} for i in range(s[0])]) for n, s in SHAPES.items()}


@pytest.mark.parametrize("key", ["magnitude", "value"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_masks_are_those_of_the_definition(allocation: str, sparsity: float, key: Any) -> None:
    for seed in range(5):
        scores = drawn(seed)
        if allocation == "global":
            wanted = [[(list(range(5)), sk.kept_count(5, sparsity))]]
        else:
            wanted = [[(units, sk.kept_count(len(units), sparsity))] for units in ([0, 1], [2], [3, 4])]
        found = sk.Projection(PATTERN, allocation)(scores, sparsity, key).masks
        expected = kept_by_hand(scores, wanted, key == "value")
        for name, mask in found.items():
            assert torch.equal(
                mask.dense(), expected[name].reshape(-1, *[1] * (len(SHAPES[name]) - 1)).expand(SHAPES[name])
            )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), sparsity=st.integers(0, 99), levels=st.integers(0, 2), floor=st.integers(0, 1))
def test_counts_are_exact_and_members_agree(seed: int, sparsity: int, levels: int, floor: int) -> None:
    allocation = sk.Global(min_keep=0 if sparsity > 30 else floor)
    for rule in (allocation, sk.Uniform()):
        projection = sk.Projection(PATTERN, rule)
        masks = projection(drawn(seed, levels), sparsity / 100).masks
        filters = {name: mask.dense().flatten(1).any(1) for name, mask in masks.items()}
        state: dict[int, set[bool]] = {}
        for (layer, row), unit in MEMBERS.items():
            state.setdefault(unit, set()).add(bool(filters[layer][row]))
        assert all(len(seen) == 1 for seen in state.values())
        kept = [next(iter(state[u])) for u in range(5)]
        budget = projection.budget(SHAPES, sparsity / 100)
        if isinstance(budget, int):
            assert sum(kept) == budget == sk.kept_count(5, sparsity / 100)
        else:
            assert [sum(kept[:2]), kept[2], sum(kept[3:])] == list(budget.values())
        assert bool(filters["d"].all()) and bool(filters["b"][2]) and bool(filters["a"][1])


def test_a_warm_start_changes_nothing() -> None:
    projection = sk.Projection(PATTERN, "uniform")
    warm = projection.warm_start(len(SHAPES), torch.device("cpu"))
    for seed in range(3):
        scores = drawn(seed)
        assert projection(scores, 0.5, warm=warm).masks.hash() == projection(scores, 0.5).masks.hash()


def test_errors_and_words() -> None:
    other = {name: torch.ones(shape) for name, shape in SHAPES.items() if name != "c"}
    with pytest.raises(
        ValueError, match="CoupledFilters: scores: expected the layers of the model .* difference in 'c'"
    ):
        sk.Projection(PATTERN)(other, 0.5)
    assert repr(PATTERN) == repr(CoupledFilters(GROUPS, tuple(SHAPES.items())))
    assert repr(PATTERN) != repr(CoupledFilters(GROUPS[:2], tuple(SHAPES.items())))
    assert "5 units in 3 groups of 4 layers" in repr(PATTERN)
    with pytest.raises(
        ValueError, match="coupled_filters: model: expected masked layers, got none; call sparsify first"
    ):
        sk.coupled_filters(nn.Linear(2, 2), torch.ones(2, 2))
    model = nn.Sequential(nn.Linear(2, 2))
    sk.sparsify(model)
    with pytest.raises(ValueError, match="coupled_filters: model: expected channels that can be removed, got none"):
        sk.coupled_filters(model, torch.ones(2, 2))
    with pytest.raises(TypeError, match="coupled_filters: model: expected a torch.nn.Module, got str"):
        sk.coupled_filters("net", torch.ones(2, 2))  # pyright: ignore
    nan = drawn(0) | {"c": torch.full(SHAPES["c"], torch.nan)}
    assert bool(sk.Projection(PATTERN)(nan, 0.5).invalid)


def test_who_belongs_together_in_a_residual_network() -> None:
    model, x = nets.settled(build_network("resnet8", classes=5, channels=3, image_size=16, seed=0), (2, 3, 16, 16))
    sk.sparsify(model)
    groups = {tuple(layer for layer, _ in g.members): g for g in sk.coupled_filters(model, x).groups}
    stream = groups["conv1", "layer1.0.conv2", "layer2.0.conv2", "layer3.0.conv2"]
    # Option A puts 8 zeros before the 16 channels, then 16 before these 32.
    assert stream.members[2][1] == tuple((i + 8,) for i in range(16))
    assert stream.members[3][1] == tuple((i + 24,) for i in range(16))
    assert len(groups["layer2.0.conv2", "layer3.0.conv2"]) == 16 and len(groups["layer3.0.conv2",]) == 32
    assert len(groups) == 6 and not any("fc" in layers for layers in groups)


def test_who_belongs_together_with_groups() -> None:
    model, x = nets.settled(nets.Depthwise(), nets.SMALL)
    sk.sparsify(model)
    groups = {tuple(layer for layer, _ in g.members): g for g in sk.coupled_filters(model, x).groups}
    assert groups["stem", "dw"].members[1][1] == tuple((i,) for i in range(8))
    # The grouped convolution has three groups of four.
    assert groups["pw",].members[0][1] == groups["grouped",].members[0][1] == tuple((i, i + 4, i + 8) for i in range(4))


@pytest.mark.parametrize(
    ("build", "shape", "inside", "outside"),
    [(nets.Chunk, (2, 3, 8, 8), {"stem"}, {"a"}), (nets.Mixer, (2, 5, 6), set(), {"embed"})],
)
def test_what_equal_masks_do_not_free_is_left_out(build: Any, shape: Any, inside: set[str], outside: set[str]) -> None:
    torch.manual_seed(0)
    model = build().eval()
    sk.sparsify(model)
    try:
        found = {layer for g in sk.coupled_filters(model, torch.randn(shape)).groups for layer, _ in g.members}
    except ValueError as error:
        assert "expected channels that can be removed" in str(error)
        found = set()
    assert inside <= found and not outside & found


def batches(start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        generator = torch.Generator().manual_seed(start)
        yield torch.randn(4, 3, 8, 8, generator=generator), torch.randint(5, (4,), generator=generator)
        start += 1


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def made(name: str, allocation: str = "uniform", pattern: bool = True) -> tuple[nn.Module, Tensor, sk.Pruner]:
    torch.manual_seed(0)
    model, x = nets.settled(build_network("resnet8", classes=5, channels=3, image_size=8, seed=0), nets.SMALL)
    model.train()
    sk.sparsify(model)
    projection = sk.Projection(sk.coupled_filters(model, x) if pattern else "filter", allocation)

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, 0.01)

    if name == "BiP":
        pruner: Any = sk.BiP(model, loss, 0.5, steps=3, lower=sgd(model.parameters()), projection=projection)
    elif name == "IMP":
        options = sk.IMPOptions(rate=0.3)
        pruner = sk.IMP(
            model, loss, 0.5, optimizer=sgd, steps_per_round=1, rewind="none", options=options, projection=projection
        )
    elif name == "SNIP":
        pruner = sk.SNIP(model, loss, 0.5, optimizer=sgd, steps=1, rounds=2, projection=projection)
    elif name == "SynFlow":
        pruner = sk.SynFlow(model, loss, 0.5, optimizer=sgd, steps=1, rounds=3, projection=projection)
    elif name == "GMP":
        pruner = sk.GMP(model, loss, 0.5, optimizer=sgd, steps=4, every=2, projection=projection)
    elif name == "SpODE":
        pruner = sk.SpODE(model, loss, 0.5, steps=4, recalibrate=0, projection=projection)
    elif name == "OMP":
        pruner = sk.OMP(model, loss, 0.5, optimizer=sgd, steps=2, dense_steps=1, projection=projection)
    else:
        pruner = sk.OneShotMagnitude(model, loss, 0.5, optimizer=sgd, steps=2, projection=projection)
    return model, x, pruner


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("name", ["BiP", "IMP", "OMP", "OneShotMagnitude", "SNIP", "SynFlow", "GMP", "SpODE"])
def test_pruners_give_exact_counts_and_no_remainder(name: str, allocation: str) -> None:
    model, x, pruner = made(name, allocation)
    stream = batches()
    while not pruner.done:
        pruner.step(stream)
    pattern: Any = pruner.projection.pattern  # pyright: ignore
    kept = [
        int(k.sum()) for k in pattern.kept_units({n: m.dense().flatten(1).any(1) for n, m in sk.masks(model).items()})
    ]
    total = sum(map(len, pattern.groups))
    assert sum(kept) == sk.kept_count(total, 0.5)
    if allocation == "uniform":
        assert kept == [sk.kept_count(len(g), 0.5) for g in pattern.groups]
    model.eval()
    small, report = sk.compact(model, x, silence_batchnorm=True)
    sk.silence_batchnorm_(model, x)
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), rtol=1e-5, atol=1e-5)
    sides = [layer.outputs for layer in report.layers]
    if all(s.asked < s.total for s in sides):
        assert sum(s.asked for s in sides) == sum(s.removed for s in sides) > 0


@pytest.mark.parametrize("name", ["BiP", "IMP", "SpODE"])
def test_tickets_of_plain_patterns_are_cut_exactly(name: str) -> None:
    model, x, pruner = made(name, pattern=False)
    stream = batches()
    while not pruner.done:
        pruner.step(stream)
    for silence in (False, True):
        small, report = sk.compact(model.eval(), x, silence_batchnorm=silence)
        reference = copy.deepcopy(model)
        if silence:
            sk.silence_batchnorm_(reference, x)
        with torch.no_grad():
            torch.testing.assert_close(small(x), reference(x), rtol=1e-5, atol=1e-5)
        assert report.parameters[1] < report.parameters[0]


class Layers(nn.Module):
    """Layers of the shapes of SHAPES, of which two filters of one unit are masked."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3), nn.Linear(5, 6)
        self.c, self.d = nn.Conv2d(4, 4, 3, groups=4), nn.Linear(2, 3)
        sk.sparsify(self)
        dense = {name: mask.dense() for name, mask in sk.masks(self).items()}
        dense["a"][2] = dense["b"][5] = False
        sk.set_masks(self, {name: sk.Mask.from_dense(bits) for name, bits in dense.items()})


@pytest.mark.parametrize("units", ["norm", "sum", "abs_sum"])
def test_criteria_score_whole_units_and_take_nothing_back(units: str) -> None:
    layers = sk.masked_layers(Layers())
    for seed in range(8):
        scores = drawn(seed)
        ranked, key = remaining_scores(scores, layers, PATTERN, units)
        entries: list[list[Tensor]] = [[] for _ in range(5)]
        for (layer, row), unit in MEMBERS.items():
            entries[unit].append(scores[layer][row].double().flatten())
        sums = [float(torch.cat(e).norm() if units == "norm" else torch.cat(e).sum()) for e in entries]
        worth = {u: abs(s) if units == "abs_sum" else s for u, s in enumerate(sums) if u != 1}
        for kept in range(1, 5):
            best = sorted(worth, key=lambda u: -worth[u])[:kept]
            masks = sk.Projection(PATTERN, "global")(ranked, 1 - kept / 5, key).masks
            for (layer, row), unit in MEMBERS.items():
                assert bool(masks[layer].dense()[row].all()) == (unit in best), (seed, kept, layer, row)
            assert bool(masks["d"].dense().all())


def test_rounds_begin_at_the_density_of_units() -> None:
    pruner: Any = made("SNIP")[2]
    assert pruner._ladder(0.5)[0][0] == pytest.approx(1 - 0.5**0.5, abs=1e-9)


def test_units_that_are_left_are_counted_by_group() -> None:
    model = Layers()
    layers = sk.masked_layers(model)
    assert remaining_units("test", layers, PATTERN) == {"a": 1, "a+b": 1, "c": 2}
    bits = sk.masks(model)["c"].dense()
    bits[0] = False
    sk.set_masks(model, {"c": sk.Mask.from_dense(bits)})
    with pytest.raises(ValueError, match="test: model: expected masks of whole units of CoupledFilters.* in `c`"):
        remaining_units("test", layers, PATTERN)


@pytest.mark.filterwarnings("ignore::sparsekit.CollapseWarning")
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_pruning_goes_on_from_coupled_masks(allocation: str) -> None:
    model, x, _ = made("IMP", allocation)
    projection = sk.Projection(sk.coupled_filters(model, x), allocation)
    before = sk.Masks({name: sk.Mask.full(mask.shape) for name, mask in sk.masks(model).items()})
    sk.set_masks(model, before)
    for sparsity in (0.25, 0.5, 0.75):
        sk.OneShotMagnitude(model, loss, sparsity, projection=projection)
        after = sk.masks(model)
        assert after.count() < before.count() and all((after[name] & ~before[name]).count() == 0 for name in after)
        before = after
    first = projection.pattern.groups[0].name if allocation == "uniform" else "all layers"  # pyright: ignore
    with pytest.raises(
        ValueError, match=f"OneShotMagnitude: model: expected masks that keep at least .* units of {first}, got"
    ):
        sk.OneShotMagnitude(model, loss, 0.25, projection=projection)


def test_bip_resumes_from_coupled_masks() -> None:
    """BiP that starts from masks has scores whose projection gives them."""
    model, x, pruner = made("OneShotMagnitude")
    pruner.step(batches())
    before = sk.masks(model)
    for allocation in ("uniform", "global"):
        sgd = torch.optim.SGD(model.parameters(), 0.01)
        options = sk.BiPOptions(start="masks")
        projection = sk.Projection(sk.coupled_filters(model, x), allocation)
        sk.BiP(model, loss, 0.5, steps=3, lower=sgd, projection=projection, options=options)
        assert sk.masks(model).hash() == before.hash()


def test_a_state_belongs_to_its_coupling() -> None:
    _, _, one = made("IMP")
    _, _, other = made("IMP", pattern=False)
    one.load_state_dict(made("IMP")[2].state_dict())
    with pytest.raises(ValueError, match="expected projection .*Filter.*got .*CoupledFilters"):
        other.load_state_dict(one.state_dict())
