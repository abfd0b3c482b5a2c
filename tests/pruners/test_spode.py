# SPDX-License-Identifier: Apache-2.0
"""SpODE: one step by hand, exact counts, drift, regrowth, structured gates, options, determinism, resume, errors."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparsekit as sk
from sparsekit.allocation import ERK, PerLayer, Uniform, kept_count
from sparsekit.patterns import NM, Block, Channel, Filter
from sparsekit.projection import Projection
from sparsekit.pruners import flow
from sparsekit.pruners.polarisers import POLARISERS, polarise
from sparsekit.pruners.spode import SpODE
from sparsekit.pruners.spode_options import SpODEOptions, node_sparsity

BARE = SpODEOptions(reproject=False)


def net(seed: int = 0, norm: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 20), nn.ReLU()]
    model = nn.Sequential(*(layers if norm else layers[:1] + layers[2:]), nn.Linear(20, 5))
    sk.sparsify(model)
    return model


def stream(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(8, 2, 5, 5, generator=generator), torch.randint(0, 5, (8,), generator=generator)


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def run(pruner: SpODE, batches=None) -> SpODE:
    batches = batches or stream()
    while not pruner.done:
        pruner.step(batches)
    return pruner


def reached(pruner: SpODE) -> float:
    """Sparsity that the flow has reached, without the rounding of 1 - density."""
    return round(1 - pruner.density, 12)


def total(model: nn.Module) -> int:
    return sk.masks(model).numel


def hand_step(model: nn.Module, m: dict, leaves: dict, hard: dict, batch, r: float, dt: float) -> dict:
    """One bare step in float64, F in its two-coefficient form; e is the gradient at leaves of z = leaves*hard*theta."""
    double = copy.deepcopy(model).double()
    theta = {n: p.detach() for n, p in double.named_parameters()}
    leaves = {n: x.double().requires_grad_() for n, x in leaves.items()}
    with sk.effective_weights(double, {n: leaves[n] * hard[n] * theta[f"{n}.weight"] for n in leaves}):
        value = F.cross_entropy(double(batch[0].double()), batch[1])
        e = -torch.cat([s.reshape(-1) for s in torch.autograd.grad(value, list(leaves.values()))])
    flat = torch.cat([x.reshape(-1) for x in m.values()]).double()
    g = -flat / (flat.norm() * math.sqrt(flat.numel()))
    x = torch.sqrt((r * r - 1) / (e.dot(e) * g.dot(g) - e.dot(g) ** 2))
    moved = flat + dt * (x * e + (1 - x * e.dot(g)) / g.dot(g) * g)
    return dict(zip(m, torch.split(moved, [t.numel() for t in m.values()]), strict=True))


@pytest.mark.parametrize("polariser", ["ohh", "ohm"])
def test_steps_equal_the_equations_by_hand(polariser):
    """The straight-through gates of ohh, where e is dense, and those of ohm, where pruned gates get none."""
    model, batches, copied = net(norm=False), stream(), stream()
    pruner = SpODE(model, loss, 0.8, steps=4, radius=1.3, polariser=polariser, options=BARE)
    for step in range(3):
        m = {n: x.clone() for n, x in pruner.gates.items()}
        hard = {n: mask.dense() for n, mask in sk.masks(model).items()}
        if polariser == "ohm":
            factors = {n: w.abs() for n, w in pruner.weights.items()}
            kept = polarise("oh", m, factors, reached(pruner)).values
            leaves, hard = m, {n: x.bool() for n, x in kept.items()}
        else:
            leaves, hard = hard, dict.fromkeys(hard, 1.0)
        dt = 0.2 ** (step / 4) - 0.2 ** ((step + 1) / 4)
        expected = hand_step(model, m, leaves, hard, next(copied), 1.3, dt)
        pruner.step(batches)
        for name, gate in pruner.gates.items():
            torch.testing.assert_close(gate.double().reshape(-1), expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reproject", [True, False])
@pytest.mark.parametrize("schedule", flow.STEP_SCHEDULES)
def test_masks_are_exact_selections_after_every_step(schedule, reproject):
    model = net()
    options = SpODEOptions(step_schedule=schedule, reproject=reproject)
    pruner, batches = SpODE(model, loss, 0.83, steps=6, options=options), stream()
    while not pruner.done:
        pruner.step(batches)
        assert sk.masks(model).count() == kept_count(total(model), reached(pruner))
        scores = {n: (m * pruner.weights[n]).abs() for n, m in pruner.gates.items()}
        assert Projection()(scores, reached(pruner)).masks == sk.masks(model)
        if reproject:
            assert float(flow.energy(pruner.gates, dict.fromkeys(scores, 1), "l2")) == pytest.approx(
                pruner.density, 1e-6
            )
    assert sk.masks(model).count() == kept_count(total(model), 0.83)


def test_densities_follow_the_schedule():
    pruner, batches = SpODE(net(), loss, 0.9, steps=5), stream()
    for step in range(5):
        pruner.step(batches)
        assert pruner.density == pytest.approx(0.1 ** ((step + 1) / 5), abs=1e-12)


def test_without_reprojection_the_density_drifts_as_predicted():
    pruner, batches, predicted = SpODE(net(norm=False), loss, 0.9, steps=12, radius=1.4, options=BARE), stream(), 1.0
    for step in range(12):
        metrics = pruner.step(batches)
        dt = 0.1 ** (step / 12) - 0.1 ** ((step + 1) / 12)
        predicted = flow.drift(predicted, dt, 1.4)
        assert metrics.read()["energy"] == pytest.approx(predicted, rel=1e-6)
        assert pruner.done or pruner.density == pytest.approx(predicted, rel=1e-6)


def test_pruned_gates_come_back():
    pruner, batches = SpODE(net(), loss, 0.9, steps=20, radius=1.4), stream()
    before, counted, seen = sk.masks(pruner.model), 0.0, 0
    while not pruner.done:
        counted += pruner.step(batches).read()["regrown"]
        after = sk.masks(pruner.model)
        seen += sum((after[n] & ~before[n]).count() for n in after)
        before = after
    assert counted == seen > 0


def test_sparsity_zero_changes_nothing():
    model = net(norm=False)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    pruner = run(SpODE(model, loss, 0.0, steps=3))
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert all(bool((m == 1).all()) for m in pruner.gates.values())


def test_theta_and_gradients_are_left_alone():
    model = net()
    theta = {n: p.detach().clone() for n, p in model.named_parameters()}
    pruner = run(SpODE(model, loss, 0.9, steps=4, recalibrate=2))
    assert all(torch.equal(p, theta[n]) and p.grad is None for n, p in model.named_parameters())
    assert (pruner.cost.steps, pruner.cost.passes, pruner.cost.samples) == (4, 4, 32)


def test_radius_one_is_magnitude_pruning():
    model = net()
    expected = Projection()({n: w.clone() for n, w in SpODE(model, loss, 0.8).weights.items()}, 0.8).masks
    run(SpODE(model, loss, 0.8, steps=5, radius=1))
    assert sk.masks(model) == expected


def test_the_flow_saves_loss_against_magnitude():
    """A net trained for a moment on separable points: at 90 % its mask should cost less than that of magnitude."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 4))
    x = torch.randn(512, 16)
    data = (x, (x @ torch.randn(16, 4)).argmax(1))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss(model, data).backward()
        optimizer.step()
    sk.sparsify(model)
    values = {}
    for radius in (1.0, 1.1):
        pruned = copy.deepcopy(model)
        run(SpODE(pruned, loss, 0.9, steps=60, radius=radius), itertools.repeat(data))
        values[radius] = float(loss(pruned, data).detach())
    assert values[1.1] < 0.7 * values[1.0]


