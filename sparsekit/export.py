# SPDX-License-Identifier: Apache-2.0
"""Pruned models for elsewhere: dense safetensors, a torch.export program, ONNX, a folder for a model hub. Each is proven."""

from __future__ import annotations

import copy
import importlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sparsekit.io import unshared
from sparsekit.model_card import config_text, model_card
from sparsekit.nn import dense_state_dict, finalize, masked_layers
from sparsekit.ops import replicas
from sparsekit.ops.masks import choose
from sparsekit.tensor_file import replace_file, replace_text

FORMATS = ("safetensors", "torch-export", "onnx", "hub")
_SUFFIXES = {".safetensors": "safetensors", ".pt2": "torch-export", ".onnx": "onnx"}
# Largest difference from the eager model, as a part of its largest output (at least 1); sums in another order differ.
TOLERANCE = {"torch-export": 1e-5, "onnx": 1e-4}
_PROTOBUF_BYTES = 2**31 - 2**20


@dataclass(frozen=True)
class ExportReport:
    """What ``export`` wrote.

    file_bytes: of everything written. difference: largest absolute difference from the outputs of the eager model over
    ``batches`` (sizes of the batches tried), None for formats that hold no program.
    """

    path: str
    format: str
    file_bytes: int
    difference: float | None
    batches: tuple[int, ...]


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    to: str | None = None,
    *,
    example: Tensor | Sequence[Tensor] | None = None,
    config: Mapping[str, Any] | None = None,
    results: Mapping[str, float] | None = None,
) -> ExportReport:
    """Write a pruned model as a plain one, zeros where the masks are zero, and prove that it gives the same.

    The model is not changed. A file appears under its name only once it has passed its check.

    Args:
        model: sparsified or plain; exported in eval mode, on the CPU.
        path: file, or for "hub" the folder, made if needed.
        to: "safetensors" (loads strictly into the plain model), "torch-export" (a program, .pt2), "onnx" or "hub"
            (config.json, model.safetensors, README.md); by default what the end of ``path`` says.
        example: inputs of the model with at least two entries in dim 0, which stays free in the program; needed for
            "torch-export" and "onnx".
        config: for "hub", JSON values that describe the architecture. results: for "hub", name -> number for the card.

    Raises:
        ValueError: an unknown format, no or a wrong example, a package that is missing. TypeError: no Module, no path.
        RuntimeError: the model cannot be exported, or what was exported gives other outputs.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"export: model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"export: path: expected a str or Path, got {type(path).__name__}")
    model = replicas.plain_network("export", model)
    target, form = Path(path), _format(Path(path), to)
    inputs: tuple[Tensor, ...] = _inputs(example) if form in TOLERANCE else ()
    eager = copy.deepcopy(model).cpu().eval()
    if inputs:
        _try(eager, inputs)
    plain = finalize(copy.deepcopy(eager)) if masked_layers(eager) else eager
    (target if form == "hub" else target.parent).mkdir(parents=True, exist_ok=True)
    if form == "hub":
        return _hub(plain, model, target, dict(config or {}), dict(results or {}))
    if form == "safetensors":
        replace_file(target, lambda file: _tensors(plain, file))
        return ExportReport(str(target), form, target.stat().st_size, None, ())
    assert inputs
    write = {"torch-export": _program, "onnx": _onnx}[form]
    batches = tuple(sorted({1, len(inputs[0]), len(inputs[0]) + 1}))
    difference = 0.0

    def proven(file: str) -> None:
        nonlocal difference
        run = write(plain, inputs, file)
        difference = max(_difference(eager, run, _resized(inputs, n), form) for n in batches)

    replace_file(target, proven)
    return ExportReport(str(target), form, target.stat().st_size, difference, batches)


def _format(target: Path, to: str | None) -> str:
    form = _SUFFIXES.get(target.suffix, target.suffix) if to is None else to
    choose("export", "to", form, FORMATS)
    if form != "hub" and target.is_dir():
        raise ValueError(f"export: path: expected a file for {form}, got the folder {str(target)!r}")
    return form


def _inputs(example: Any) -> tuple[Tensor, ...]:
    inputs = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    if not inputs or not all(isinstance(x, Tensor) and x.ndim and len(x) >= 2 for x in inputs):
        raise ValueError(f"export: example: expected inputs with two or more entries in dim 0, got {_shapes(example)}")
    if len({len(x) for x in inputs}) > 1:
        raise ValueError(f"export: example: expected inputs of one length in dim 0, got {_shapes(inputs)}")
    return tuple(x.detach().cpu() for x in inputs)


def _shapes(example: Any) -> str:
    if isinstance(example, Tensor):
        return f"shape {tuple(example.shape)}"
    if isinstance(example, (tuple, list)) and example and all(isinstance(x, Tensor) for x in example):
        return "shapes " + ", ".join(str(tuple(x.shape)) for x in example)
    return "none" if example is None else type(example).__name__


def _resized(inputs: tuple[Tensor, ...], n: int) -> tuple[Tensor, ...]:
    """The first n entries, beginning anew where there are fewer."""
    return tuple(x[torch.arange(n) % len(x)] for x in inputs)


def _try(eager: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """What is wrong with the example shows here, before anything is traced or written."""
    try:
        with torch.no_grad():
            eager(*inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"export: example: expected inputs that the model takes, got {_shapes(inputs)}: {text}"
        ) from error


def _difference(eager: nn.Module, run: Callable[..., Any], inputs: tuple[Tensor, ...], form: str) -> float:
    """Largest difference of the exported model's outputs from the eager ones. RuntimeError if it is too large."""
    with torch.no_grad():
        expected, got = _flat(eager(*inputs)), _flat(run(*inputs))
    if [x.shape for x in expected] != [x.shape for x in got]:
        shapes = [tuple(x.shape) for x in expected], [tuple(x.shape) for x in got]
        raise RuntimeError(f"export: {form}: expected outputs of shapes {shapes[0]}, got {shapes[1]}")
    worst = 0.0
    for x, y in zip(expected, got, strict=True):
        if not torch.equal(x.isfinite(), y.isfinite()):
            raise RuntimeError(f"export: {form}: expected inf and NaN where the eager model has them, got others")
        a, b = (torch.where(z.isfinite(), z.double(), 0.0) for z in (x, y))
        gap, size = (float(z.abs().max()) if z.numel() else 0.0 for z in (a - b, a))
        allowed = max(TOLERANCE[form], torch.finfo(x.dtype).eps * 8 if x.is_floating_point() else 0.0) * max(size, 1.0)
        if gap > allowed:
            expected_text = f"outputs within {allowed:.2g} of the eager model"
            raise RuntimeError(f"export: {form}: expected {expected_text}, got a difference of {gap:.2g}")
        worst = max(worst, gap)
    return worst


