# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of runs: what goes in comes out bit by bit; full disks and hostile files change nothing."""

from __future__ import annotations

import copy
import errno
import json
import math
import os
import pickle
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import sparsekit as sk
from sparsekit import tensor_file
from sparsekit.state_tree import DTYPES, decode, encode, parse_json

KEY = "training.json"


def same(a: Any, b: Any) -> bool:
    """Equal in type, order and bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, dict):
        return [*a] == [*b] and [*map(type, a)] == [*map(type, b)] and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def bits(value: Tensor) -> bytes:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""


def there_and_back(state: Any) -> Any:
    node, tensors = encode(state)
    return decode(parse_json(json.dumps(node)), tensors)


QUIET_NAN = struct.unpack(">d", bytes.fromhex("7ff8000000abcdef"))[0]
STATES = {
    "plain": [None, True, False, 0, -1, 2**80, "", "text", "\ud800 \U0001f600 \x00", b"", b"\x00\xff", [], (), {}],
    "floats": [
        0.0,
        -0.0,
        0.1,
        1e-320,
        5e-324,
        1.7976931348623157e308,
        math.inf,
        -math.inf,
        math.nan,
        -math.nan,
        QUIET_NAN,
    ],
    "keys": {"a": 1, 1: 2, 2.5: 3, None: 4, (1, "b"): 5, "c": {0: {1: [(), {}]}}},
    "bool and number": [{True: 1}, {1: 1}, {1.0: 1}],
    "kinds of object": [{"tensor": 1}, {"map": {"tensor": 2}}, {"float": "x"}, {"dict": []}, {"a.b": 1, "a": {"b": 2}}],
    "depth": [[[[[[[[[[(((((({"x": {"y": {"z": (1,)}}},),),),),),)]]]]]]]]]],
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_plain_values(state: Any) -> None:
    assert same(there_and_back(state), state)


@pytest.mark.parametrize("dtype", sorted(DTYPES, key=str), ids=str)
def test_tensors_of_every_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    numbers = torch.tensor([[0, 1, 1], [0, 1, 0]]).to(dtype)
    state = {"a": numbers, "b": [numbers.T, numbers[:, 1:], numbers[0, 0], torch.empty(0, 3, dtype=dtype)]}
    sk.save_checkpoint(tmp_path / "c", state=state)
    assert same(sk.load_checkpoint(tmp_path / "c")["state"], state)


def test_names_that_collide() -> None:
    state = {
        "a.b": torch.ones(1),
        "a": {"b": torch.zeros(1)},
        "__metadata__": torch.ones(2),
        "": torch.ones(3),
        "\ud800": torch.ones(4),
    }
    node, tensors = encode(state)
    assert len(tensors) == 5 and same(decode(node, tensors), state)


def test_tensors_that_share_memory_are_stored_once() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    _, tensors = encode({"a": x, "b": x, "c": x.view(2, 3), "t": x.T, "row": x[0]})
    assert sorted(tensors) == ["a", "row", "t"]
    # A temporary tensor is gone before the next one takes its memory.
    assert len(encode({str(i): torch.full((2,), float(i)) for i in range(50)})[1]) == 50


class Run:
    """A pruner, an optimizer and a scheduler in the middle of a run."""

    def __init__(self, seed: int = 0, steps: int = 2) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(5, 33), nn.ReLU(), nn.Dropout(0.1), nn.Linear(33, 3))
        sk.sparsify(self.model)
        lower = torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9)
        self.pruner = sk.BiP(self.model, self.loss, 0.6, steps=6, lower=lower)
        self.mine = nn.Parameter(torch.randn(4))
        self.optimizer = torch.optim.AdamW([self.mine], 0.1)
        for _ in range(steps):
            self.step()

    @staticmethod
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return F.cross_entropy(model(batch), torch.arange(len(batch)) % 3)

    def step(self) -> None:
        self.pruner.step(iter([torch.randn(6, 5), torch.randn(6, 5)]))
        (self.mine * torch.rand(4)).sum().backward()
        self.optimizer.step()

    @property
    def objects(self) -> dict[str, Any]:
        return {"model": self.model, "pruner": self.pruner, "optimizer": self.optimizer}

    def state(self) -> Any:
        return copy.deepcopy([value.state_dict() for value in self.objects.values()])

    def generators(self) -> Any:
        return torch.get_rng_state().clone(), random.getstate(), np.random.get_state()[1].tolist()  # pyright: ignore


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return sk.save_checkpoint(tmp_path / "run.safetensors", **Run().objects, epoch=3, seen=(1, 2.5))


def test_what_comes_back(file: Path) -> None:
    run = Run(steps=3)
    sk.save_checkpoint(
        file, **run.objects, epoch=4, rates=[math.inf, 0.1], sampler=torch.optim.SGD([torch.ones(1)], 0.1)
    )
    state, generators = run.state(), run.generators()
    other = Run(seed=1, steps=0)
    random.seed(0), np.random.seed(0)
    rest = sk.load_checkpoint(file, **other.objects)
    assert same(other.state(), state) and same(list(other.generators()), list(generators))
    assert list(rest) == ["epoch", "rates", "sampler"] and same(rest["rates"], [math.inf, 0.1])
    assert rest["sampler"]["param_groups"][0]["lr"] == 0.1


def test_part_of_it(file: Path) -> None:
    run, before = Run(seed=1), torch.get_rng_state()
    rest = sk.load_checkpoint(file, model=run.model, rng=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(rest) == ["pruner", "optimizer", "epoch", "seen"] and same(rest["seen"], (1, 2.5))
    assert list(sk.load_checkpoint(file)) == ["model", "pruner", "optimizer", "epoch", "seen"]


# Disks


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


def saves(folder: Path, run: Run) -> list[Callable[[], Any]]:
    return [
        lambda: sk.save_checkpoint(folder / "run.safetensors", **run.objects),
        lambda: sk.save(run.model, folder),
        lambda: sk.export(run.model, folder / "plain.safetensors"),
    ]


@pytest.mark.parametrize("which", [0, 1, 2], ids=["checkpoint", "model", "export"])
def test_a_full_disk(tmp_path: Path, which: int) -> None:
    save = saves(tmp_path, Run())[which]
    save()
    before, change = listing(tmp_path), saves(tmp_path, Run(seed=1))[which]
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    for size in (0, 1, 100, 1000):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(OSError, match="expected a file that can be written, got"):
                change()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert listing(tmp_path) == before
    change()
    assert listing(tmp_path) != before


@pytest.mark.parametrize("which", [0, 1], ids=["checkpoint", "model"])
@pytest.mark.parametrize("where", ["mkdtemp", "fsync", "replace", "save_file"])
def test_errors_while_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int, where: str) -> None:
    saves(tmp_path, Run())[which]()
    before, change = listing(tmp_path), saves(tmp_path, Run(seed=1))[which]

    def fail(*args: Any, **kwargs: Any) -> None:
        if where == "save_file":
            Path(args[1]).write_bytes(b"half")
        raise OSError(errno.EROFS, "Read-only file system")

    owner: Any = {"mkdtemp": tensor_file.tempfile, "save_file": tensor_file}.get(where, os)
    with monkeypatch.context() as patch:
        patch.setattr(owner, where, fail)
        with pytest.raises(OSError, match="Read-only"):
            change()
    assert listing(tmp_path) == before


READ_ONLY = """
import os, sys
import torch
import sparsekit as sk

