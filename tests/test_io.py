# SPDX-License-Identifier: Apache-2.0
"""save and load: bit-exact round trips, atomic writes, and files from anywhere refused by one ValueError."""

from __future__ import annotations

import ast
import copy
import json
import os
import stat
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import sparsekit as sk
from sparsekit import io, tensor_file

X = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(1))
PAIRS = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Net(nn.Module):
    """A tied pair, a layer under two names, a norm, a buffer and a layer that is skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.first = nn.Linear(64, 8)
        self.again = self.first
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight = self.one.weight
        self.head = nn.Linear(8, 3)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.norm(self.conv(x)).relu().flatten(1)).relu()
        return self.head(self.two(self.one(x))) * self.scale


def plain(seed: int = 0, dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(seed)
    model = Net()
    with torch.no_grad():
        model.norm.running_mean.normal_()
    return model.to(dtype).eval()


def masked(seed: int = 0, dtype: torch.dtype = torch.float32) -> Net:
    model = plain(seed, dtype)
    sk.sparsify(model, skip=["head"])
    sk.set_masks(model, {n: sk.Mask.from_dense(torch.rand(m.shape) < 0.4) for n, m in sk.masks(model).items()})
    return model


def state_of(model: nn.Module) -> dict[str, Any]:
    return copy.deepcopy(dict(model.state_dict()))


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


def rewrite(path: Path, change: Any = None, metadata: Any = None) -> Path:
    """A changed copy of a checkpoint: ``change`` edits the dict of tensors, ``metadata`` replaces that of the file."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    with safe_open(file, framework="pt") as content:
        description = json.loads(content.metadata()["sparsity.json"])
    description["sha256"] = None
    kept = {"sparsity.json": json.dumps(description)}
    if change is not None:
        change(tensors)
    other = path.parent / f"{path.name}-changed.safetensors"
    save_file(tensors, other, metadata=kept if metadata is None else metadata)
    return other


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return sk.save(masked(), tmp_path / "run")


# Round trips


@pytest.mark.parametrize("target", [plain, masked])
@pytest.mark.parametrize("dtype", PAIRS.values(), ids=PAIRS)
def test_round_trip(tmp_path: Path, dtype: torch.dtype, target: Any) -> None:
    model = masked(0, dtype)
    folder = sk.save(model, tmp_path / "a" / "b")
    assert folder == tmp_path / "a" / "b"
    other = target(7, dtype)
    parameters = {name: id(p) for name, p in other.named_parameters()}
    assert sk.load(other, folder) is other
    assert equal(state_of(other), state_of(model)) and sk.masks(other) == sk.masks(model)
    assert {name: id(p) for name, p in other.named_parameters()} == parameters
    assert torch.equal(other(X.to(dtype)), model(X.to(dtype)))
    assert type(other.head) is nn.Linear and isinstance(other.first, sk.MaskedLinear)
    assert sk.masks(sk.load(target(8, dtype), folder / "model.safetensors")) == sk.masks(model)


def test_what_is_on_disk(saved: Path) -> None:
    assert sorted(p.name for p in saved.iterdir()) == ["model.safetensors", "sparsity.json"]
    facts = json.loads((saved / "sparsity.json").read_text())
    model = masked()
    assert (facts["format"], facts["version"], facts["sparsity"]) == ("sparsekit", 1, sk.masks(model).sparsity)
    assert list(facts["layers"]) == list(sk.masks(model))
    assert facts["layers"]["conv"] == {"shape": [4, 2, 3, 3], "kept": sk.masks(model)["conv"].count()}
    with safe_open(saved / "model.safetensors", framework="pt") as content:
        assert json.loads(content.metadata()["sparsity.json"]) == facts
        assert content.get_tensor("conv.mask_words").dtype == torch.int32
        names = set(content.keys())
    # Tied and doubly registered tensors are stored once.
    assert "two.weight" not in names and not any(name.startswith("again.") for name in names)
    assert facts["ties"]["two.weight"] == "one.weight" and facts["ties"]["again.mask_words"] == "first.mask_words"
    (saved / "sparsity.json").unlink()  # it is for people
    assert sk.masks(sk.load(plain(1), saved)) == sk.masks(model)


def test_ties_stay_ties(saved: Path) -> None:
    model = sk.load(plain(1), saved)
    assert model.two.weight is model.one.weight and model.again is model.first
    assert model.two.mask == model.one.mask == masked().one.mask


