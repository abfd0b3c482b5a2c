# SPDX-License-Identifier: Apache-2.0
"""GMP and DPF: by hand, against plain loops in float64, exact counts along the ramp, what comes back and what does not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from replay import Recorder
from torch import Tensor, nn
from two_layers import N, batches, build, loss, sgd

import sparsekit as sk
from sparsekit.pruners.base import BasePruner
from sparsekit.pruners.ramp import as_ramp


def largest(scores: list[Tensor], kept: int) -> list[Tensor]:
    """Masks of the largest scores over all layers, ties to the first: a stable sort."""
    flat = torch.cat([s.flatten() for s in scores])
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[flat.sort(descending=True, stable=True).indices[:kept]] = True
    return [m.view_as(s) for m, s in zip(mask.split([s.numel() for s in scores]), scores, strict=True)]


def loop(steps: int, end: int, every: int, sparsity: float, dense: bool) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """(weights, masks) after every step of either method, written with where and autograd alone."""
    model = build()
    sk.finalize(model)
    weights, biases = [model[0].weight, model[2].weight], [model[0].bias, model[2].bias]
    masks = [torch.ones_like(w, dtype=torch.bool) for w in weights]
    velocity = [torch.zeros_like(p) for p in (*weights, *biases)]
    for t, (x, y) in zip(range(steps), batches(), strict=False):
        before_end = t <= end or dense
        if (before_end and t % every == 0) or t == end:
            s = sparsity if t >= end else sparsity * (1 - (1 - t / end) ** 3)
            scores = [
                w.detach().abs() if dense else torch.where(m, w.detach().abs(), -1.0)
                for w, m in zip(weights, masks, strict=True)
            ]
            masks = largest(scores, N - math.floor(s * N + 0.5))
        z = [torch.where(m, w, 0.0).detach().requires_grad_() for w, m in zip(weights, masks, strict=True)]
        out = torch.tanh(x @ z[0].T + biases[0]) @ z[1].T + biases[1]
        h = torch.autograd.grad((out - y).square().sum(1).mean(), [*z, *biases])
        gradients = [g if dense else torch.where(m, g, 0.0) for g, m in zip(h[:2], masks, strict=True)] + list(h[2:])
        lr = 0.1 * 0.5 * (1 + math.cos(math.pi * t / steps))
        with torch.no_grad():
            for i, (p, g) in enumerate(zip((*weights, *biases), gradients, strict=True)):
                velocity[i] = 0.9 * velocity[i] + g + 0.01 * p
                p -= lr * velocity[i]
        yield [w.detach().clone() for w in weights], masks


@pytest.mark.parametrize(
    ("steps", "every", "fraction", "end"), [(20, 1, 0.6, 12), (20, 5, 0.6, 12), (9, 2, 1.0, 8), (1, 4, 0.6, 0)]
)
@pytest.mark.parametrize("kind", [sk.GMP, sk.DPF])
def test_weights_and_masks_of_a_plain_loop(kind: Any, steps: int, every: int, fraction: float, end: int) -> None:
    model, source, moved = build(), batches(), 0
    pruner = kind(model, loss, 0.6, optimizer=sgd, steps=steps, every=every, ramp=fraction)
    for weights, masks in loop(steps, end, every, 0.6, kind is sk.DPF):
        metrics = pruner.step(source).read()
        for layer, w, m in zip((model[0], model[2]), weights, masks, strict=True):
            assert torch.equal(layer.mask.dense(), m)
            torch.testing.assert_close(layer.weight.detach(), w, rtol=1e-12, atol=1e-12)
        moved += metrics["regrown"]
        assert pruner.masks.count() == sk.kept_count(N, metrics["target"])
    assert pruner.done and pruner.masks.count() == sk.kept_count(N, 0.6)
    assert (moved > 0) == (kind is sk.DPF and steps > 1)


class Quadratic(nn.Module):
    """z of one Linear, so that the loss can be |z - a|^2 / 2 and h = z - a."""

    def __init__(self, theta: list[float]) -> None:
        super().__init__()
        self.fc = nn.Linear(len(theta), 1, bias=False, dtype=torch.float64)
        self.fc.weight.data.copy_(torch.tensor([theta]))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).T


EYE = torch.eye(4, dtype=torch.float64)
AIM = torch.tensor([[1.0, 3.0, 0.0, -3.0]], dtype=torch.float64)


def by_hand(kind: Any) -> tuple[Any, Any]:
    model = Quadratic([2.0, -1.0, 0.5, -3.0])
    sk.sparsify(model)
    options: Any = {"steps": 3, "every": 1, "ramp": 1 / 3, "curve": "constant"}
    objective = lambda m, _: 0.5 * (m(EYE) - AIM).square().sum()  # noqa: E731
    return model, kind(model, objective, 0.5, optimizer=lambda p: torch.optim.SGD(p, lr=0.5), **options)


def test_dpf_by_hand() -> None:
    model, pruner = by_hand(sk.DPF)
    # Step 0, all kept: h = theta - a = (1, -4, 0.5, 0), theta = (1.5, 1, 0.25, -3).
    pruner.step(iter([0]))
    assert model.fc.weight.tolist() == [[1.5, 1.0, 0.25, -3.0]] and model.fc.mask.count() == 4
    # Step 1, the ramp ends: m = (1, 0, 0, 1), z = (1.5, 0, 0, -3), h = (0.5, -3, 0, 0): the pruned 1 grows to 2.5.
    assert pruner.step(iter([0])).read()["flips"] == 2
    assert model.fc.weight.tolist() == [[1.25, 2.5, 0.25, -3.0]] and model.fc.mask.dense().tolist() == [
        [True, False, False, True]
    ]
    # Step 2: |theta| = (1.25, 2.5, 0.25, 3), so the second comes back for the first.
    metrics = pruner.step(iter([0])).read()
    assert (metrics["flips"], metrics["regrown"], metrics["target"]) == (2, 1, 0.5)
    # z = (0, 2.5, 0, -3), h = (-1, -0.5, 0, 0).
    assert model.fc.weight.tolist() == [[1.75, 2.75, 0.25, -3.0]] and model.fc.mask.dense().tolist() == [
        [False, True, False, True]
    ]


def test_gmp_by_hand() -> None:
    model, pruner = by_hand(sk.GMP)
    pruner.step(iter([0]))
    assert model.fc.weight.tolist() == [[1.5, 1.0, 0.25, -3.0]]
    # As above, but the gradient is m * h = (0.5, 0, 0, 0), so nothing moves under the mask and nothing comes back.
    pruner.step(iter([0]))
    assert model.fc.weight.tolist() == [[1.25, 1.0, 0.25, -3.0]]
    metrics = pruner.step(iter([0])).read()
    assert (metrics["flips"], metrics["regrown"]) == (0, 0) and model.fc.weight.tolist() == [[1.125, 1.0, 0.25, -3.0]]


@pytest.mark.parametrize(
    ("pattern", "allocation"), [("filter", "uniform"), ("channel", "uniform"), ("unstructured", "erk")]
)
def test_gmp_is_gradual_around_the_same_training(pattern: str, allocation: str) -> None:
    projection = sk.Projection(pattern, allocation)
    model, other = build(), build()
    pruner = sk.GMP(
        model, loss, 0.5, optimizer=sgd, steps=8, ramp=0.75, every=2, curve="constant", projection=projection
    )
    gradual, optimizer = sk.Gradual(other, 0.5, steps=7, every=2, projection=projection), sgd(other.parameters())
    source, same = batches(), batches()
    while not pruner.done:
        pruner.step(source)
        if not gradual.done:
            gradual.step()
        optimizer.zero_grad()
        loss(other, next(same)).backward()
        optimizer.step()
        assert pruner.masks == gradual.masks
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_a_pattern_of_one_sparsity_needs_a_constant_schedule() -> None:
    projection = sk.Projection("2:4")
    model = nn.Sequential(nn.Linear(8, 4).double())
    sk.sparsify(model)
    square = lambda m, b: (m(b) - 1).square().sum()  # noqa: E731
    pruner = sk.DPF(model, square, 0.5, optimizer=sgd, steps=4, every=1, schedule="constant", projection=projection)
    masks = []
    for _ in range(4):
        pruner.step(iter([torch.randn(3, 8, dtype=torch.float64)]))
        masks.append(pruner.masks)
        assert masks[-1]["0"].dense().view(-1, 4).sum(1).tolist() == [2] * 8


def test_what_lies_under_a_mask_of_gmp_is_not_ranked_again() -> None:
    model, source = build(), batches()
    pruner = sk.GMP(model, loss, 0.8, optimizer=sgd, steps=10)
    while not pruner.done:
        before = pruner.masks
        assert pruner.step(source).read()["regrown"] == 0
        assert all((pruner.masks[n] & before[n]) == pruner.masks[n] for n in before)
        with torch.no_grad():
            for layer in sk.masked_layers(model).values():
                layer.weight[~layer.mask.dense()] = 1e30


def test_the_optimizer_is_one_for_the_whole_run() -> None:
    made = []

    def counted(parameters: Any) -> torch.optim.SGD:
        made.append(sgd(parameters))
        return made[-1]

    pruner = sk.GMP(build(), loss, 0.8, optimizer=counted, steps=6)
    pruner.fit([next(batches())])
    assert len(made) == 1


def test_where_a_ramp_ends() -> None:
    def ends(steps: int, fraction: float) -> int:
        return as_ramp("GMP", 0.5, "cubic", steps, 1, fraction, beyond=False).end

    assert [ends(*case) for case in ((10, 0.6), (10, 1.0), (10, 0.01), (5, 0.5), (2, 1.0), (1, 0.6))] == [
        6,
        9,
        1,
        3,
        1,
        0,
    ]
    ramp = as_ramp("DPF", 0.9, "linear", 20, 4, 0.5, beyond=True)
    assert [t for t in range(20) if ramp.target(t) is not None] == [0, 4, 8, 10, 12, 16]
    assert [ramp.latest(t) for t in (0, 3, 9, 10, 19)] == [0.0, 0.0, sk.Linear(0.0, 0.9, 0, 10)(8), 0.9, 0.9]
    ramp = as_ramp("GMP", 0.9, "linear", 20, 4, 0.5, beyond=False)
    assert [t for t in range(20) if ramp.target(t) is not None] == [0, 4, 8, 10]


@pytest.mark.parametrize("kind", [sk.GMP, sk.DPF])
def test_a_step_with_a_pruning_does_not_make_the_host_wait(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU; here flags are not looked at, as there, and reading a number of a tensor is an error."""
    monkeypatch.setattr(BasePruner, "_check", lambda self, flag, message: None)
    pruner, source = kind(build(), loss, 0.6, optimizer=sgd, steps=6, every=1), batches()
    pruner.step(source)
    drawn = [next(source) for _ in range(3)]
    with Recorder() as recorder:
        metrics = [pruner.step(iter([batch])) for batch in drawn]
    assert recorder.operations and all(m.read()["flips"] > 0 for m in metrics)