folder = sys.argv[1]
model = torch.nn.Linear(3, 2)
sk.sparsify(model)
works = [
    lambda: sk.save_checkpoint(f"{folder}/run.safetensors", model=model),
    lambda: sk.save(model, folder),
    lambda: sk.export(model, f"{folder}/plain.safetensors"),
]
for work in works:
    work()
before = {entry.name: open(entry, "rb").read() for entry in os.scandir(folder)}
os.chmod(folder, 0o555)
if os.geteuid() == 0:  # nothing is read-only to root
    os.setgid(65534)
    os.setuid(65534)
with torch.no_grad():
    model.bias.add_(1)
for work in works:
    try:
        work()
    except PermissionError as error:
        print(error.filename)
assert before == {entry.name: open(entry, "rb").read() for entry in os.scandir(folder)}
"""


def test_a_read_only_folder() -> None:
    # Not under tmp_path, which only its owner may enter.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        try:
            command = [sys.executable, "-c", READ_ONLY, folder]
            done = subprocess.run(command, timeout=120, capture_output=True, text=True)
        finally:
            Path(folder).chmod(0o755)
    names = [line.removeprefix(f"{folder}/.").split(".")[0] for line in done.stdout.splitlines()]
    assert done.returncode == 0 and names == ["run", "model", "plain"], done


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
import sparsekit as sk
from sparsekit import tensor_file

def half(tensors, target, metadata):
    Path(target).with_name(".tmp123").write_bytes(b"half")  # safetensors has a temporary file of its own
    Path(target).write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

model = torch.nn.Linear(3, 2)
sk.sparsify(model)
tensor_file.save_file = half
sk.save(model, sys.argv[1]) if sys.argv[2] == "model" else sk.save_checkpoint(sys.argv[1] + "/run.safetensors", a=1)
"""