def _flat(output: Any) -> list[Tensor]:
    """The tensors of an output, whatever holds them."""
    return [x for x in tree_leaves(output) if isinstance(x, Tensor)]


def _tensors(plain: nn.Module, file: str | Path) -> None:
    """Every name with a tensor of its own, tied ones too, so that a strict load finds them all."""
    state = {name: x.detach().clone(memory_format=torch.contiguous_format) for name, x in _state(plain).items()}
    _written(state, file, {"format": "pt"})


def _written(state: dict[str, Tensor], file: str | Path, metadata: dict[str, str]) -> None:
    """Write the tensors, then read them back."""
    save_file(state, file, metadata=metadata)
    read = load_file(file)
    if read.keys() != state.keys() or not all(read[k].equal(x) or bool(x.isnan().any()) for k, x in state.items()):
        raise RuntimeError("export: safetensors: expected the values written, got others when reading them back")


def _state(plain: nn.Module) -> dict[str, Tensor]:
    state = dense_state_dict(plain)
    if wrong := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(
            f"export: model: expected a state of tensors, got {type(state[wrong[0]]).__name__} in {wrong[0]!r}"
        )
    return state


def _program(plain: nn.Module, inputs: tuple[Tensor, ...], file: str) -> Callable[..., Any]:
    buffer = io.BytesIO()  # under the temporary name of a file torch would warn that it does not end in .pt2
    torch.export.save(_traced(plain, inputs), buffer)
    Path(file).write_bytes(buffer.getvalue())
    return torch.export.load(io.BytesIO(Path(file).read_bytes())).module()


def _traced(plain: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    # By position, whatever the model calls its inputs.
    return torch.export.export(plain, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs), strict=False)


def _onnx(plain: nn.Module, inputs: tuple[Tensor, ...], file: str) -> Callable[..., Any]:
    for name in ("onnx", "onnxscript"):
        _package(name)
    runtime = _package("onnxruntime")
    if (size := sum(x.nbytes for x in plain.state_dict().values())) > _PROTOBUF_BYTES:
        raise ValueError(f"export: model: expected less than 2 GiB for one ONNX file, got {size / 2**30:.1f} GiB")
    names = [f"input_{i}" if i else "input" for i in range(len(inputs))]
    with redirect_stdout(io.StringIO()):  # the exporter tells its progress there
        program = torch.onnx.export(_traced(plain, inputs), dynamo=True, input_names=names, verbose=False)
        assert program is not None
        program.save(file, external_data=False)
    session = runtime.InferenceSession(Path(file).read_bytes(), providers=["CPUExecutionProvider"])
    wanted = [node.name for node in session.get_inputs()]

    def run(*given: Tensor) -> list[Tensor]:
        outputs = session.run(None, {name: x.numpy() for name, x in zip(wanted, given, strict=True)})
        return [torch.from_numpy(x) for x in outputs]

    return run


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        need = f"expected the package {error.name} for ONNX (pip install 'torch-sparsekit[onnx]'), got none"
        raise ValueError(f"export: to: {need}") from None


def _hub(
    plain: nn.Module, model: nn.Module, folder: Path, config: dict[str, Any], results: dict[str, float]
) -> ExportReport:
    texts = {"config.json": config_text(model, config), "README.md": model_card(model, config, results)}
    for name, text in texts.items():
        replace_text(folder / name, text)
    tensors, ties = unshared("export", _state(plain))
    # Tied weights once each, as the hub's loaders have it; their other names are metadata.
    replace_file(folder / "model.safetensors", lambda file: _written(tensors, file, {"format": "pt", **ties}))
    total = sum((folder / name).stat().st_size for name in (*texts, "model.safetensors"))
    return ExportReport(str(folder), "hub", total, None, ())
