# SPDX-License-Identifier: Apache-2.0
"""``sk.export``: what is written gives what the model gives, and a failed check leaves nothing behind."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import sparsekit as sk
from sparsekit import export as module_function
from sparsekit.export import ExportReport
from sparsekit.model_card import model_card

module = importlib.import_module("sparsekit.export")


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(32, 10)
    )


@pytest.fixture
def model() -> nn.Sequential:
    """Pruned, in train mode, with running statistics of its own, and NaN under the zero bits."""
    model = network()
    sk.sparsify(model)
    weights = {name: layer.weight.detach() for name, layer in sk.masked_layers(model).items()}
    sk.set_masks(model, sk.Projection()(weights, 0.8).masks)
    model(torch.randn(16, 3, 4, 4))
    with torch.no_grad():
        for layer in sk.masked_layers(model).values():
            layer.weight[~layer.mask.dense()] = math.nan
    return model


IMAGES = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(IMAGES)


def test_safetensors_load_strictly_into_the_plain_model(model: nn.Module, tmp_path: Path) -> None:
    report = sk.export(model, tmp_path / "sub" / "a.safetensors")
    file = tmp_path / "sub" / "a.safetensors"
    assert report == ExportReport(str(file), "safetensors", file.stat().st_size, None, ())
    plain = network()
    plain.load_state_dict(load_file(file), strict=True)
    torch.testing.assert_close(outputs(plain), outputs(model))
    assert (plain[0].weight == 0).sum() == 216 - model[0].mask.count()
    again = sk.load(network(), file, masks="infer")
    assert sk.masks(again) == sk.masks(model)


def test_tied_weights_have_all_their_names(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    sk.sparsify(model)
    sk.export(model, tmp_path / "a.safetensors")
    assert set(load_file(tmp_path / "a.safetensors")) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_the_model_stays_as_it_was(model: nn.Module, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sk.export(model, tmp_path / "a.safetensors")
    assert model.training and sk.masked_layers(model)
    assert all(
        torch.equal(value.nan_to_num(7.0), before[name].nan_to_num(7.0)) for name, value in model.state_dict().items()
    )


def test_a_plain_model_can_be_exported_too(model: nn.Module, tmp_path: Path) -> None:
    sk.export(sk.finalize(model), tmp_path / "a.safetensors")
    assert torch.equal(load_file(tmp_path / "a.safetensors")["0.weight"], model[0].weight)


def test_a_program_of_any_batch_size(model: nn.Module, tmp_path: Path) -> None:
    report = sk.export(model, tmp_path / "a.pt2", example=IMAGES[:2])
    assert report.format == "torch-export" and report.batches == (1, 2, 3) and report.difference is not None
    program = torch.export.load(tmp_path / "a.pt2").module()
    torch.testing.assert_close(program(IMAGES), outputs(model), rtol=1e-5, atol=1e-5)


def test_onnx_agrees_with_the_model(model: nn.Module, tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    runtime = pytest.importorskip("onnxruntime")
    report = sk.export(model, tmp_path / "a.bin", "onnx", example=IMAGES[:2])
    assert report.batches == (1, 2, 3) and report.difference is not None and report.difference < 1e-5
    session = runtime.InferenceSession(tmp_path / "a.bin", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"input": IMAGES.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), outputs(model), rtol=1e-4, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        return {"sum": self.a(first) + self.b(second), "product": self.a(first) * self.b(second)}


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    model = Two()
    sk.sparsify(model)
    report = sk.export(model, tmp_path / "a.pt2", example=(torch.randn(3, 4), torch.randn(3, 5)))
    assert report.batches == (1, 3, 4) and report.difference is not None and report.difference < 1e-5


# Failures


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A program that gives whatever a test puts here."""
    given: dict[str, Any] = {}

    def program(plain: nn.Module, inputs: Any, file: str) -> Any:
        Path(file).write_text("program")
        return lambda x: given["output"](plain(x))

    monkeypatch.setattr(module, "_program", program)
    return given