@pytest.mark.parametrize("which", [0, 1], ids=["checkpoint", "model"])
def test_the_next_save_removes_what_a_killed_one_left(tmp_path: Path, which: int) -> None:
    save = saves(tmp_path, Run())[which]
    save()
    before = listing(tmp_path)
    command = [sys.executable, "-c", KILLED, str(tmp_path), ("checkpoint", "model")[which]]
    assert subprocess.run(command, timeout=120, capture_output=True).returncode == -signal.SIGKILL
    assert {name: listing(tmp_path)[name] for name in before} == before
    assert len(listing(tmp_path)) == len(before) + 3
    save()
    assert set(listing(tmp_path)) == set(before)


def test_what_a_killed_writer_leaves_is_removed_and_what_is_being_written_is_not(file: Path) -> None:
    for name in (".run.safetensors.abc.partial", ".other.safetensors.abc.partial"):
        (file.parent / name).mkdir()
        (file.parent / name / "file").write_bytes(b"half")

    def write(target: str) -> None:
        Path(target).write_bytes(b"half")
        os.replace(target, f"{target}.tmp")  # as safetensors does, which would take a lock on the file along
        tensor_file.remove_partial(file)
        os.replace(f"{target}.tmp", target)
        Path(target).write_bytes(b"whole")

    tensor_file.replace_file(file, write)
    assert file.read_bytes() == b"whole"
    assert sorted(p.name for p in file.parent.iterdir()) == [".other.safetensors.abc.partial", "run.safetensors"]


# Hostile files


def parts(file: Path) -> tuple[dict[str, Any], bytes]:
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def built(header: Any, data: bytes = b"") -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


