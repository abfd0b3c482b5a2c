# SPDX-License-Identifier: Apache-2.0
"""Hydra, Movement, ProbMask: steps by hand in float64, against plain loops, and what each leaves alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from replay import Recorder
from torch import Tensor, nn
from torch.nn import functional as F

import sparsekit as sk
from sparsekit.allocation import kept_count
from sparsekit.probabilities import logistic_noise
from sparsekit.projection import Projection
from sparsekit.pruners.base import BasePruner

D = torch.float64
Batch = tuple[Tensor, Tensor]


class Row(nn.Module):
    """z of one Linear, so that the loss can be any function of it."""

    def __init__(self, theta: list[float]) -> None:
        super().__init__()
        self.fc = nn.Linear(len(theta), 1, bias=False, dtype=D)
        self.fc.weight.data.copy_(torch.tensor([theta]))
        sk.sparsify(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def linear(model: nn.Module, c: Tensor) -> Tensor:
    """l(z) = c'z, whose h is c."""
    return model(c).sum()


def c(*values: float) -> Tensor:
    return torch.tensor([values], dtype=D)


def still(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.0)


def build(seed: int = 0, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=bias), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 6), nn.ReLU(),
        nn.Linear(6, 3),
    ).double()  # fmt: skip
    sk.sparsify(model)
    return model


def batches(seed: int = 0) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(8, 1, 5, 5, generator=generator, dtype=D), torch.randint(3, (8,), generator=generator)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=1e-3)


def dense(model: nn.Module) -> dict[str, Tensor]:
    return {name: mask.dense() for name, mask in sk.masks(model).items()}


def h_of(model: nn.Module, batch: Batch, z: dict[str, Tensor]) -> dict[str, Tensor]:
    """dl/dz by autograd at weights put into a plain copy, and the gradients of all other parameters."""
    leaves = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    leaves |= {f"{n}.weight": v.detach().clone().requires_grad_() for n, v in z.items()}
    buffers = {n: b.clone() for n, b in model.named_buffers() if "mask" not in n}
    plain = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=model[0].bias is not None), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(36, 6), nn.ReLU(), nn.Linear(6, 3),
    ).double()  # fmt: skip
    value = F.cross_entropy(torch.func.functional_call(plain, (leaves, buffers), (batch[0],)), batch[1])
    return dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))


def top(values: dict[str, Tensor], sparsity: float, together: bool) -> dict[str, Tensor]:
    """Masks of the largest values, ties to the lowest index, by a stable sort."""
    groups = [list(values)] if together else [[n] for n in values]
    masks = {}
    for names in groups:
        flat = torch.cat([values[n].flatten() for n in names])
        kept = torch.zeros(len(flat), dtype=torch.bool)
        kept[flat.sort(descending=True, stable=True).indices[: kept_count(len(flat), sparsity)]] = True
        parts = kept.split([values[n].numel() for n in names])
        masks |= {n: part.view(values[n].shape) for n, part in zip(names, parts, strict=True)}
    return masks


# Hydra


def test_the_first_scores_of_hydra_by_hand() -> None:
    # fan_in 4, max|w| = 3: sqrt(6/4)/3 times each.
    pruner = sk.Hydra(Row([2.0, -1.0, 0.5, -3.0]), linear, 0.5, steps=1)
    expected = torch.tensor([[2.0, -1.0, 0.5, -3.0]], dtype=D) * math.sqrt(1.5) / 3
    torch.testing.assert_close(pruner.scores["fc"].detach(), expected, rtol=1e-15, atol=0)
    assert pruner.masks["fc"].dense().tolist() == [[True, False, False, True]]


def test_the_fan_in_of_a_convolution_is_what_one_output_sees() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 4, 3, groups=2), nn.Linear(5, 7))
    sk.sparsify(model)
    pruner = sk.Hydra(model, loss, 0.5, steps=1)
    for name, fan_in in (("0", 27), ("1", 5)):
        weight = model[int(name)].weight.detach()
        expected = weight * math.sqrt(6 / fan_in) / weight.abs().max()
        torch.testing.assert_close(pruner.scores[name].detach(), expected)