def test_a_stored_tie_fills_an_untied_model(saved: Path) -> None:
    model = plain(1)
    model.two.weight = nn.Parameter(torch.zeros(8, 8))
    sk.load(model, saved)
    assert torch.equal(model.two.weight, model.one.weight) and model.two.mask == model.one.mask


def test_a_weight_and_its_transpose_share_memory_but_not_values(tmp_path: Path) -> None:
    def build() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = nn.Parameter(model[0].weight.detach().t())
        return model

    torch.manual_seed(0)
    model = build()
    sk.sparsify(model)
    other = sk.load(build(), sk.save(model, tmp_path))
    assert equal(state_of(other), state_of(model)) and not torch.equal(other[1].weight, other[0].weight)


def test_views_do_not_drag_their_storage_along(tmp_path: Path) -> None:
    model = nn.Linear(4, 4, bias=False)
    model.weight = nn.Parameter(torch.randn(1000, 8)[:4, ::2])
    sk.sparsify(model)
    folder = sk.save(model, tmp_path)
    assert (folder / "model.safetensors").stat().st_size < 2000
    assert torch.equal(sk.load(nn.Linear(4, 4, bias=False), folder).weight, model.weight)


def test_channels_last_on_either_side(tmp_path: Path) -> None:
    model = masked()
    model.conv.to(memory_format=torch.channels_last)
    folder = sk.save(model, tmp_path)
    other = plain(1).to(memory_format=torch.channels_last)
    sk.load(other, folder)
    assert equal(state_of(other), state_of(model)) and other.conv.mask == model.conv.mask
    assert other.conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_model_may_be_a_single_layer(tmp_path: Path) -> None:
    layer = nn.Linear(5, 3)
    sk.sparsify(layer)
    layer.mask = sk.Mask.from_dense(torch.eye(3, 5) > 0)
    other = sk.load(nn.Linear(5, 3), sk.save(layer, tmp_path))
    assert isinstance(other, sk.MaskedLinear) and equal(state_of(other), state_of(layer))


def test_names_with_the_signs_of_globs(tmp_path: Path) -> None:
    def build() -> nn.ModuleDict:
        return nn.ModuleDict({"a[0]": nn.Linear(2, 2), "a*": nn.Linear(2, 2), "ab": nn.Linear(2, 2)})

    model = build()
    sk.sparsify(model, skip=["ab"])
    other = sk.load(build(), sk.save(model, tmp_path))
    assert sorted(sk.masks(other)) == ["a*", "a[0]"] and type(other["ab"]) is nn.Linear


# Where the masks come from


def zeros_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: layer.weight.detach() != 0 for name, layer in sk.masked_layers(model).items()}


@pytest.fixture
def dense_file(tmp_path: Path) -> Path:
    """A plain state_dict of Net with zeros in it, written by somebody else."""
    file = tmp_path / "dense.safetensors"
    state = sk.dense_state_dict(masked())
    save_file({name: value.clone() for name, value in state.items()}, file)
    return file


@pytest.mark.parametrize("target, count", [(masked, 3), (plain, "all")])
def test_no_masks_is_an_error_that_names_the_ways_out(dense_file: Path, target: Any, count: Any) -> None:
    model = target()
    before = state_of(model)
    with pytest.raises(ValueError) as caught:
        sk.load(model, dense_file)
    assert str(caught.value) == (
        f"Checkpoint has no masks for {count} sparse layers; pass `masks='infer'` to take zeros as masks, or `masks='dense'` "
        f"(in {str(dense_file)!r})"
    )
    assert equal(state_of(model), before)


def test_masks_dense_and_infer(dense_file: Path) -> None:
    stored = load_file(dense_file)
    model = sk.load(masked(3), dense_file, masks="dense")
    assert sk.masks(model).sparsity == 0 and list(sk.masks(model)) == ["conv", "first", "one"]
    assert all(torch.equal(value, stored[name]) for name, value in sk.dense_state_dict(model).items())
    model = sk.load(masked(3), dense_file, masks="infer")
    assert sk.masks(model) == sk.masks(masked()) and sk.masks(model).sparsity > 0.5
    model = sk.load(plain(3), dense_file, masks="infer")
    assert list(sk.masks(model)) == ["conv", "first", "one", "head"]
    assert all(torch.equal(mask.dense(), zeros_of(model)[name]) for name, mask in sk.masks(model).items())
    assert sk.masks(sk.load(plain(3), dense_file, masks="dense")).sparsity == 0