@pytest.mark.parametrize("polariser", POLARISERS)
@pytest.mark.parametrize("energy", flow.ENERGIES)
def test_every_combination_runs_to_the_exact_count(polariser, energy):
    steps_and_radii = list(itertools.product(flow.STEP_SCHEDULES, flow.RADIUS_SCHEDULES))
    for schedule, radii in steps_and_radii:
        if radii == "hess" and schedule != "hess":
            continue
        model = net()
        options = SpODEOptions(step_schedule=schedule, radius_schedule=radii)
        run(SpODE(model, loss, 0.7, steps=3, energy=energy, polariser=polariser, recalibrate=0, options=options))
        assert sk.masks(model).count() == kept_count(total(model), 0.7)


@pytest.mark.parametrize("energy", flow.ENERGIES)
@pytest.mark.parametrize("polariser", ["ohh", "ohm", "qt", "gaum"])
@pytest.mark.parametrize("pattern", [Channel(), Filter()])
def test_whole_units_go_layer_by_layer(pattern, polariser, energy):
    model = net()
    projection = Projection(pattern, Uniform())
    pruner = SpODE(model, loss, 0.5, steps=5, polariser=polariser, energy=energy, projection=projection)
    assert pruner.gates["0"].shape == ((2,) if isinstance(pattern, Channel) else (6,))
    batches = stream()
    while not pruner.done:
        pruner.step(batches)
        for mask in sk.masks(model).values():
            units = pattern.reduce_sum(mask.dense().float()) > 0
            assert torch.equal(pattern.expand(units, mask.shape), mask.dense())
            assert int(units.sum()) == kept_count(units.numel(), reached(pruner))