def test_hydra_by_hand() -> None:
    # s = theta = (2, -1, 0.5, -3), m = (1, 0, 0, 1), h = (1, 2, -4, 0): sign(s) theta h = (2, 2, -2, 0).
    model = Row([2.0, -1.0, 0.5, -3.0])
    rates: Any = {"score_lr": 0.5, "score_momentum": 0.5, "score_weight_decay": 0.0, "score_curve": "constant"}
    pruner = sk.Hydra(model, linear, 0.5, steps=3, start="raw", **rates)
    metrics = pruner.step(iter([c(1, 2, -4, 0)])).read()
    assert metrics["loss"] == 2.0 and metrics["flips"] == 2 and metrics["regrown"] == 1
    # |s| = (1, 2, 1.5, 3): the second entry, which was pruned, is back.
    assert pruner.scores["fc"].tolist() == [[1.0, -2.0, 1.5, -3.0]]
    assert pruner.masks["fc"].dense().tolist() == [[False, True, False, True]]
    # h = (0, 0, -2, -1): gradient (0, 0, -1, -3), momentum 0.5 * (2, 2, -2, 0) + it = (1, 1, -2, -3).
    pruner.step(iter([c(0, 0, -2, -1)]))
    assert pruner.scores["fc"].tolist() == [[0.5, -2.5, 2.5, -1.5]]
    assert pruner.masks["fc"].dense().tolist() == [[False, True, True, False]]
    assert model.fc.weight.tolist() == [[2.0, -1.0, 0.5, -3.0]]


def test_a_score_of_zero_leaves_zero_upwards() -> None:
    rates: Any = {"score_lr": 1.0, "score_momentum": 0.0, "score_weight_decay": 0.0}
    pruner = sk.Hydra(Row([0.0, 1.0]), linear, 0.5, steps=2, start="raw", **rates)
    pruner.scores["fc"].data.zero_()
    pruner.step(iter([c(1, 2)]))
    assert pruner.scores["fc"].tolist() == [[0.0, -2.0]]


@pytest.mark.parametrize("projection", [None, Projection()])
def test_hydra_is_a_plain_loop_in_float64(projection: Projection | None) -> None:
    model, source, same = build(), batches(), batches()
    pruner = sk.Hydra(model, loss, 0.6, steps=6, score_lr=2.0, projection=projection)
    theta = {n: w.clone() for n, w in pruner.weights.items()}
    s = {n: w * math.sqrt(6 / w[0].numel()) / w.abs().max() for n, w in theta.items()}
    affine = {n: p.detach().clone() for n, p in model.named_parameters() if n.startswith("1.")}
    momenta: dict[str, Tensor] = {}
    m = top({n: x.abs() for n, x in s.items()}, 0.6, projection is not None)
    returned = 0
    for step in range(6):
        assert all(torch.equal(dense(model)[n], m[n]) for n in m)
        batch, beta = next(same), 2.0 * 0.5 * (1 + math.cos(math.pi * step / 6))
        found = h_of(model, batch, {n: torch.where(m[n], theta[n], 0) for n in theta})
        returned += int(pruner.step(source).read()["regrown"])
        gradients = {n: torch.where(s[n] < 0, -1.0, 1.0) * theta[n] * found[f"{n}.weight"] for n in s}
        for name, values in [*((n, s) for n in s), *((n, affine) for n in affine)]:
            g = (gradients[name] if values is s else found[name]) + 1e-4 * values[name]
            momenta[name] = g if step == 0 else 0.9 * momenta[name] + g
            values[name] = values[name] - beta * momenta[name]
        m = top({n: x.abs() for n, x in s.items()}, 0.6, projection is not None)
        for n, value in s.items():
            torch.testing.assert_close(pruner.scores[n].detach(), value, rtol=1e-9, atol=1e-12)
        for n, value in affine.items():
            torch.testing.assert_close(dict(model.named_parameters())[n].detach(), value, rtol=1e-9, atol=1e-12)
    assert returned > 0