@pytest.mark.parametrize(
    "output, message",
    [
        (lambda x: x + 1e-3, "expected outputs within .* of the eager model, got a difference of 0.001"),
        (lambda x: x[:, :2], "expected outputs of shapes"),
        (lambda x: (x, x), "expected outputs of shapes"),
        (lambda x: x * math.nan, "expected inf and NaN where the eager model has them"),
        # Right for the batch of the example and wrong for the others.
        (lambda x: x + (len(x) != 2), ".*got a difference of 1$"),
    ],
)
def test_another_output_is_an_error_and_leaves_the_old_file(
    model: nn.Module, tmp_path: Path, wrong: dict[str, Any], output: Any, message: str
) -> None:
    (tmp_path / "a.pt2").write_text("old")
    wrong["output"] = output
    with pytest.raises(RuntimeError, match=f"export: torch-export: {message}"):
        sk.export(model, tmp_path / "a.pt2", example=IMAGES[:2])
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt2"] and (tmp_path / "a.pt2").read_text() == "old"


def test_a_small_difference_is_reported(model: nn.Module, tmp_path: Path, wrong: dict[str, Any]) -> None:
    wrong["output"] = lambda x: x + 4e-6
    report = sk.export(model, tmp_path / "a.pt2", example=IMAGES[:2])
    assert report.difference == pytest.approx(4e-6, rel=0.5) and (tmp_path / "a.pt2").read_text() == "program"


class Branching(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if float(input.sum()) > 0 else input


def test_what_cannot_be_traced_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        sk.export(nn.Sequential(Branching(4, 4)), tmp_path / "a.pt2", example=torch.randn(2, 4))
    assert list(tmp_path.iterdir()) == []


def test_an_example_that_the_model_does_not_take(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="export: example: expected inputs that the model takes, got shapes \\(2, 3\\)"
    ):
        sk.export(model, tmp_path / "a.pt2", example=torch.randn(2, 3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def gone(wanted: str) -> Any:
        if wanted == name:
            raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(module.importlib, "import_module", gone)
    with pytest.raises(ValueError, match=f"expected the package {name} for ONNX .*torch-sparsekit\\[onnx\\]"):
        sk.export(model, tmp_path / "a.onnx", example=IMAGES[:2])
    assert list(tmp_path.iterdir()) == []


def test_too_large_for_one_file(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(module, "_PROTOBUF_BYTES", 100)
    with pytest.raises(ValueError, match="export: model: expected less than 2 GiB for one ONNX file"):
        sk.export(model, tmp_path / "a.onnx", example=IMAGES[:2])


# Compact


def cut_in_half(width: int = 8) -> nn.Sequential:
    """Half of the filters of two layers masked, one of them with a bias and a BatchNorm behind it; in train mode."""
    torch.manual_seed(3)
    layers = (nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 6, 1, bias=False), nn.ReLU())
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(24, 10))
    model(torch.randn(16, 3, 4, 4))
    sk.sparsify(model, skip=["6"])
    weights = {name: layer.weight.detach() for name, layer in sk.masked_layers(model).items()}
    sk.set_masks(model, sk.Projection("filter", "uniform")(weights, 0.5).masks)
    return model


def full() -> nn.Sequential:
    return sk.finalize(cut_in_half())  # pyright: ignore


@pytest.mark.parametrize("silence", [False, True])
def test_a_smaller_model(tmp_path: Path, silence: bool) -> None:
    pytest.importorskip("torch_pruning")
    model = cut_in_half()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = sk.export(model, tmp_path / "sub" / "small", "compact", example=IMAGES[:2], silence_batchnorm=silence)
    files = {path.name: path for path in (tmp_path / "sub" / "small").iterdir()}
    assert set(files) == {"model.safetensors", "compact.json"} and report.format == "compact"
    assert report.file_bytes == sum(path.stat().st_size for path in files.values())
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    small, cut = sk.compact(model, IMAGES[:2], silence_batchnorm=silence)
    assert report.compact == cut and [layer.outputs.removed for layer in cut.layers] == [4 if silence else 1, 3, 0]
    again = sk.load_compact(full, tmp_path / "sub" / "small")
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), small.state_dict().values(), strict=True))
    if silence:
        sk.silence_batchnorm_(model, IMAGES)
    torch.testing.assert_close(outputs(again), outputs(model), rtol=1e-5, atol=1e-5)
    assert report.batches == (1, 2, 3) and report.difference is not None and report.difference < 1e-5