def test_unit_gates_take_the_sum_of_their_weights_gradients_and_the_weights_share_of_the_density():
    model, batches = net(norm=False), stream()
    pruner = SpODE(model, loss, 0.5, steps=2, projection=Projection(Filter(), Uniform()), options=BARE)
    _, h = sk.dense_gradients(model, loss, next(stream()))
    e = {n: -(h[n] * w).flatten(1).sum(1).double() for n, w in pruner.weights.items()}
    w = {n: torch.full((x.shape[0],), float(x[0].numel())).double() for n, x in pruner.weights.items()}
    g = {n: -w[n] / total(model) for n in w}
    dt = 1 - 0.5**0.5
    expected = {n: 1 + dt * d for n, d in flow.direction(e, g, 1.1).items()}
    pruner.step(batches)
    for name, m in pruner.gates.items():
        torch.testing.assert_close(m.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_units_are_ranked_by_their_gate_times_the_l1_norm():
    model = net(norm=False)
    pruner, batches = SpODE(model, loss, 0.6, steps=3, projection=Projection(Channel())), stream()
    pruner.step(batches)
    scores = [pruner.gates[n].abs() * w.transpose(0, 1).flatten(1).abs().sum(1) for n, w in pruner.weights.items()]
    kept = kept_count(sum(s.numel() for s in scores), reached(pruner))
    threshold = torch.cat(scores).sort(descending=True).values[kept - 1] * (1 - 1e-5)
    for score, mask in zip(scores, sk.masks(model).values(), strict=True):
        assert torch.equal(score >= threshold, mask.dense().transpose(0, 1).flatten(1).any(1))


@pytest.mark.parametrize("polariser", POLARISERS)
def test_local_thresholds_run_with_uneven_budgets(polariser):
    model = net()
    run(SpODE(model, loss, 0.8, steps=4, polariser=polariser, projection=Projection(allocation=ERK())))
    assert sk.masks(model).count() == kept_count(total(model), 0.8)


def test_each_layer_has_the_threshold_of_its_own_budget():
    model, zeros = net(), []

    def watched(model, batch):
        zeros.append({n: int((layer._effective == 0).sum()) for n, layer in sk.masked_layers(model).items()})
        return loss(model, batch)

    allocation = PerLayer({"4": 0.5, "6": 0.2}, default=0.0)
    run(
        SpODE(model, watched, 0.3, steps=3, polariser="oh", projection=Projection(allocation=allocation), recalibrate=0)
    )
    assert zeros == [{"0": 0, "4": 540, "6": 20}] * 3


@pytest.mark.parametrize("reproject", [True, False])
def test_a_pruned_model_continues_from_its_density(reproject):
    model, options = net(), SpODEOptions(reproject=reproject)
    run(SpODE(model, loss, 0.5, steps=4))
    pruner, batches = SpODE(model, loss, 0.9, steps=8, radius=1.4, options=options), stream(1)
    assert pruner.density == pytest.approx(0.5, abs=1e-3)
    first, regrown = sk.masks(model), 0.0
    if reproject:
        assert float(flow.energy(pruner.gates, dict.fromkeys(first, 1), "l2")) == pytest.approx(pruner.density)
    while not pruner.done:
        regrown += pruner.step(batches).read()["regrown"]
    assert sk.masks(model).count() == kept_count(total(model), 0.9) and regrown > 0
    with pytest.raises(ValueError, match=r"SpODE: model: expected masks that keep at least \d+ units, got \d+ kept"):
        SpODE(model, loss, 0.5)


def test_score_momentum_ranks_only_the_last_projection():
    model, batches = net(), stream()
    pruner = SpODE(model, loss, 0.8, steps=4, options=SpODEOptions(score_momentum=0.9))
    smoothed = {n: torch.zeros_like(w) for n, w in pruner.weights.items()}
    while not pruner.done:
        pruner.step(batches)
        current = {n: (m * pruner.weights[n]).abs() for n, m in pruner.gates.items()}
        smoothed = {n: s + 0.9 * smoothed[n] for n, s in current.items()}
        ranked = smoothed if pruner.done else current
        assert sk.masks(model) == Projection()(ranked, reached(pruner)).masks


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("polariser", ["ohh", "qtm"])
def test_gates_are_float32_whatever_the_weights(polariser, dtype):
    model = net(norm=False).to(dtype)
    pruner = SpODE(model, lambda net, b: F.cross_entropy(net(b[0].to(dtype)), b[1]), 0.6, steps=2, polariser=polariser)
    run(pruner)
    assert all(m.dtype == torch.float32 for m in pruner.gates.values())
    assert sk.masks(model).count() == kept_count(total(model), 0.6)


@pytest.mark.parametrize("policy", ["train", "eval", "frozen"])
def test_batchnorm_during_the_flow(policy):
    model = net()
    options = SpODEOptions(batchnorm=policy)
    pruner = SpODE(model, loss, 0.5, steps=3, recalibrate=0, options=options)
    before = model.state_dict()["1.running_mean"].clone()
    run(pruner)
    assert torch.equal(model.state_dict()["1.running_mean"], before) == (policy != "train")
    assert all(m.training and getattr(m, "track_running_stats", True) for m in model.modules())


def test_batchnorm_is_recalibrated_at_the_end_and_nothing_is_drawn_without_it():
    batches = iter([next(stream(i)) for i in range(7)])
    model = net()
    run(SpODE(model, loss, 0.5, steps=3, recalibrate=4), batches)
    assert next(batches, None) is None
    expected = copy.deepcopy(model)
    sk.recalibrate_batchnorm(expected, [next(stream(i)) for i in range(3, 7)])
    torch.testing.assert_close(model.state_dict(), expected.state_dict())
    run(SpODE(net(norm=False), loss, 0.5, steps=3), iter([next(stream(i)) for i in range(3)]))
    with pytest.raises(ValueError, match="SpODE: batches: expected another batch at step 3, got none"):
        run(SpODE(net(), loss, 0.5, steps=3), iter([next(stream(i)) for i in range(5)]))


@pytest.mark.parametrize("polariser", ["ohh", "oh", "qt", "gaum"])
@pytest.mark.parametrize("schedule", ["exp", "hess"])
def test_a_run_is_a_function_of_its_seed_and_resumes_bit_by_bit(polariser, schedule):
    options = SpODEOptions(score_momentum=0.5, step_schedule=schedule)

    def fresh(model: nn.Module) -> SpODE:
        return SpODE(model, loss, 0.8, steps=6, polariser=polariser, recalibrate=2, options=options)

    whole = run(fresh(net()))
    first, batches = fresh(net()), stream()
    for _ in range(3):
        first.step(batches)
    saved = copy.deepcopy({"model": first.model.state_dict(), "pruner": first.state_dict()})
    live = first.state_dict()
    first.step(stream(9))
    assert all(torch.equal(live["gates"][n], m) for n, m in saved["pruner"]["gates"].items())
    second = fresh(net(seed=5))
    second.model.load_state_dict(saved["model"])
    second.load_state_dict(saved["pruner"])
    assert second.density == saved["pruner"]["density"] and second.cost.passes == 3
    run(second, batches)
    assert second.masks == whole.masks
    for name, m in whole.gates.items():
        assert torch.equal(second.gates[name], m) and torch.equal(second.scores[name], whole.scores[name])
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor)