def test_hydra_leaves_weights_and_biases_bitwise_alone_while_it_learns_scores() -> None:
    model, source = build(), batches()
    pruner = sk.Hydra(model, loss, 0.7, steps=5, finetune_steps=4, optimizer=sgd, score_lr=1.0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    running = model[1].running_mean.clone()
    for _ in range(5):
        pruner.step(source)
        for n, p in model.named_parameters():
            assert torch.equal(p, before[n]) == (not n.startswith("1.")), n
            assert p.grad is None
    assert not torch.equal(model[1].running_mean, running)
    scores, masks = {n: s.detach().clone() for n, s in pruner.scores.items()}, pruner.masks
    for name, s in scores.items():
        assert s.data_ptr() != model.get_parameter(f"{name}.weight").data_ptr()
    pruner.step(source)
    # Fine-tuning moves all parameters, and neither scores nor masks.
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters())
    pruner.fit([next(source)])
    assert pruner.masks == masks and all(torch.equal(pruner.scores[n].detach(), s) for n, s in scores.items())
    pruned = {n: p for n, p in before.items() if n in ("4.weight",)}
    decay = (1 - 0.05e-3) ** 2
    for n, was in pruned.items():
        now, mask = model.get_parameter(n).detach(), masks[n.removesuffix(".weight")].dense()
        assert ((now - was)[~mask].abs() <= was[~mask].abs() * (1 - decay) * 20).all()


def test_raw_scores_are_a_copy_and_begin_with_the_masks_of_magnitude() -> None:
    model = build()
    pruner = sk.Hydra(model, loss, 0.7, steps=2, start="raw", projection=Projection())
    weights = pruner.weights
    assert all(torch.equal(s.detach(), weights[n]) for n, s in pruner.scores.items())
    assert pruner.masks == Projection()(weights, 0.7).masks
    assert all(s.data_ptr() != weights[n].data_ptr() for n, s in pruner.scores.items())


def test_filters_of_hydra_go_by_the_norm_of_their_scores() -> None:
    model, source = build(), batches()
    pruner = sk.Hydra(model, loss, 0.5, steps=4, score_lr=1.0, projection=Projection("filter", "uniform"))
    while not pruner.done:
        pruner.step(source)
        for name, s in pruner.scores.items():
            norms = s.detach().flatten(1).norm(dim=1)
            kept = norms.sort(descending=True).indices[: kept_count(len(norms), 0.5)].sort().values
            rows = pruner.masks[name].dense().flatten(1)
            assert rows.all(1).nonzero().flatten().tolist() == kept.tolist() and rows.any(1).sum() == len(kept)


def test_a_layer_of_zeros_has_scores_of_zero() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nn.init.zeros_(model[0].weight)
    sk.sparsify(model)
    pruner = sk.Hydra(model, loss, 0.5, steps=1)
    assert not pruner.scores["0"].any() and pruner.masks["0"].count() == 8


# Movement


def test_movement_by_hand() -> None:
    # h = (1, -1, 1, -1), theta = (1, 1, -1, -2), S = -theta h = (-1, 1, 1, -2) with alpha_S = 1.
    model = Row([1.0, 1.0, -1.0, -2.0])
    options: Any = {"score_lr": 1.0, "warm_up": 0.25, "ramp": 0.5, "curve": "constant"}
    pruner = sk.Movement(model, linear, 0.5, optimizer=lambda p: torch.optim.SGD(p, lr=0.5), steps=4, **options)
    assert pruner.masks.sparsity == 0
    pruner.step(iter([c(1, -1, 1, -1)]))
    assert pruner.scores["fc"].tolist() == [[-1.0, 1.0, 1.0, -2.0]] and pruner.masks.sparsity == 0
    assert model.fc.weight.tolist() == [[0.5, 1.5, -1.5, -1.5]]
    # The second step still keeps all. The largest weight moved towards zero, so it goes first.
    pruner.step(iter([c(0, 0, 0, 0)]))
    assert pruner.masks.sparsity == 0
    metrics = pruner.step(iter([c(2, 0, 0, 4)])).read()
    assert metrics["flips"] == 2 and metrics["target"] == 0.5
    assert pruner.masks["fc"].dense().tolist() == [[False, True, True, False]]
    # Pruned entries do not move, but their scores do: -theta h = (-1, 0, 0, 6).
    assert model.fc.weight.tolist() == [[0.5, 1.5, -1.5, -1.5]]
    assert pruner.scores["fc"].tolist() == [[-2.0, 1.0, 1.0, 4.0]]
    # The last one is back, and of the two that tie the first stays.
    metrics = pruner.step(iter([c(0, 1, 0, 1)])).read()
    assert (metrics["flips"], metrics["regrown"]) == (2, 1) and pruner.done
    assert pruner.masks["fc"].dense().tolist() == [[False, True, False, True]]
    assert model.fc.weight.tolist() == [[0.5, 1.0, -1.5, -2.0]]