def test_a_smaller_model_that_gives_something_else_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch_pruning")
    sk.export(cut_in_half(), tmp_path / "small", "compact", example=IMAGES[:2])
    old = {path.name: path.read_bytes() for path in (tmp_path / "small").iterdir()}
    real = module.load_compact

    def damaged(*arguments: Any) -> nn.Module:
        found = real(*arguments)
        found[6].bias.data += 1e-2
        return found

    monkeypatch.setattr(module, "load_compact", damaged)
    for place in ("small", "other"):
        with pytest.raises(RuntimeError, match="export: compact: expected outputs within .* got a difference of 0.01"):
            sk.export(cut_in_half(), tmp_path / place, "compact", example=IMAGES[:2], silence_batchnorm=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "small").iterdir()} == old
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_errors_of_a_smaller_model_are_those_of_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_pruning")

    class Detached(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).argmax(1)

    with pytest.raises(
        ValueError, match="export: model: expected a network that Torch-Pruning can trace, got Detached"
    ):
        sk.export(Detached(4, 4), tmp_path / "a" / "b", "compact", example=torch.randn(2, 4))
    (tmp_path / "file").write_text("mine")
    for form in ("compact", "hub"):
        with pytest.raises(ValueError, match=f"export: path: expected a folder for {form}, got the file"):
            sk.export(cut_in_half(), tmp_path / "file", form, example=IMAGES)

    def gone(name: str, *rest: Any) -> Any:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(importlib, "import_module", gone)
    with pytest.raises(
        ValueError, match=r"export: expected the package torch_pruning \(pip install 'torch-sparsekit\[compact"
    ):
        sk.export(cut_in_half(), tmp_path / "a", "compact", example=IMAGES)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# Hub


def test_a_hub_folder(model: nn.Module, tmp_path: Path) -> None:
    results = {"test accuracy": 0.91234, "a|b": 3.0}
    report = sk.export(model, tmp_path / "hub", "hub", config={"network": "convnet", "classes": 10}, results=results)
    files = {path.name: path for path in (tmp_path / "hub").iterdir()}
    assert set(files) == {"config.json", "model.safetensors", "README.md"}
    assert report.file_bytes == sum(path.stat().st_size for path in files.values())
    config, card = json.loads(files["config.json"].read_text()), files["README.md"].read_text()
    assert config["network"] == "convnet" and config["sparsekit"]["mask_hash"] == sk.masks(model).hash()
    assert config["sparsekit"]["layers"]["5"]["kept"] == sk.masks(model)["5"].count()
    assert card.startswith("---\nlicense: other\n") and "| test accuracy | 0.9123 |" in card and "| a\\|b | 3 |" in card
    assert f"| 0 | 8x3x3x3 | {model[0].mask.count()} | {model[0].mask.sparsity:.2%} | unstructured |" in card
    total, free = sum(p.numel() for p in model.parameters()), 8 + 10 + 16
    assert f"{free + sk.masks(model).count():,} of {total:,} remain" in card
    plain = network()
    plain.load_state_dict(load_file(files["model.safetensors"]))
    torch.testing.assert_close(outputs(plain), outputs(model))


def test_the_front_matter_is_yaml(model: nn.Module) -> None:
    yaml = pytest.importorskip("yaml")
    _, front, _ = model_card(model, {}, {}).split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "pytorch" and "No results were given." in model_card(model, {}, {})


def test_config_that_is_no_json(model: nn.Module, tmp_path: Path) -> None:
    for value in (math.nan, object()):
        with pytest.raises(ValueError, match="export: config: expected JSON values"):
            sk.export(model, tmp_path / "hub", "hub", config={"x": value})
    assert list((tmp_path / "hub").iterdir()) == []


def test_the_function_is_the_public_one() -> None:
    assert module_function is sk.export is module.export