def test_a_continued_run_resumes_on_a_model_that_was_full():
    model = run(SpODE(net(), loss, 0.5, steps=2)).model
    first, batches = SpODE(model, loss, 0.9, steps=4), stream()
    first.step(batches)
    second = SpODE(net(seed=5), loss, 0.9, steps=4)
    second.model.load_state_dict(model.state_dict())
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        batch = next(batches)
        first.step(iter([batch]))
        second.step(iter([batch]))
        assert first.density == second.density and first.masks == second.masks


def test_a_finished_run_loads_into_a_finished_model():
    done = run(SpODE(net(), loss, 0.87, steps=2))
    again = SpODE(done.model, loss, 0.87, steps=2)
    again.load_state_dict(done.state_dict())
    assert again.done and again.masks == done.masks


def test_the_structured_rule():
    assert node_sparsity(0.75) == 0.5 and node_sparsity(0) == 0
    with pytest.raises(ValueError, match=r"node_sparsity: sparsity: expected a number in \[0, 1\), got 1"):
        node_sparsity(1)


WRONG = [
    ({"steps": 0}, "SpODE: steps: expected an int >= 1, got 0"),
    ({"steps": 1.5}, "SpODE: steps: expected an int >= 1, got 1.5"),
    ({"recalibrate": -1}, "SpODE: recalibrate: expected an int >= 0, got -1"),
    ({"radius": 0.9}, "SpODE: radius: expected a finite number >= 1, got 0.9"),
    ({"radius": math.inf}, "SpODE: radius: expected a finite number >= 1, got inf"),
    ({"radius": math.nan}, "SpODE: radius: expected a finite number >= 1, got nan"),
    ({"radius": "big"}, "SpODE: radius: expected a finite number >= 1, got 'big'"),
    ({"energy": "l3"}, "SpODE: energy: expected one of l2, l1, got 'l3'"),
    ({"polariser": "id"}, "SpODE: polariser: expected one of oh, ohm, ohh, ohhm, qt, qtm, gau, gaum, got 'id'"),
    ({"options": "exp"}, "SpODE: options: expected SpODEOptions, got str"),
    (
        {"projection": Projection(NM(2, 4))},
        "SpODE: projection: expected the pattern Unstructured, Filter, Channel or CoupledFilters",
    ),
    (
        {"projection": Projection(Block(2, 2))},
        "SpODE: projection: expected the pattern Unstructured, Filter, Channel or CoupledFilters",
    ),
]
WRONG_OPTIONS = [
    ({"step_schedule": "cos"}, "SpODE: step_schedule: expected one of exp, lin, invexp, hess, got 'cos'"),
    ({"radius_schedule": "exp"}, "SpODE: radius_schedule: expected one of fix, invexp, hess, got 'exp'"),
    ({"radius_schedule": "hess"}, "SpODE: radius_schedule: expected 'hess' only with step_schedule='hess', got 'exp'"),
    ({"batchnorm": "off"}, "SpODE: batchnorm: expected one of train, eval, frozen, got 'off'"),
    ({"score_momentum": 1.0}, r"SpODE: score_momentum: expected a number in \[0, 1\), got 1.0"),
    ({"ratio": 1}, r"SpODE: ratio: expected a number in \(0, 1\), got 1"),
    ({"eps": 0.5}, r"SpODE: eps: expected a number in \(0.5, 1\), got 0.5"),
    ({"reproject": 1}, "SpODE: reproject: expected a bool, got 1"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        SpODE(net(), loss, 0.5, **arguments)


@pytest.mark.parametrize(("arguments", "message"), WRONG_OPTIONS)
def test_wrong_options_are_named(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        SpODE(net(), loss, 0.5, options=SpODEOptions(**arguments))


def test_other_errors_say_what_is_expected():
    with pytest.raises(ValueError, match="SpODE: radius: expected at most 4 for a radius that rises to it, got 5"):
        SpODE(net(), loss, 0.5, radius=5, options=SpODEOptions(radius_schedule="invexp"))
    model = net()
    sk.set_masks(model, odd_mask(model))
    with pytest.raises(ValueError, match="SpODE: model: expected masks of whole units of Channel.*, got others in `0`"):
        SpODE(model, loss, 0.5, projection=Projection(Channel()))
    pruner = SpODE(net(), lambda m, b: loss(m, b) * torch.nan, 0.5, steps=2)
    with pytest.raises(ValueError, match=r"SpODE: loss: expected a finite value, got NaN or inf \(step 1\)"):
        pruner.step(stream())
    run(done := SpODE(net(), loss, 0.5, steps=1))
    with pytest.raises(ValueError, match="SpODE: step: expected a run that is not done"):
        done.step(stream())
    with pytest.raises(ValueError, match="SpODE: load_state_dict: expected steps 3, got 1"):
        SpODE(net(), loss, 0.5, steps=3).load_state_dict(done.state_dict())


def odd_mask(model: nn.Sequential) -> dict[str, sk.Mask]:
    dense = torch.ones(sk.masks(model)["0"].shape, dtype=torch.bool)
    dense[0, 0, 0, 0] = False
    return {"0": sk.Mask.from_dense(dense)}