@pytest.mark.parametrize("source", ["dense", "infer"])
def test_what_a_checkpoint_pruned_never_comes_back(saved: Path, source: str) -> None:
    model, original = sk.load(plain(2), saved, masks=source), masked()
    assert torch.equal(model.conv.masked_weight(), original.conv.masked_weight())
    assert (sk.masks(model).sparsity == 0) == (source == "dense")


def test_masks_of_some_layers_only_are_not_taken_for_all(tmp_path: Path) -> None:
    part = plain()
    sk.sparsify(part, only=["conv"])
    folder = sk.save(part, tmp_path)
    model = masked(4)
    before = state_of(model)
    with pytest.raises(ValueError, match="Checkpoint has no masks for 2 sparse layers; pass"):
        sk.load(model, folder)
    assert equal(state_of(model), before)
    assert list(sk.masks(sk.load(plain(4), folder))) == ["conv"]


# Atomic writes


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["save_file", "fsync", "replace"])
def test_a_failed_save_leaves_the_old_checkpoint(
    saved: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}

    def fail(*args: Any, **kwargs: Any) -> None:
        if where == "save_file":
            Path(args[1]).write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(tensor_file if where == "save_file" else os, where, fail)
        with pytest.raises(type(error)):
            sk.save(masked(5), saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert sk.masks(sk.load(plain(1), saved)) == sk.masks(masked())


def test_a_save_killed_between_its_files_is_the_new_checkpoint(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tensor_file.replace_file

    def first_only(target: Path, write: Any) -> None:
        if target.name == "sparsity.json":
            raise KeyboardInterrupt
        real(target, write)

    monkeypatch.setattr(tensor_file, "replace_file", first_only)
    with pytest.raises(KeyboardInterrupt):
        sk.save(masked(5), saved)
    assert sk.masks(sk.load(plain(1), saved)) == sk.masks(masked(5))


def test_saving_over_a_checkpoint_replaces_it(saved: Path) -> None:
    sk.save(masked(5), saved)
    assert equal(state_of(sk.load(plain(1), saved)), state_of(masked(5)))
    assert sorted(p.name for p in saved.iterdir()) == ["model.safetensors", "sparsity.json"]


def test_files_get_the_usual_permissions(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        folder = sk.save(masked(), tmp_path / "run")
        assert {stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {0o640}
        (folder / "model.safetensors").chmod(0o604)
        sk.save(masked(), folder)
    finally:
        os.umask(umask)
    assert stat.S_IMODE((folder / "model.safetensors").stat().st_mode) == 0o604
    assert stat.S_IMODE((folder / "sparsity.json").stat().st_mode) == 0o640


def test_nothing_is_unpickled() -> None:
    tree = ast.parse(Path(io.__file__).read_text())
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    assert not {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"} & {name.split(".")[0] for name in imported}
    calls = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    assert not {"torch.load", "torch.save", "eval", "exec"} & calls


# What cannot be saved


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def get_extra_state(self) -> dict[str, int]:
        return {"epoch": 3}

    def set_extra_state(self, state: Any) -> None:
        pass


def sparsified(model: nn.Module, **rules: Any) -> nn.Module:
    sk.sparsify(model, **rules)
    return model


@pytest.mark.parametrize(
    "build, error, message",
    [
        (lambda: plain(), ValueError, "save: model: expected masked layers, got none; call sparsify first"),
        (lambda: sparsified(Stateful()), ValueError, "expected a state of tensors, got dict in '_extra_state'"),
        (
            lambda: sparsified(nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3))),
            ValueError,
            "expected a state of tensors, got a tensor without data in '1.weight'",
        ),
        (lambda: sparsified(nn.Linear(2, 2)).to("meta"), ValueError, "got a tensor without data in 'weight'"),
        (lambda: {"weight": torch.ones(2)}, TypeError, "save: model: expected a torch.nn.Module, got dict"),
    ],
)
def test_what_cannot_be_saved_is_named_and_leaves_no_file(tmp_path, build, error, message) -> None:
    with pytest.raises(error, match=message):
        sk.save(build(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Files from anywhere


def refuses(model: nn.Module, path: Path, message: str, **arguments: Any) -> None:
    """One ValueError, and the model as it was: values, classes and masks."""
    before, kinds = state_of(model), [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match=message):
        sk.load(model, path, **arguments)
    assert equal(state_of(model), before) and [type(m) for m in model.modules()] == kinds


@pytest.mark.parametrize("target", [plain, masked])
def test_broken_files(saved: Path, target: Any) -> None:
    file = saved / "model.safetensors"
    good = file.read_bytes()
    header = struct.unpack("<Q", good[:8])[0]
    broken = {
        "cut": good[:-10],
        "cut in the header": good[: 8 + header // 2],
        "only the length": good[:8],
        "empty": b"",
        "huge header": struct.pack("<Q", 2**62) + good[8:],
        "not utf-8": good[:8] + b"\xff" * header + good[8 + header :],
        "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94.",
        "zip": b"PK\x03\x04" + bytes(60),
        "text": b"weights",
    }
    for content in broken.values():
        file.write_bytes(content)
        refuses(target(), saved, "load: path: expected a readable safetensors file, got")


def test_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "none", tmp_path / "empty", "none at all"):
        refuses(plain(), path, "load: path: expected a directory with model.safetensors or a safetensors file, got")


def small(masked: bool = False) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 2))
    if masked:
        sk.sparsify(model)
        model[0].mask = sk.Mask.from_dense(torch.eye(2, 3) > 0)
    return model


@pytest.mark.parametrize("kind", ["model", "checkpoint"])
def test_a_flipped_bit_is_seen_wherever_it_is(tmp_path: Path, kind: str) -> None:
    """The names of keys included, on which it depends that there is a check at all."""
    if kind == "model":
        file = sk.save(small(masked=True), tmp_path) / "model.safetensors"
    else:
        file = sk.save_checkpoint(tmp_path / "run.safetensors", model=small(masked=True))
    good, model = file.read_bytes(), small(masked=True)
    header = 8 + struct.unpack("<Q", good[:8])[0]
    for place in (*range(header), *range(header, len(good), 1 + (len(good) - header) // 50)):
        bit = (1, 4, 32)[place % 3]
        file.write_bytes(good[:place] + bytes([good[place] ^ bit]) + good[place + 1 :])
        with pytest.raises(ValueError):
            if kind == "model":
                sk.load(model, file)
            else:
                sk.load_checkpoint(file, model=model, rng=False)
            pytest.fail(f"{file.read_bytes()[max(0, place - 20) : place + 20]!r}")


def test_a_description_under_a_damaged_key_is_damage_whatever_is_asked_for(saved: Path) -> None:
    with safe_open(saved / "model.safetensors", framework="pt") as content:
        text = content.metadata()["sparsity.json"]
    file = rewrite(saved, metadata={"sparsity.jsoo": text})
    for source in ("stored", "dense", "infer"):
        refuses(plain(), file, "expected the description under 'sparsity.json', got it under", masks=source)
    with pytest.raises(ValueError, match="damaged"):
        sk.inspect(file)


DESCRIBED = {"format": "sparsekit", "version": 1, "ties": {}, "sha256": None}


@pytest.mark.parametrize(
    "text, message",
    [
        ("{not json", "expected JSON in the metadata 'sparsity.json', got"),
        ("", "expected JSON in the metadata"),
        ("[" * 100_000, "expected JSON in the metadata"),
        ("null", "expected a JSON object in 'sparsity.json', got NoneType"),
        ("[1, 2]", "expected a JSON object in 'sparsity.json', got list"),
        ('"version"', "expected a JSON object in 'sparsity.json', got str"),
        ("{}", "expected a description with 'sha256', got a damaged one"),
        (json.dumps(DESCRIBED | {"sha256": 0}), "expected the content that was saved, got a damaged one"),
        (json.dumps(DESCRIBED | {"sha256": ""}), "expected the content that was saved, got a damaged one"),
        (json.dumps(DESCRIBED | {"version": 2}), "expected format version <= 1, got 2"),
        (json.dumps(DESCRIBED | {"version": 10**30}), "expected format version <= 1, got 1"),
        (json.dumps(DESCRIBED | {"version": "1"}), "expected format version <= 1, got '1'"),
        (json.dumps(DESCRIBED | {"version": None}), "expected format version <= 1, got None"),
        (json.dumps(DESCRIBED | {"version": [1]}), r"expected format version <= 1, got \[1\]"),
        (json.dumps(DESCRIBED | {"version": True}), "expected format version <= 1, got True"),
        (json.dumps(DESCRIBED | {"version": 0}), "expected format version <= 1, got 0"),
        (json.dumps(DESCRIBED | {"ties": ["conv.weight"]}), "expected ties of name to name"),
        (json.dumps(DESCRIBED | {"ties": {"a": 1}}), "expected ties of name to name"),
        (json.dumps(DESCRIBED | {"ties": {"a": {"b": "c"}}}), "expected ties of name to name"),
        (json.dumps(DESCRIBED | {"ties": None}), "expected ties of name to name"),
        (
            json.dumps(DESCRIBED | {"ties": {"a.weight": "nowhere"}}),
            "expected ties of stored tensors, got 'a.weight' tied",
        ),
        (
            json.dumps(DESCRIBED | {"ties": {"conv.weight": "conv.bias"}}),
            "expected ties of stored tensors, got 'conv.weight'",
        ),
    ],
)
def test_hostile_descriptions(saved: Path, text: str, message: str) -> None:
    refuses(plain(), rewrite(saved, metadata={"sparsity.json": text}), f"load: path: {message}")


def test_what_a_description_may_lack(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    sk.sparsify(model)
    folder = sk.save(model, tmp_path / "run")
    texts = '{"sha256": null}', '{"layers": 3, "sparsity": "x", "sha256": null}'
    for metadata in ({}, {"other": "x"}, {"other": '["format"]'}, *({"sparsity.json": text} for text in texts)):
        other = sk.load(nn.Sequential(nn.Linear(3, 2)), rewrite(folder, metadata=metadata))
        assert equal(state_of(other), state_of(model))


def drop(name: str) -> Any:
    return lambda tensors: tensors.pop(name)


def put(name: str, value: Tensor) -> Any:
    return lambda tensors: tensors.update({name: value})


WORDS = torch.zeros(8, 2, dtype=torch.int32)


@pytest.mark.parametrize("target", [plain, masked])
@pytest.mark.parametrize(
    "change, message",
    [
        (drop("conv.bias"), "load: path: expected the model's keys, got missing conv.bias"),
        (put("extra.weight", torch.ones(2)), "load: path: expected the model's keys, got unknown extra.weight"),
        (put("conv.bias", torch.ones(5)), r"load: conv.bias: expected shape \(4,\), got \(5,\)"),
        (put("first.weight", torch.ones(64, 8)), r"load: first.weight: expected shape \(8, 64\), got \(64, 8\)"),
        (
            put("conv.bias", torch.ones(4, dtype=torch.complex64)),
            "load: conv.bias: expected dtype torch.float32 or alike",
        ),
        (put("norm.num_batches_tracked", torch.tensor(0.5)), "norm.num_batches_tracked: expected dtype torch.int64"),
        (put("first.mask_words", WORDS.long()), r"load: masks\['first'\]: Mask: words: expected dtype torch.int32"),
        (
            put("first.mask_words", WORDS[:, 0:1].clone()),
            r"load: masks\['first'\]: Mask: words: expected shape \(8, 2\)",
        ),
        (put("first.mask_words", WORDS.flatten()), r"load: masks\['first'\]: Mask: words: expected shape \(8, 2\)"),
        (put("one.mask_words", WORDS[:, :1] + 256), r"load: masks\['one'\]: expected zero padding bits, got set ones"),
        (
            put("norm.mask_words", WORDS[0:1, 0:1].clone()),
            "expected masks of layers that can be masked, got one for 'norm'",
        ),
        (put("nowhere.mask_words", WORDS), "load: path: expected masks of the model's layers, got one for 'nowhere'"),
        (put("mask_words", WORDS), "load: path: expected masks of the model's layers, got one for ''"),
    ],
)
def test_tensors_that_do_not_fit(saved: Path, change: Any, message: str, target: Any) -> None:
    refuses(target(3), rewrite(saved, change), message)


def test_a_mask_that_no_layer_of_the_model_can_have(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    sk.sparsify(model)
    folder = sk.save(model, tmp_path)

    class Special(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(2 * input)

    refuses(nn.Sequential(Special(3, 3)), folder, "expected masks of layers that can be masked, got one for '0'")


def test_lazy_models_are_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    sk.sparsify(model)
    lazy = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(
        ValueError, match="load: 0.bias: .*|load: 0.weight: expected an initialised parameter, got a lazy one"
    ):
        sk.load(lazy, sk.save(model, tmp_path))


def test_arguments_of_load(saved: Path) -> None:
    refuses(plain(), saved, "load: masks: expected one of stored, dense, infer, got 'guess'", masks="guess")
    with pytest.raises(TypeError, match="load: model: expected a torch.nn.Module, got str"):
        sk.load("model", saved)


def test_foreign_safetensors(tmp_path: Path) -> None:
    file = tmp_path / "theirs.safetensors"
    save_file({"embedding": torch.ones(2, 3)}, file)
    refuses(plain(), file, "expected the model's keys, got missing again.bias", masks="dense")
    refuses(plain(), file, "Checkpoint has no masks for all sparse layers")