def test_movement_keeps_small_weights_that_grow_where_magnitude_keeps_large_ones_that_shrink() -> None:
    theta, aim = [0.1, -0.1, 2.0, -2.0], torch.tensor([[1.0, -1.0, 1.5, -1.5]], dtype=D)
    away = lambda m, _: 0.5 * (m(torch.eye(4, dtype=D)).T - aim).square().sum()  # noqa: E731
    make = lambda p: torch.optim.SGD(p, lr=0.01)  # noqa: E731
    moved = sk.Movement(Row(theta), away, 0.5, optimizer=make, steps=5, warm_up=0.4).fit([0])
    large = sk.GMP(Row(theta), away, 0.5, optimizer=make, steps=5).fit([0])
    assert moved["fc"].dense().tolist() == [[True, True, False, False]]
    assert large["fc"].dense().tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("projection", [None, Projection()])
def test_movement_is_a_plain_loop_in_float64(projection: Projection | None) -> None:
    model, source, same = build(), batches(), batches()
    pruner = sk.Movement(
        model, loss, 0.7, optimizer=sgd, steps=10, ramp=0.6, score_curve="linear", projection=projection
    )
    values = {n: p.detach().clone() for n, p in model.named_parameters()}
    names = list(pruner.weights)
    s = {n: torch.zeros_like(values[f"{n}.weight"]) for n in names}
    momenta: dict[str, Tensor] = {}
    returned = 0
    for step in range(10):
        u = min(max((step - 1) / (6 - 1), 0.0), 1.0)
        m = top(s, 0.7 - 0.7 * (1 - u) ** 3, projection is not None)
        batch, rate = next(same), 0.05 * 0.5 * (1 + math.cos(math.pi * step / 10))
        plain = build()
        plain.load_state_dict(model.state_dict())
        found = h_of(plain, batch, {n: torch.where(m[n], values[f"{n}.weight"], 0) for n in names})
        returned += int(pruner.step(source).read()["regrown"])
        assert all(torch.equal(dense(model)[n], m[n]) for n in names), step
        for n in names:
            s[n] = s[n] - 0.01 * (1 - step / 10) * values[f"{n}.weight"] * found[f"{n}.weight"]
            found[f"{n}.weight"] = torch.where(m[n], found[f"{n}.weight"], 0)
            torch.testing.assert_close(pruner.scores[n].detach(), s[n], rtol=1e-9, atol=1e-13)
        for n in values:
            g = found[n] + 1e-3 * values[n]
            momenta[n] = g if step == 0 else 0.9 * momenta[n] + g
            values[n] = values[n] - rate * momenta[n]
            torch.testing.assert_close(model.get_parameter(n).detach(), values[n], rtol=1e-9, atol=1e-12)
    assert returned > 0


def test_the_rate_of_movements_scores_changes_no_mask() -> None:
    runs = []
    for rate in (2.0**-10, 0.5):
        pruner, source = sk.Movement(build(), loss, 0.7, optimizer=sgd, steps=8, score_lr=rate), batches()
        runs.append([])
        while not pruner.done:
            pruner.step(source)
            runs[-1].append(pruner.masks.hash())
    assert runs[0] == runs[1] and len(set(runs[0])) > 4


def test_scores_of_half_precision_weights_are_float32() -> None:
    model = nn.Sequential(nn.Linear(4, 4).bfloat16())
    sk.sparsify(model)
    square = lambda m, b: m(b).square().mean()  # noqa: E731
    for pruner in (
        sk.Movement(model, square, 0.5, optimizer=still, steps=2, ramp=1.0),
        sk.Hydra(build_bf16(), square, 0.5, steps=2),
        sk.ProbMask(build_bf16(), square, 0.5, optimizer=still, steps=2, score_lr=0.1),
    ):
        assert pruner.scores["0"].dtype == torch.float32
        assert pruner.fit([torch.ones(2, 4, dtype=torch.bfloat16)]).count() == 8


def build_bf16() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4).bfloat16())
    sk.sparsify(model)
    return model


# ProbMask


def noise_of(pruner: sk.ProbMask, step: int) -> list[list[Tensor]]:
    """The noise of a step, which another pruner with the same seed would draw."""
    twin = sk.ProbMask(build(), loss, 0.5, optimizer=sgd, steps=pruner.ends[0], options=pruner.options)
    twin._step = step
    return twin._inputs()[1]


