# SPDX-License-Identifier: Apache-2.0
"""Pruned models for elsewhere: dense safetensors, a program, ONNX, a folder for a hub, a smaller model. Each is proven."""

from __future__ import annotations

import copy
import importlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsekit.compact import compacted
from sparsekit.compact_file import SIDECAR, load_compact, save_compact
from sparsekit.compact_report import CompactReport
from sparsekit.export_proof import TOLERANCE, batches_of, checked_inputs, largest_difference, try_out
from sparsekit.io import FILE, unshared
from sparsekit.model_card import config_text, model_card
from sparsekit.nn import dense_state_dict, finalize, masked_layers
from sparsekit.ops import replicas
from sparsekit.ops.masks import choose
from sparsekit.tensor_file import replace_file, replace_text

FORMATS = ("safetensors", "torch-export", "onnx", "hub", "compact")
_FOLDERS = ("hub", "compact")
_SUFFIXES = {".safetensors": "safetensors", ".pt2": "torch-export", ".onnx": "onnx"}
_PROTOBUF_BYTES = 2**31 - 2**20


@dataclass(frozen=True)
class ExportReport:
    """What ``export`` wrote.

    file_bytes: of everything written. difference: largest absolute difference from the outputs of the eager model over
    ``batches`` (sizes of the batches tried), None for formats that hold no program. compact: for "compact", what was removed.
    """

    path: str
    format: str
    file_bytes: int
    difference: float | None
    batches: tuple[int, ...]
    compact: CompactReport | None = None


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    to: str | None = None,
    *,
    example: Tensor | Sequence[Tensor] | None = None,
    config: Mapping[str, Any] | None = None,
    results: Mapping[str, float] | None = None,
    silence_batchnorm: bool = False,
) -> ExportReport:
    """Write a pruned model as a plain one, zeros where the masks are zero, and prove that it gives the same.

    The model is not changed. A file appears under its name only once it has passed its check.

    Args:
        model: sparsified or plain; exported in eval mode, on the CPU.
        path: file, or for "hub" and "compact" the folder, made if needed.
        to: "safetensors" (loads strictly into the plain model), "torch-export" (a program, .pt2), "onnx", "hub"
            (config.json, model.safetensors, README.md) or "compact" (what ``compact`` leaves, for ``load_compact``); by
            default what the end of ``path`` says.
        example: inputs of the model with at least two entries in dim 0, which stays free in the program; needed for
            "torch-export", "onnx" and "compact".
        config: for "hub", JSON values that describe the architecture. results: for "hub", name -> number for the card.
        silence_batchnorm: for "compact", as of ``compact``; outputs are then compared with those of the silenced model.

    Raises:
        ValueError: an unknown format, no or a wrong example, a package that is missing, a model without a trace.
        TypeError: no Module, no path, no bool. RuntimeError: the model cannot be exported, or it gives other outputs then.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"export: model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"export: path: expected a str or Path, got {type(path).__name__}")
    model = replicas.plain_network("export", model)
    target, form = Path(path), _format(Path(path), to)
    _check_silence(silence_batchnorm, form)
    inputs: tuple[Tensor, ...] = checked_inputs(example) if form in TOLERANCE else ()
    eager = copy.deepcopy(model).cpu().eval()
    if inputs:
        try_out(eager, inputs)
    if form == "compact":
        return _compact(eager, inputs, target, silence_batchnorm)
    plain = finalize(copy.deepcopy(eager)) if masked_layers(eager) else eager
    (target if form == "hub" else target.parent).mkdir(parents=True, exist_ok=True)
    if form == "hub":
        return _hub(plain, model, target, dict(config or {}), dict(results or {}))
    if form == "safetensors":
        replace_file(target, lambda file: _tensors(plain, file))
        return ExportReport(str(target), form, target.stat().st_size, None, ())
    assert inputs
    write = {"torch-export": _program, "onnx": _onnx}[form]
    difference = 0.0

    def proven(file: str) -> None:
        nonlocal difference
        difference = largest_difference(eager, write(plain, inputs, file), inputs, form)

    replace_file(target, proven)
    return ExportReport(str(target), form, target.stat().st_size, difference, batches_of(inputs))


def _format(target: Path, to: str | None) -> str:
    form = _SUFFIXES.get(target.suffix, target.suffix) if to is None else to
    choose("export", "to", form, FORMATS)
    if form not in _FOLDERS and target.is_dir():
        raise ValueError(f"export: path: expected a file for {form}, got the folder {str(target)!r}")
    if form in _FOLDERS and target.exists() and not target.is_dir():
        raise ValueError(f"export: path: expected a folder for {form}, got the file {str(target)!r}")
    return form


def _check_silence(silence: Any, form: str) -> None:
    if not isinstance(silence, bool):
        raise TypeError(f"export: silence_batchnorm: expected a bool, got {type(silence).__name__}")
    if silence and form != "compact":
        raise ValueError(f"export: silence_batchnorm: expected False for {form}, got True")


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


def _compact(eager: nn.Module, inputs: tuple[Tensor, ...], folder: Path, silence: bool) -> ExportReport:
    """The smaller model, proven by what is read of it elsewhere before anything of it is at its place."""
    small, report = compacted("export", eager, inputs, silence)
    _state(small)
    masked = report.models[0]
    with TemporaryDirectory() as elsewhere:
        run = load_compact(masked, save_compact(small, elsewhere))
        difference = largest_difference(masked.eval(), run.eval(), inputs, "compact")
    save_compact(small, folder)
    total = sum((folder / name).stat().st_size for name in (FILE, SIDECAR))
    return ExportReport(str(folder), "compact", total, difference, batches_of(inputs), report)


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
