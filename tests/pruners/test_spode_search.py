# SPDX-License-Identifier: Apache-2.0
"""SpODE's search for a radius by hand, and what its released code does at the end."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from test_spode import loss, net, stream
from torch import nn

import sparsekit as sk
from sparsekit.pruners import flow
from sparsekit.pruners.polarisers import polarise
from sparsekit.pruners.spode_search import candidates, searched


def test_the_candidates() -> None:
    assert candidates("none", 1.3) == [1.3]
    assert candidates("auto", 2.0) == [max(1, 2.0 * 0.99**i) for i in (0, 1, -1, 2, -2, 3, -3)]
    assert candidates("autor", 2.0) == [1 + 0.9**i for i in (0, 1, -1, 2, -2, 3, -3)]
    assert min(candidates("auto", 1.01)) == 1.0 and set(candidates("autor", 1.0)) == {1.0}


@pytest.mark.parametrize(
    ("losses", "drops", "expected"),
    [
        ([3.0, 2.0, 1.0], [1.0, 1.0, 1.0], 3),
        ([3.0, 2.0, 1.0], [1.0, 1.0, 0.9], 2),  # the best realises no more than 90 %
        ([3.0, 2.0, 1.0], [0.5, 0.2, 0.9], 1),  # none does, so the planned one
        ([2.0, 2.0, 2.0], [1.0, 1.0, 1.0], 1),
        ([math.nan, math.inf, 5.0], [1.0, 1.0, 0.91], 3),
        ([math.nan, math.inf, math.nan], [1.0, 1.0, 1.0], 1),
    ],
)
def test_which_of_them_is_taken(losses: list[float], drops: list[float], expected: int) -> None:
    """Radii 1, 2, 3; a gate falls by the radius, and a table says by how much G does, for a dt of one."""
    gates = {"fc": torch.zeros(2)}

    def look(table: list[float], gates: Any) -> torch.Tensor:
        return torch.tensor([0.0, *table])[int(-gates["fc"][0])].double()

    best, taken = searched(
        gates,
        lambda r: {"fc": torch.full((2,), -r)},
        1.0,
        [1.0, 2.0, 3.0],
        lambda m: -look(drops, m),
        lambda m: look(losses, m),
    )
    assert float(taken) == expected and best["fc"].tolist() == [-expected] * 2 and gates["fc"].tolist() == [0, 0]


@pytest.mark.parametrize("polariser", ["ohh", "gau"])
@pytest.mark.parametrize("search", ["auto", "autor"])
def test_a_step_takes_the_best_of_seven(search: str, polariser: str) -> None:
    model, batches, own = net(), stream(), stream()
    options = sk.SpODEOptions(reproject=False, radius_search=search)
    pruner = sk.SpODE(model, loss, 0.8, steps=8, radius=1.2, polariser=polariser, options=options)
    taken = []
    for step in range(8):
        before, batch = copy.deepcopy(pruner.gates), next(own)
        twin, density = copy.deepcopy(model), pruner.density
        dt = 0.2 ** (step / 8) - 0.2 ** ((step + 1) / 8)
        statistics = copy.deepcopy(model[1].state_dict())
        metrics = pruner.step(batches).read()
        assert int(model[1].num_batches_tracked) == int(statistics["num_batches_tracked"]) + 1 or step == 7
        # The direction of e is that of the step that was taken, at whichever radius; from it come all the others.
        e = {n: (pruner.gates[n] - m).double() for n, m in before.items()}
        g = {n: x.double() for n, x in flow.energy_gradient(before, dict.fromkeys(before, 1), "l2").items()}
        found = []
        for r in candidates(search, 1.2):
            delta = flow.direction(e, g, r)
            m = {n: before[n].double() + dt * delta[n] for n in before}
            removed = round(1 - (0.2 if step == 7 else density - dt), 12)
            theta = {n: layer.weight.detach() for n, layer in sk.masked_layers(twin).items()}
            if polariser == "ohh":
                scores = {n: (m[n].float() * theta[n]).abs() for n in m}
                kept = sk.Projection()(scores, removed, key="value").masks
                z = {n: torch.where(kept[n].dense(), theta[n], 0) for n in m}
            else:
                values = polarise(
                    "gau", {n: x.float() for n, x in m.items()}, {n: w.abs() for n, w in theta.items()}, removed
                )
                z = {n: values.values[n] * theta[n] for n in m}
            now = copy.deepcopy(twin)
            now[1].load_state_dict(statistics)
            with sk.effective_weights(now, z), torch.no_grad():
                value = float(loss(now, batch))
            drop = float(flow.norm(before) - flow.norm(m)) / math.sqrt(sum(x.numel() for x in m.values()))
            found.append((value, r) if drop > 0.9 * dt else (math.inf, r))
        best = min(found, key=lambda pair: pair[0])
        best = found[0] if best[0] == math.inf else best
        at = next(value for value, r in found if r == pytest.approx(metrics["radius"], rel=1e-12))
        assert at == pytest.approx(best[0], rel=1e-5) or at == best[0]
        taken.append(metrics["radius"])
    assert pruner.cost.passes == 8 and pruner.cost.samples == 64 and pruner.cost.forwards == 8 * 7 * 8
    assert len(set(taken)) > 1 and pruner.masks.count() == sk.kept_count(pruner.masks.numel, 0.8)


def test_a_search_lowers_what_it_looks_at_and_resumes() -> None:
    def run(cut: int) -> tuple[Any, list[float]]:
        model, batches, radii = net(), stream(), []
        options = sk.SpODEOptions(radius_search="autor")
        pruner = sk.SpODE(model, loss, 0.9, steps=6, radius=1.5, recalibrate=2, options=options)
        while not pruner.done:
            if pruner.cost.steps == cut:
                state, weights = copy.deepcopy((pruner.state_dict(), model.state_dict()))
                model = net(seed=3)
                pruner = sk.SpODE(model, loss, 0.9, steps=6, radius=1.5, recalibrate=2, options=options)
                model.load_state_dict(weights)
                pruner.load_state_dict(state)
            radii.append(pruner.step(batches).read()["radius"])
        assert pruner.cost.forwards == 6 * 7 * 8
        return model.state_dict(), radii

    whole = run(-1)
    for cut in range(6):
        state, radii = run(cut)
        assert radii == whole[1] and all(torch.equal(v, whole[0][n]) for n, v in state.items())


@pytest.mark.parametrize("option", ["mask", "sign"])
@pytest.mark.parametrize("pattern", ["unstructured", "channel"])
def test_gates_that_stay_go_into_theta(option: str, pattern: str) -> None:
    projection: Any = sk.Projection(pattern, "global" if pattern == "unstructured" else "uniform")  # pyright: ignore
    runs = {}
    for name in ("one", option):
        model, batches = net(norm=False), stream()
        options = sk.SpODEOptions(mask_option=name)
        pruner = sk.SpODE(model, loss, 0.6, steps=5, radius=2.0, projection=projection, options=options)
        before = copy.deepcopy(pruner.weights)
        for _ in range(5):
            pruner.step(batches)
        runs[name] = pruner
        for layer, w in pruner.weights.items():
            gate = projection.pattern.expand(pruner.gates[layer], w.shape)
            factor = {"one": torch.ones_like(gate), "mask": gate, "sign": gate.sign()}[name]
            kept = pruner.masks[layer].dense()
            assert torch.equal(w, torch.where(kept, before[layer] * factor, before[layer]))
    assert runs["one"].masks == runs[option].masks


@pytest.mark.parametrize("reset", [True, False])
def test_batchnorm_as_released(reset: bool) -> None:
    name = "released_reset" if reset else "released"
    model, batches, own = net(), stream(), stream()
    model[1].running_mean += 1
    pruner = sk.SpODE(model, loss, 0.6, steps=3, options=sk.SpODEOptions(recalibration=name, batchnorm="frozen"))
    before = copy.deepcopy(model[1])
    for _ in range(3):
        pruner.step(batches)
        seen = next(own)
    seen = next(own)  # the one batch more of the last step
    assert torch.equal(next(own)[0], next(batches)[0])
    if reset:
        before.reset_running_stats()
    with torch.no_grad():
        before.train()(
            nn.functional.conv2d(seen[0], torch.where(model[0].mask.dense(), model[0].weight, 0), model[0].bias)
        )
    torch.testing.assert_close(model[1].running_mean, before.running_mean)
    torch.testing.assert_close(model[1].running_var, before.running_var)
    with pytest.raises(ValueError, match="SpODE: recalibration: expected one of average, released, released_reset"):
        sk.SpODE(net(), loss, 0.5, options=sk.SpODEOptions(recalibration="x"))


def test_the_pass_as_released_has_no_dropout() -> None:
    means = []
    for drop in (0.0, 0.9):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Dropout(drop), nn.Linear(50, 6), nn.BatchNorm1d(6), nn.Linear(6, 5))
        sk.sparsify(model)
        options = sk.SpODEOptions(recalibration="released", batchnorm="frozen")
        pruner = sk.SpODE(model, loss, 0.5, steps=1, radius=1.0, options=options)
        pruner.step(stream())
        means.append(model[3].running_mean.clone())
        assert all(module.training for module in model.modules())
    assert torch.equal(*means)


def test_trials_normalise_as_the_flow_does(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def watched(m: nn.Module, batch: Any) -> torch.Tensor:
        seen.append(m[1].training)
        return loss(m, batch)

    for policy, training in (("train", True), ("frozen", True), ("eval", False)):
        seen.clear()
        options = sk.SpODEOptions(radius_search="auto", batchnorm=policy)
        sk.SpODE(net(), watched, 0.5, steps=2, options=options).step(stream())
        assert seen == [training] * 8, policy


def test_a_failed_pass_leaves_the_statistics() -> None:
    model, batches, calls = net(), stream(), []

    def failing(m: nn.Module, batch: Any) -> torch.Tensor:
        calls.append(1)
        value = loss(m, batch)
        if len(calls) == 2:
            raise RuntimeError("no more")
        return value

    options = sk.SpODEOptions(recalibration="released_reset", batchnorm="frozen")
    pruner = sk.SpODE(model, failing, 0.5, steps=1, options=options)
    before, training = copy.deepcopy(model[1].state_dict()), model.training
    with pytest.raises(RuntimeError, match="no more"):
        pruner.step(batches)
    assert all(torch.equal(v, before[n]) for n, v in model[1].state_dict().items()) and model.training == training


def test_bare_flow_of_a_pruned_model_takes_the_root_of_its_density_for_it() -> None:
    """As the released code from the second round on: G of the l2 kind of a mask that keeps k is sqrt(k)."""
    model = net(norm=False)
    sk.OneShotMagnitude(model, loss, 0.75)
    pruner = sk.SpODE(model, loss, 0.84, steps=8, options=sk.SpODEOptions(reproject=False))
    batches = stream()
    pruner.step(batches)
    assert pruner.density == pytest.approx(0.5, abs=0.02)
    assert pruner.masks.sparsity == pytest.approx(0.5, abs=0.02)
    while not pruner.done:
        pruner.step(batches)
    assert pruner.masks.count() == sk.kept_count(pruner.masks.numel, 0.84)
