# SPDX-License-Identifier: Apache-2.0
"""The shared training: same batches for all, dense networks trained once and bit-equal from disk, honest evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import sparsekit as sk
from sparsekit import tensor_file
from sparsekit.benchmarks import engine
from sparsekit.benchmarks.dense_file import KEY, NUMBERS, read_dense, write_dense
from sparsekit.benchmarks.engine import Workbench
from sparsekit.benchmarks.evaluation import accuracy
from sparsekit.benchmarks.recipe import Recipe
from sparsekit.benchmarks.training import cross_entropy, train
from sparsekit.tensor_file import write_tensors

pytest.importorskip("sklearn")

SMALL = Recipe(network="mlp", limit=100, dense_epochs=2, epochs=1, batch_size=16)


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(SMALL, tmp_path)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr)


# Training and evaluation


def test_train_is_a_plain_loop_under_a_cosine(bench: Workbench) -> None:
    model, twin = bench.network(0), bench.network(0)
    seen: list[int] = []
    train(model, bench.batches(0, 0), sgd(model), 5, on_step=lambda: seen.append(1))
    assert len(seen) == 5
    batches = bench.batches(0, 0)
    for step in range(5):
        images, labels = next(batches)
        gradients = torch.autograd.grad(F.cross_entropy(twin(images), labels), list(twin.parameters()))
        rate = 0.1 * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * step / 5, dtype=torch.float64))))
        with torch.no_grad():
            for p, g in zip(twin.parameters(), gradients, strict=True):
                p -= rate * g
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_train_tells_of_a_loss_that_is_not_finite(bench: Workbench) -> None:
    model = bench.network(0)
    nn.init.constant_(next(model.parameters()), torch.nan)
    with pytest.raises(ValueError, match="train: loss: expected finite values, got NaN or inf by step 3"):
        train(model, bench.batches(0, 0), sgd(model), 3)


def test_train_puts_the_model_into_train_mode_and_accuracy_leaves_the_mode(bench: Workbench) -> None:
    model = bench.network(0).eval()
    train(model, bench.batches(0, 0), sgd(model), 1)
    assert model.training
    for mode in (True, False):
        accuracy(model.train(mode), bench.data, "val")
        assert model.training is mode


def test_accuracy_counts_every_example_once_in_eval_mode(bench: Workbench) -> None:
    model = nn.Sequential(bench.network(0), nn.Dropout(0.9))
    images, labels = next(bench.data.evaluation("test"))
    right = int((bench.network(0).eval()(images).argmax(1) == labels).sum())
    assert accuracy(model, bench.data, "test") == right / 100
    assert len(labels) == len(bench.data.y_test) == 100


# The workbench


def test_sizes(bench: Workbench) -> None:
    assert (bench.images, bench.steps_per_epoch, bench.epoch_images) == (100, 6, 96)


def test_networks_depend_on_the_seed_alone(bench: Workbench) -> None:
    torch.manual_seed(1)
    first, other = bench.network(0), bench.network(1)
    torch.manual_seed(2)
    assert equal(first.state_dict(), bench.network(0).state_dict())
    assert not equal(first.state_dict(), other.state_dict())


def test_batches_depend_on_seed_and_phase_alone(bench: Workbench, tmp_path: Path) -> None:
    torch.manual_seed(1)
    one = [next(b) for b in [bench.batches(3, 1)] for _ in range(8)]
    torch.manual_seed(2)
    two = [next(b) for b in [Workbench(SMALL, tmp_path / "other").batches(3, 1)] for _ in range(8)]
    assert all(torch.equal(a, b) and torch.equal(p, q) for (a, p), (b, q) in zip(one, two, strict=True))
    others = [next(bench.batches(seed, phase))[1] for seed, phase in ((3, 0), (3, 2), (4, 1))]
    assert not any(torch.equal(labels, one[0][1]) for labels in others)
    assert len(next(bench.batches(0, 1, 40))[1]) == 40


def test_the_dense_network_is_trained_once_and_read_back_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Workbench(SMALL, tmp_path)
    steps: list[int] = []
    dense = first.dense(0, lambda: steps.append(1))
    assert len(steps) == 12 and first.dense(0) is dense and len(steps) == 12
    torch.manual_seed(99)  # nothing may depend on the global state
    fresh = Workbench(SMALL, tmp_path / "elsewhere").dense(0)
    assert equal(fresh.state, dense.state) and fresh.row["test_accuracy"] == dense.row["test_accuracy"]
    monkeypatch.setattr(engine, "train", lambda *a, **k: pytest.fail("trained again"))
    again = Workbench(SMALL, tmp_path).dense(0)
    assert equal(again.state, dense.state) and equal(again.init, dense.init) and again.row == dense.row
    assert not equal(dense.init, dense.state)
    assert equal(dense.init, first.network(0).state_dict())


def test_the_row_of_a_dense_network(bench: Workbench) -> None:
    dense = bench.dense(1)
    model = bench.network(1)
    model.load_state_dict(dense.state)
    assert dense.row["test_accuracy"] == accuracy(model, bench.data, "test")
    assert dense.row["val_accuracy"] == accuracy(model, bench.data, "val")
    assert (dense.row["epochs"], dense.row["passes"]) == (2, 12) and dense.row["seconds"] > 0


def test_dense_networks_are_shared_by_recipes_that_agree_on_them(bench: Workbench, tmp_path: Path) -> None:
    bench.dense(0)
    shared = [{"epochs": 9}, {"imp_rate": 0.5}, {"ode_steps": 3}, {"skip": ("1",)}, {"upper_lr": 0.2}, {"gamma": 2.0}]
    for change in shared:
        Workbench(Recipe(**{**vars(SMALL), **change}), tmp_path).dense(0)
    assert len(list((tmp_path / "dense").iterdir())) == 1
    own = [
        {"lr": 0.01},
        {"dense_epochs": 1},
        {"batch_size": 20},
        {"weight_decay": 0.0},
        {"limit": 90},
        {"momentum": 0.5},
    ]
    for change in own:
        Workbench(Recipe(**{**vars(SMALL), **change}), tmp_path).dense(0)
    bench.dense(1)
    assert len(list((tmp_path / "dense").iterdir())) == 1 + len(own) + 1


def test_a_failed_write_leaves_no_dense_network(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(tensors: Any, target: str, metadata: Any) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(tensor_file, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        bench.dense(0)
    assert list((tmp_path / "dense").iterdir()) == []


def test_a_dense_network_with_tied_weights(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    row = dict.fromkeys(NUMBERS, 1)
    write_dense(tmp_path / "dense" / "a.safetensors", network.state_dict(), row)
    state, found = read_dense(tmp_path / "dense" / "a.safetensors", network)
    assert equal(state, dict(network.state_dict())) and found == row


@pytest.mark.parametrize(
    "how", ["cut", "foreign", "text", "flipped", "flipped name", "other network", "no row", "list"]
)
def test_a_dense_file_that_is_none_is_named(bench: Workbench, tmp_path: Path, how: str) -> None:
    bench.dense(0)
    (file,) = (tmp_path / "dense").iterdir()
    if how == "foreign":
        save_file(load_file(file), file)
    elif how.startswith("flipped"):
        content = bytearray(file.read_bytes())
        content[content.index(b".bias") if how == "flipped name" else -7] ^= 4
        file.write_bytes(content)
    elif how in ("other network", "no row", "list"):
        state = {"weight": torch.ones(2)} if how == "other network" else load_file(file)
        row: Any = {"list": [1], "no row": {}}.get(how, dict.fromkeys(NUMBERS, 0))
        write_tensors(file, state, KEY, {"format": "sparsekit.dense", "version": 1, "row": row})
    else:
        file.write_bytes(file.read_bytes()[:100] if how == "cut" else b"not a checkpoint")
    with pytest.raises(ValueError, match="^out: expected a dense checkpoint in .*, got another .*; remove it"):
        Workbench(SMALL, tmp_path).dense(0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batch_size": 101}, "^batch_size: expected <= 100 images, got 101"),
        ({"network": "resnet99"}, "build_network: name: expected one of mlp, convnet"),
        ({"network": "timm:nothing"}, "build_network: name: expected a network of timm"),
        ({"skip": ("conv*",)}, r"sparsify: skip: expected globs that match a module, got 'conv\*'"),
        ({"skip": ("*",)}, "sparsify: model: expected at least one layer to mask, got none"),
        ({"data": "mnist"}, "load_data: name: expected digits, cifar10, .*imagenet-spode or a folder of images"),
        ({"data": "tiny-imagenet"}, "load_data: root: expected tiny-imagenet-200 under "),
    ],
)
def test_what_cannot_work_is_said_before_any_training(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Workbench(Recipe(**{**vars(SMALL), **change}), tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_cuda(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^device: expected a CUDA device, got none; see `sparsekit doctor`"):
        Workbench(Recipe(**{**vars(SMALL), "device": "cuda"}), tmp_path)


# Weights of the user


def weights_file(bench: Workbench, tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    state = bench.network(7).state_dict()
    save_file(state, tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors", state


def test_adopted_weights_are_the_dense_network_at_no_cost(bench: Workbench, tmp_path: Path) -> None:
    file, state = weights_file(bench, tmp_path)
    bench.adopt(0, file)
    dense = bench.dense(0, lambda: pytest.fail("trained"))
    assert equal(dense.state, state) and equal(dense.init, bench.network(0).state_dict())
    assert (dense.row["epochs"], dense.row["passes"], dense.row["seconds"]) == (0, 0, 0.0)
    model = bench.network(0)
    model.load_state_dict(state)
    assert dense.row["test_accuracy"] == accuracy(model, bench.data, "test")
    assert not (tmp_path / "dense").exists()
    assert json.loads(json.dumps(dense.row)) == dense.row


def test_a_saved_sparsified_network_is_adopted_with_its_zeros(bench: Workbench, tmp_path: Path) -> None:
    model = bench.network(5)
    sk.sparsify(model)
    sk.OneShotMagnitude(model, cross_entropy, 0.5)
    bench.adopt(0, sk.save(model, tmp_path / "pruned"))
    assert equal(bench.dense(0).state, sk.dense_state_dict(model))


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({"a": torch.ones(2)}, "load: path: expected the model's keys, got missing 1.bias"),
        (None, "load: path: expected a readable safetensors file"),
    ],
)
def test_weights_of_another_network_are_refused(bench: Workbench, tmp_path: Path, tensors: Any, message: str) -> None:
    file = tmp_path / "mine.safetensors"
    file.write_bytes(b"\x80\x04}q.") if tensors is None else save_file(tensors, file)
    with pytest.raises(ValueError, match=message):
        bench.adopt(0, file)
    with pytest.raises(ValueError, match="load: path: expected a directory with"):
        bench.adopt(0, tmp_path / "none.safetensors")