class Bomb:
    """What a pickle would do if it were read."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def raw(file: Path) -> dict[str, bytes]:
    """Files that are no safetensors files, or not whole ones; ``file`` is a good one."""
    good = file.read_bytes()
    header, data = parts(file)
    (size,) = struct.unpack("<Q", good[:8])
    flipped = bytearray(good)
    flipped[-3] ^= 0x10
    middle = bytearray(good)
    middle[8 + size + len(data) // 2] ^= 1
    text = json.dumps(header)
    first = next(name for name in header if name != "__metadata__")
    big = {**header, first: {**header[first], "shape": [2**31, 2**31, 4]}}
    far = {**header, first: {**header[first], "data_offsets": [2**62, 2**62 + 4]}}
    return {
        "empty": b"",
        "three bytes": good[:3],
        "only the length": good[:8],
        "cut in the header": good[: 8 + size // 2],
        "header only": good[: 8 + size],
        "last byte missing": good[:-1],
        "half": good[: len(good) // 2],
        "bytes behind": good + b"x",
        "zeros": bytes(len(good)),
        "length of 2^63": struct.pack("<Q", 2**63) + good[8:],
        "header of 4 GB": struct.pack("<Q", 2**32) + good[8:],
        "header that is too long by one": struct.pack("<Q", size + 1) + good[8:],
        "header bomb of nesting": built("[" * 100_000 + "]" * 100_000),
        "header bomb of objects": built('{"a":' * 50_000 + "1" + "}" * 50_000),
        "header of no JSON": built("{not json", data),
        "header of a list": built([1, 2], data),
        "header not UTF-8": good[:8] + b"\xff" * size + data,
        "a shape beyond memory": built(big, data),
        "an offset beyond the file": built(far, data),
        "a negative offset": built(text.replace("[0, ", "[-1, ", 1), data),
        "an unknown dtype": built(text.replace('"F32"', '"F33"'), data),
        "another dtype of the same size": built(text.replace('"F32"', '"I32"'), data),
        "a bit of the last tensor": bytes(flipped),
        "a bit in the middle": bytes(middle),
        "a name twice": built(f'{{"{first}": {json.dumps(header[first])}, {text[1:]}', data),
        "a pickle": pickle.dumps(Bomb()),
        "a pickle of old": pickle.dumps(Bomb(), protocol=0),
        "an archive": b"PK\x03\x04" + bytes(60),
        "a numpy file": b"\x93NUMPY\x01\x00" + bytes(60),
        "text": b"weights",
    }


def describe(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A file whose description is changed and has no digest, as a forger would have it."""

    def edit(file: Path) -> None:
        with safe_open(file, framework="pt") as content:
            key = KEY if KEY in content.metadata() else "sparsity.json"
            description = json.loads(content.metadata()[key])
        description["sha256"] = None
        found = change(description)
        text = found if isinstance(found, str) else json.dumps(description if found is None else found)
        save_file(load_file(file), file, metadata={key: text})

    return edit


def tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    """A file whose tensors are changed, without a digest."""

    def edit(file: Path) -> None:
        values = load_file(file)
        change(values)
        save_file(values, f"{file}.new", metadata=metadata(file))
        os.replace(f"{file}.new", file)

    return edit


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as content:
        found = content.metadata()
    for key, text in found.items():
        description = json.loads(text)
        description["sha256"] = None
        found[key] = json.dumps(description)
    return found