def test_probmask_is_a_plain_loop_in_float64() -> None:
    steps, samples = 10, 2
    model, source, same = build(bias=True), batches(), batches()
    options = sk.ProbMaskOptions(samples=samples, clip=0.5, seed=3)
    pruner = sk.ProbMask(model, loss, 0.7, optimizer=sgd, steps=steps, score_lr=0.1, options=options)
    names = list(pruner.weights)
    leaves = {n: p.detach().clone() for n, p in model.named_parameters()}
    p = {n: torch.ones_like(leaves[f"{n}.weight"]).requires_grad_() for n in names}
    adam = torch.optim.Adam(p.values(), lr=0.1)
    momenta: dict[str, Tensor] = {}
    clipped = 0
    for step in range(steps):
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        sharpness, batch, noise = 1 / (0.97 * (1 - step / steps) + 0.03), next(same), noise_of(pruner, step)
        total = {n: torch.zeros_like(v) for n, v in [*leaves.items(), *p.items()]}
        losses = []
        for drawn in noise:
            own = {n: v.clone().requires_grad_() for n, v in leaves.items()}
            chance = {n: v.detach().clone().requires_grad_() for n, v in p.items()}
            eps, z = 1e-20, dict(own)
            for n, g in zip(names, drawn, strict=True):
                logit = torch.log(chance[n] + eps) - torch.log(1 - chance[n] + eps)
                z[f"{n}.weight"] = own[f"{n}.weight"] * torch.sigmoid((logit + g) * sharpness)
            plain = nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 6), nn.ReLU(),
                nn.Linear(6, 3),
            ).double()  # fmt: skip
            value = F.cross_entropy(torch.func.functional_call(plain, z, (batch[0],)), batch[1])
            losses.append(float(value.detach()))
            wanted = {**own, **chance}
            for n, g in zip(wanted, torch.autograd.grad(value, list(wanted.values())), strict=True):
                total[n] = total[n] + g / samples
        norm = torch.stack([g.norm() for g in total.values()]).norm()
        scale = min(1.0, 0.5 / (float(norm) + 1e-6))
        clipped += scale < 1
        metrics = pruner.step(source).read()
        assert metrics["loss"] == pytest.approx(sum(losses) / samples, rel=1e-10)
        for n, v in leaves.items():
            g = scale * total[n] + 1e-3 * v
            momenta[n] = g if step == 0 else 0.9 * momenta[n] + g
            leaves[n] = v - 0.05 * cosine * momenta[n]
            torch.testing.assert_close(model.get_parameter(n).detach(), leaves[n], rtol=1e-8, atol=1e-10)
        for n in names:
            p[n].grad = scale * total[n]
        adam.param_groups[0]["lr"] = 0.1 * cosine
        adam.step()
        # The ramp leaves 0 at step 2 (16 % of 10) and ends at step 6.
        u = min(max((step - 2) / (6 - 2), 0.0), 1.0)
        n_all = sum(v.numel() for v in p.values())
        budget = kept_count(n_all, round(0.7 - 0.7 * (1 - u) ** 3, 15))
        flat = torch.cat([v.detach().flatten() for v in p.values()])
        low, high = 0.0, max(float(flat.max()), 0.0)
        if flat.clamp(0, 1).sum() <= budget:
            high = 0.0
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if (flat - middle).clamp(0, 1).sum() > budget else (low, middle)
        for n in names:
            p[n].data = (p[n].detach() - high).clamp(0, 1)
            torch.testing.assert_close(pruner.probabilities[n], p[n].detach(), rtol=0, atol=1e-8)
        assert metrics["expected"] <= budget / n_all + 1e-9
        last = step + 1 == steps
        assert pruner.masks.count() == (kept_count(n_all, 0.7) if last else n_all)
    assert clipped > 0 and pruner.cost.passes == 2 * steps
    expected = top(pruner.probabilities, 0.7, True)
    assert all(torch.equal(dense(model)[n], expected[n]) for n in names)


def test_gradients_reach_norms_and_biases_while_samples_are_soft() -> None:
    model, source = build(), batches()
    pruner = sk.ProbMask(model, loss, 0.7, optimizer=sgd, steps=6, score_lr=0.1)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    pruner.step(source)
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert all(p.grad is not None for p in model.parameters())


