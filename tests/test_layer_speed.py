# SPDX-License-Identifier: Apache-2.0
"""speed: what is timed is what is said, nothing of the model changes, and the verdicts follow from the times."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import sparsekit as sk
from sparsekit import layer_speed
from sparsekit.cli import app
from sparsekit.clocks import Rounds
from sparsekit.layer_speed import CUT, DENSE, EAGER, OWN


def network() -> nn.Sequential:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=2, padding=1, padding_mode="circular")
    return nn.Sequential(
        first, nn.BatchNorm2d(8), nn.ReLU(), second, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
    )


IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def run_once(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Functions are called once, not timed; each layer's results are noted, last those of the whole model."""
    results: list[dict[str, Any]] = []

    def once(functions: dict[str, Callable[[], Any]], clock: Any, **_: Any) -> dict[str, Rounds]:
        results.append({name: function() for name, function in functions.items()})
        return {name: Rounds(1, [float(i + 1)], [1.0]) for i, name in enumerate(functions)}

    monkeypatch.setattr(layer_speed, "interleave", once)
    return results


def test_all_of_a_layer_compute_the_same(run_once: list[dict[str, Any]]) -> None:
    model = network()
    sk.sparsify(model)
    masks = sk.Projection("filter", "uniform")({n: x.weight for n, x in sk.masked_layers(model).items()}, 0.5).masks
    sk.set_masks(model, masks)
    report = sk.speed(model, IMAGES, repeats=1)
    assert [(x.name, x.kind, x.outputs, x.inputs) for x in report.layers] == [
        ("0", "Conv2d", 4, 3),
        ("3", "Conv2d", 4, 4),
        ("6", "Linear", 2, 32),
    ]
    for layer, found in zip(report.layers, run_once, strict=False):
        torch.testing.assert_close(found[EAGER], found[OWN])
        assert not torch.allclose(found[DENSE], found[OWN])
        assert (CUT in found) == (layer.name != "3")  # groups cannot be cut
        if CUT in found:
            kept = masks[layer.name].dense().flatten(1).any(1)
            torch.testing.assert_close(found[CUT], found[OWN][:, kept])
    torch.testing.assert_close(run_once[-1][DENSE], run_once[-1][OWN])
    assert report.ratios == {DENSE: 1.0, OWN: 2.0} and report.idle == ()


def test_empty_inputs_are_cut_too(run_once: list[dict[str, Any]]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    sk.sparsify(model)
    mask = torch.ones(8, 3, 3, 3, dtype=torch.bool)
    mask[:, 1], mask[2] = False, False
    sk.set_masks(model, {"0": sk.Mask.from_dense(mask)})
    (layer,) = sk.speed(model, IMAGES).layers
    assert (layer.outputs, layer.inputs) == (7, 2) and layer.kept == pytest.approx(7 * 18 / 216)
    kept = mask.flatten(1).any(1)
    torch.testing.assert_close(run_once[0][CUT], run_once[0][OWN][:, kept])


def test_a_plain_model_is_masked_in_a_copy(run_once: list[dict[str, Any]]) -> None:
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    report = sk.speed(model, (IMAGES,), sparsity=0.75, backward=True)
    assert [type(m) for m in model] == [type(m) for m in network()] and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and torch.equal(torch.get_rng_state(), state)
    sizes = [torch.Size(x.shape).numel() for x in report.layers]
    assert sum(x.kept * n for x, n in zip(report.layers, sizes, strict=True)) == pytest.approx(sum(sizes) / 4)
    assert report.backward and json.loads(json.dumps(asdict(report))) is not None


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, *, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.used(input=self.used(x))}


def test_named_arguments_and_layers_that_are_not_reached() -> None:
    report = sk.speed(Named(), {"x": torch.randn(3, 4)}, backward=True, repeats=1)
    assert [x.name for x in report.layers] == ["used"] and report.idle == ("unused",)
    assert "unused: not reached" in str(report) and "forward and backward" in str(report)
    assert all(seconds > 0 for x in report.layers for seconds in x.seconds.values())


@pytest.mark.parametrize(
    "own, cut, verdict",
    [
        ([1.0, 1.02, 0.98], None, "no gain"),
        ([1.2, 1.3, 1.25], None, "no gain, mask +22%"),
        ([1.0, 1.3, 1.0], None, "no gain"),  # most rounds do not say that it costs
        ([0.5, 0.5, 0.5], None, "2.0x"),
        ([0.5, 0.5, 2.0], None, "no gain"),
        ([1.5, 1.5, 1.5], [0.5, 0.5, 0.5], "2.0x if cut, mask +50%"),
        ([1.0, 1.0, 1.0], [0.95, 0.95, 0.95], "no gain"),
        ([1.0, 1.0, 1.0], [0.5, 0.5, 1.5], "no gain"),
    ],
)
def test_verdicts(own: list[float], cut: list[float] | None, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    sk.sparsify(model)
    if cut:
        mask = torch.ones(4, 4, dtype=torch.bool)
        mask[0] = False
        sk.set_masks(model, {"0": sk.Mask.from_dense(mask)})
    times = {DENSE: [2.0, 4.0, 8.0], EAGER: [1.0, 1.0, 1.0], OWN: own, CUT: cut or []}

    def scripted(functions: dict[str, Callable[[], Any]], clock: Any, **_: Any) -> dict[str, Rounds]:
        dense = times[DENSE]
        return {
            name: Rounds(1, dense if name == DENSE else [t * d for t, d in zip(times[name], dense, strict=True)])
            for name in functions
        }

    monkeypatch.setattr(layer_speed, "interleave", scripted)
    (layer,) = sk.speed(model, torch.randn(2, 4)).layers
    assert layer.verdict == verdict and layer.seconds[DENSE] == 4.0
    assert layer.ratios[OWN] == pytest.approx(sorted(own)[1])


@pytest.mark.parametrize(
    "act, error, message",
    [
        (lambda: sk.speed(None, IMAGES), TypeError, "speed: model: expected a torch.nn.Module, got NoneType"),  # type: ignore
        (lambda: sk.speed(network(), IMAGES, repeats=0), ValueError, "speed: repeats: expected an int >= 1, got 0"),
        (
            lambda: sk.speed(network(), IMAGES, sparsity=1.0),
            ValueError,
            r"sparsity: expected a number in \[0, 1\), got 1.0",
        ),
        (lambda: sk.speed(nn.ReLU(), IMAGES), ValueError, "sparsify: model: expected at least one layer to mask"),
        (lambda: sk.speed(Idle(), IMAGES), ValueError, "speed: example: expected one that reaches a masked layer"),
    ],
)
def test_bad_input(act: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        act()


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    call = ["speed", "mlp", "--batch", "2", "--image-size", "8", "--channels", "1", "--repeats", "1"]
    result = CliRunner().invoke(app, [*call, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["layers"] and all(x["seconds"][OWN] > 0 for x in report["layers"]) and not report["backward"]
    shown = CliRunner().invoke(app, [*call, "--pattern", "filter", "--backward", "--bf16"])
    assert shown.exit_code == 0 and "whole network: dense" in shown.stdout and "forward and backward" in shown.stdout
    for wrong in (["--batch", "0"], ["--device", "tpu"], ["--pattern", "rows"], ["--sparsity", "1"]):
        assert CliRunner().invoke(app, [*call, *wrong]).exit_code == 2