def put(name: str, make: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    return tensors(lambda values: values.__setitem__(name, make(values[name])))


def section(name: str, value: Any) -> Callable[[Path], None]:
    return describe(lambda d: d["state"]["map"].__setitem__(name, value))


def group(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the options of the optimizer."""

    def edit(description: dict[str, Any]) -> None:
        change(description["state"]["map"]["optimizer"]["map"]["param_groups"][0]["map"])

    return describe(edit)


def within(*path: Any, value: Any) -> Callable[[Path], None]:
    """Replace a node of the state: the keys of maps on the way to it."""

    def change(description: dict[str, Any]) -> None:
        place = description["state"]["map"]
        for key in path[:-1]:
            place = place[key]["map"]
        place[path[-1]] = value

    return describe(change)


WORDS = "model.0.mask_words"
TRAINING: dict[str, Callable[[Path], None]] = {
    "no metadata": lambda file: save_file(load_file(file), file),
    "metadata of others": lambda file: save_file(load_file(file), file, metadata={"format": "pt"}),
    "no JSON": describe(lambda d: "{not json"),
    "deep JSON": describe(lambda d: "[" * 200_000),
    "deep state": describe(lambda d: d.update(state=json.loads('{"tuple":[' * 300 + "1" + "]}" * 300))),
    "a list": describe(lambda d: [1]),
    "a future version": describe(lambda d: d.update(version=2)),
    "a version of text": describe(lambda d: d.update(version="1")),
    "another format": describe(lambda d: d.update(format="sparsekit")),
    "no state": describe(lambda d: d.pop("state") and None),
    "repeated keys": describe(lambda d: json.dumps(d)[:-1] + ', "version": 1}'),
    "NaN in JSON": describe(lambda d: d.update(state=math.nan)),
    "a number beyond all": describe(lambda d: json.dumps(d).replace('"version": 1', '"version": 1, "x": 1e999')),
    "a digit of thousands": describe(
        lambda d: json.dumps(d).replace('"version": 1', '"version": 1, "x": ' + "9" * 5000)
    ),
    "an unknown node": section("epoch", {"pickle": "gASV"}),
    "two keys": section("epoch", {"map": {}, "tuple": []}),
    "a path": section("epoch", {"tensor": "../../etc/passwd"}),
    "a tensor that is missing": tensors(lambda values: values.pop(WORDS)),
    "a tensor too many": tensors(lambda values: values.update(extra=torch.ones(1))),
    "a tensor as a key": section("epoch", {"dict": [[{"tensor": WORDS}, 1]]}),
    "a list as a key": section("epoch", {"dict": [[[1], 1]]}),
    "a key twice": section("epoch", {"dict": [[1, 1], [1, 2]]}),
    "bytes that are none": section("epoch", {"bytes": "0g"}),
    "a float that is none": section("epoch", {"float": "7ff0"}),
    "no model": describe(lambda d: d["state"]["map"].pop("epoch") and d["state"]["map"].update(model=3)),
    "a model of numbers": within("model", "0.bias", value=3),
    "masks of floats": put(WORDS, lambda t: t.float() * math.nan),
    "masks of int64": put(WORDS, lambda t: t.long()),
    "padding bits": put(WORDS, lambda t: t | (1 << 20)),
    "a mask of another shape": put(WORDS, lambda t: t[:-1].clone()),
    "weights of another shape": put("model.0.weight", lambda t: t.T.contiguous()),
    "weights of another dtype": put("model.0.weight", lambda t: t.double()),
    "another pruner": within("pruner", "config", "pruner", value="IMP"),
    "a config that is a list": within("pruner", "config", value=[1]),
    "a negative step": within("pruner", "step", value=-1),
    "a step of text": within("pruner", "step", value="2"),
    "a cost of text": within("pruner", "cost", "passes", value="many"),
    "a pruner that is a list": section("pruner", []),
    "scores of another shape": put("pruner.scores.0", lambda t: t[:1].clone()),
    "scores of integers": put("pruner.scores.0", lambda t: t.int()),
    "a momentum of another shape": put("pruner.lower.state.0.momentum_buffer", lambda t: t[:1].clone()),
    "a rate of text": describe(
        lambda d: d["state"]["map"]["optimizer"]["map"]["param_groups"][0]["map"].update(lr="fast")
    ),
    "no groups": within("optimizer", "param_groups", value=[]),
    "a group without its rate": group(lambda options: options.pop("lr")),
    "state of a parameter that is none": within("optimizer", "state", value={"dict": [[7, {"map": {}}]]}),
    "random numbers of another shape": put("rng.torch", lambda t: t[:10].clone()),
    "random numbers of another dtype": put("rng.torch", lambda t: t.float()),
    "numpy's place beyond its words": within("rng", "numpy", "pos", value=-5),
    "numpy's words": put("rng.numpy.key", lambda t: t[:3].clone()),
    "python's words": put("rng.python.words", lambda t: t[:3].clone()),
    "no random numbers": describe(lambda d: d["state"]["map"].update(rng=None)),
}


def refused(load: Callable[[], Any], run: Run, file: Path) -> None:
    """One ValueError that names the file; model, pruner, optimizer and random numbers are what they were."""
    state, generators, before = run.state(), run.generators(), listing(file.parent)
    kinds = [type(module) for module in run.model.modules()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError) as caught:
            load()
    assert type(caught.value) is ValueError and str(file) in str(caught.value), str(caught.value)
    assert len(str(caught.value)) < 1500
    assert same(run.state(), state) and same(list(run.generators()), list(generators))
    assert [type(module) for module in run.model.modules()] == kinds
    assert listing(file.parent) == before and not Path("executed").exists()


def check_both(edit: Callable[[Path], None], file: Path) -> None:
    """Into objects that are at another step, and into fresh ones."""
    edit(file)
    for run in (Run(seed=1, steps=3), Run(seed=1, steps=0)):
        refused(lambda run=run: sk.load_checkpoint(file, **run.objects), run, file)


@pytest.mark.parametrize("edit", TRAINING.values(), ids=TRAINING)
def test_hostile_checkpoints(edit: Callable[[Path], None], file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent.parent)
    check_both(edit, file)


MODEL: dict[str, Callable[[Path], None]] = {
    "no JSON": describe(lambda d: "{not json"),
    "deep JSON": describe(lambda d: "[" * 200_000),
    "a list": describe(lambda d: [1]),
    "a future version": describe(lambda d: d.update(version=2)),
    "repeated keys": describe(lambda d: json.dumps(d)[:-1] + ', "version": 1}'),
    "NaN in JSON": describe(lambda d: d.update(sparsity=math.nan)),
    "another mask hash": describe(lambda d: d.update(mask_hash="0" * 64)),
    "a mask hash that is a list": describe(lambda d: d.update(mask_hash=[1])),
    "layers that are a list": describe(lambda d: d.update(layers=[1])),
    "a layer without a shape": describe(lambda d: d["layers"].update({"0": 3})),
    "a path as a layer": describe(lambda d: d["layers"].update({"../../x": {"shape": [1]}})),
    "a path as a tie": describe(lambda d: d.update(ties={"../x": "/etc/passwd"})),
    "a tie to itself": describe(lambda d: d.update(ties={"x": "x"})),
    "masks of NaN": put("0.mask_words", lambda t: t.float() * math.nan),
    "padding bits": put("0.mask_words", lambda t: t | (1 << 20)),
    "a mask of another shape": put("0.mask_words", lambda t: t[:-1].clone()),
    "a flipped mask bit": put("0.mask_words", lambda t: t ^ 1),
    "weights of another shape": put("0.weight", lambda t: t.T.contiguous()),
    "complex weights": put("0.weight", lambda t: t.to(torch.complex64)),
    "a weight that is missing": tensors(lambda values: values.pop("0.weight")),
    "a mask that is missing": tensors(lambda values: values.pop("0.mask_words")),
    "a mask of no layer": tensors(lambda values: values.update({"9.mask_words": values["0.mask_words"].clone()})),
    "a path as a name": tensors(lambda values: values.update({"../../x": torch.ones(1)})),
}


@pytest.mark.parametrize("edit", MODEL.values(), ids=MODEL)
def test_hostile_models(edit: Callable[[Path], None], tmp_path: Path) -> None:
    file = sk.save(Run().model, tmp_path / "run") / "model.safetensors"
    edit(file)
    run = Run(seed=1, steps=3)
    refused(lambda: sk.load(run.model, file), run, file)
    refused(lambda: sk.load(run.model, file.parent), run, file)


def test_files_that_are_no_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = sk.save(Run().model, tmp_path / "run") / "model.safetensors"
    checkpoint = sk.save_checkpoint(tmp_path / "other" / "run.safetensors", **Run().objects)
    run = Run(seed=1)
    loads = (lambda: sk.load(run.model, model), lambda: sk.load_checkpoint(checkpoint, **run.objects))
    for file, load in zip((model, checkpoint), loads, strict=True):
        good = file.read_bytes()
        for what, content in raw(file).items():
            file.write_bytes(content)
            try:
                refused(load, run, file)
            except BaseException as error:
                raise AssertionError(what) from error
        file.write_bytes(good)
        load()


def test_files_of_the_other_format(tmp_path: Path) -> None:
    run = Run(seed=1)
    model = sk.save(Run().model, tmp_path / "run") / "model.safetensors"
    checkpoint = sk.save_checkpoint(tmp_path / "c.safetensors", **Run().objects)
    refused(lambda: sk.load_checkpoint(model, **run.objects), run, model)
    refused(lambda: sk.load(run.model, checkpoint), run, checkpoint)


def test_folders_and_pipes_are_no_checkpoints(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ValueError, match="which is no file"):
            sk.load_checkpoint(path)


def test_objects_that_the_file_does_not_have(file: Path) -> None:
    run = Run(seed=1)
    refused(lambda: sk.load_checkpoint(file, **run.objects, scaler=run.optimizer), run, file)


def test_an_error_of_a_later_object_undoes_the_earlier_ones(file: Path) -> None:
    class Stubborn:
        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: Any) -> None:
            if state:
                raise RuntimeError("no")

    run = Run(seed=1)
    with open(file, "rb"):
        sk.save_checkpoint(file, **Run().objects, scheduler={"a": 1})
    refused(lambda: sk.load_checkpoint(file, **run.objects, scheduler=Stubborn()), run, file)


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("before, after", [(compiled, nn.Identity), (nn.Identity, compiled), (compiled, compiled)])
def test_names_are_those_of_the_model_that_is_not_compiled(tmp_path: Path, before: Any, after: Any) -> None:
    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        sk.sparsify(model)
        sk.set_masks(model, {n: sk.Mask.from_dense(torch.rand(m.shape) < 0.5) for n, m in sk.masks(model).items()})
        return model

    one, two, three = build(0), build(1), build(2)
    wrap = {compiled: compiled, nn.Identity: lambda model: model}
    x = torch.randn(5, 4)
    given = wrap[before](one)
    expected = given(x)
    sk.save_checkpoint(tmp_path / "run.safetensors", model=given)
    sk.load_checkpoint(tmp_path / "run.safetensors", model=wrap[after](two))
    assert sk.load(wrap[after](three), sk.save(given, tmp_path / "model")) is not three or after is nn.Identity
    assert torch.equal(two(x), expected) and torch.equal(three(x), expected)
    assert set(load_file(tmp_path / "model" / "model.safetensors")) == set(one.state_dict())


def test_a_pruner_of_another_model_is_refused(tmp_path: Path) -> None:
    file, run, other = tmp_path / "run.safetensors", Run(), Run(seed=1)
    sk.save_checkpoint(file, model=run.model, pruner=run.pruner)
    before = copy.deepcopy(other.model.state_dict())
    with pytest.raises(ValueError, match="pruner: expected a pruner of the model given, got one of another model"):
        sk.load_checkpoint(file, model=other.model, pruner=run.pruner)
    assert same(dict(before), dict(other.model.state_dict()))
    # What holds the model, a training module say, is as good.
    around = nn.ModuleDict({"inner": run.model})
    sk.save_checkpoint(file, model=around, pruner=run.pruner)
    sk.load_checkpoint(file, model=around, pruner=run.pruner)


@pytest.mark.parametrize("name", ["schedule", "lower_curve", "upper_curve"])
def test_a_run_with_another_schedule_is_refused(tmp_path: Path, name: str) -> None:
    def build(**options: Any) -> tuple[nn.Module, sk.BiP]:
        model = nn.Sequential(nn.Linear(4, 3))
        sk.sparsify(model)
        lower = torch.optim.SGD(model.parameters(), 0.1)
        return model, sk.BiP(model, lambda m, x: m(x).sum(), 0.5, steps=4, lower=lower, **options)

    one = sk.Cubic(0.0, 0.5, 0, 2) if name == "schedule" else "linear"
    other = sk.Cubic(0.0, 0.5, 0, 3) if name == "schedule" else "constant"
    model, pruner = build(**{name: one})
    sk.save_checkpoint(tmp_path / "run", model=model, pruner=pruner)
    model, pruner = build(**{name: one})
    sk.load_checkpoint(tmp_path / "run", model=model, pruner=pruner)
    for options in ({}, {name: other}):
        model, pruner = build(**options)
        with pytest.raises(ValueError, match=f"expected {name} "):
            sk.load_checkpoint(tmp_path / "run", model=model, pruner=pruner)