def test_layers_may_have_budgets_of_their_own() -> None:
    model, source = build(), batches()
    projection = Projection(allocation="uniform")
    pruner = sk.ProbMask(model, loss, 0.6, optimizer=sgd, steps=8, score_lr=0.1, projection=projection)
    while not pruner.done:
        pruner.step(source)
    for name, p in pruner.probabilities.items():
        assert pruner.masks[name].count() == kept_count(p.numel(), 0.6) >= float(p.sum()) - 1e-9


def test_the_noise_depends_on_seed_step_and_sample_alone() -> None:
    def noise(seed: int, step: int) -> list[list[Tensor]]:
        torch.manual_seed(torch.seed() % 1000)
        pruner = sk.ProbMask(build(), loss, 0.5, optimizer=sgd, steps=4, options=sk.ProbMaskOptions(seed=seed))
        return noise_of(pruner, step)

    first = noise(0, 0)
    assert all(torch.equal(a, b) for x, y in zip(first, noise(0, 0), strict=True) for a, b in zip(x, y, strict=True))
    others = [noise(0, 1)[0][0], noise(1, 0)[0][0], first[1][0]]
    assert all(not torch.equal(first[0][0], other) for other in others)
    assert first[0][0].shape == (4, 1, 3, 3) and first[0][0].dtype == D


def test_drawing_noise_moves_no_other_random_number() -> None:
    pruner = sk.ProbMask(build(), loss, 0.5, optimizer=sgd, steps=4)
    before = torch.get_rng_state()
    pruner.step(batches())
    assert torch.equal(torch.get_rng_state(), before)
    assert logistic_noise(torch.ones(2), torch.Generator()).shape == (2,)


def test_fine_tuning_of_probmask_has_a_fraction_of_the_rate_and_fixed_masks() -> None:
    model, source = build(), batches()
    options = sk.ProbMaskOptions(finetune_rate=0.25)
    made = []

    def counted(parameters: Any) -> torch.optim.SGD:
        made.append(torch.optim.SGD(parameters, 0.4))
        return made[-1]

    pruner = sk.ProbMask(model, loss, 0.6, optimizer=counted, steps=3, finetune_steps=3, score_lr=0.1, options=options)
    for _ in range(3):
        pruner.step(source)
    masks, p = pruner.masks, {n: x.clone() for n, x in pruner.probabilities.items()}
    passes = pruner.cost.passes
    while not pruner.done:
        pruner.step(source)
        assert made[-1].param_groups[0]["lr"] == pytest.approx(0.1)
    assert pruner.masks == masks and all(torch.equal(x, p[n]) for n, x in pruner.probabilities.items())
    assert len(made) == 2 and pruner.cost.passes - passes == 3


# All of them


KINDS: dict[str, Any] = {
    "hydra": lambda m, f=loss: sk.Hydra(m, f, 0.6, steps=5),
    "movement": lambda m, f=loss: sk.Movement(m, f, 0.6, optimizer=sgd, steps=5),
    "probmask": lambda m, f=loss: sk.ProbMask(m, f, 0.6, optimizer=sgd, steps=5, score_lr=0.1),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_nan_gradients_are_an_error_and_change_no_mask(make: Any) -> None:
    model, source = build(), batches()
    poison = [False]

    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g * (math.nan if poison[0] else 1.0)

    def objective(m: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(Poison.apply(m(batch[0])), batch[1])  # pyright: ignore[reportArgumentType]

    pruner = make(model, objective)
    pruner.step(source)
    pruner.step(source)
    before, poison[0] = pruner.masks, True
    with pytest.raises(ValueError, match=r": scores: expected numbers, got NaN \(step [34]\)$"):
        pruner.step(source)
        before = pruner.masks
        pruner.step(source)
    assert pruner.masks == before


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_frozen_weights_are_refused(make: Any) -> None:
    model = build()
    model[4].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r": model: expected masked weights that require grad, got '4' frozen$"):
        make(model)


@pytest.mark.parametrize("name", ["hydra", "movement"])
def test_a_step_does_not_make_the_host_wait(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU; here flags are not looked at, as there, and reading a number of a tensor is an error."""
    monkeypatch.setattr(BasePruner, "_check", lambda self, flag, message: None)
    pruner, source = KINDS[name](build()), batches()
    pruner.step(source)
    drawn = [next(source) for _ in range(3)]
    with Recorder() as recorder:
        for batch in drawn:
            pruner.step(iter([batch]))
    assert recorder.operations
