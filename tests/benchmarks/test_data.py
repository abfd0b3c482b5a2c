# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sparsekit.benchmarks.data import Data, load_data
from sparsekit.benchmarks.images import channel_statistics, resize
from sparsekit.benchmarks.splits import Split

torchvision = pytest.importorskip("torchvision")
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", seed=0)


def make_data(**changes) -> Data:
    x, y = torch.zeros(4, 1, 3, 3, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
    parts = {"x_train": x, "x_val": x, "x_test": x, "y_train": y, "y_val": y, "y_test": y}
    fixed = {"name": "x", "mean": torch.zeros(1), "std": torch.ones(1), "class_names": ("a", "b")}
    return Data(**{**fixed, **parts, **changes})


def test_digits_have_three_disjoint_stratified_splits(digits: Data):
    assert [len(digits.split(split)[1]) for split in ("train", "val", "test")] == [1294, 144, 359]
    assert (digits.classes, digits.channels, digits.image_size, digits.augment) == (10, 1, 8, "none")
    assert all(torch.bincount(digits.split(split)[1]).min() >= 13 for split in ("train", "val", "test"))
    assert digits.x_train.max() == 255


def test_digits_do_not_depend_on_the_seed_and_limit_does(digits: Data):
    assert torch.equal(load_data("digits", seed=1).x_test, digits.x_test)
    small, same, other = (load_data("digits", seed=seed, limit=50) for seed in (0, 0, 1))
    assert small.x_train.shape[0] == small.x_test.shape[0] == 50
    assert torch.equal(small.x_train, same.x_train) and not torch.equal(small.x_train, other.x_train)


def test_training_images_are_normalised(digits: Data):
    x = torch.cat([x for x, _ in digits.evaluation("train")])
    assert x.mean().abs() < 1e-5 and (x.std() - 1).abs() < 1e-3


def test_evaluation_shows_everything_once_in_order(digits: Data):
    batches = list(digits.evaluation("test", batch_size=100))
    assert [len(y) for _, y in batches] == [100, 100, 100, 59]
    assert torch.equal(torch.cat([y for _, y in batches]), digits.y_test)


def test_only_training_batches_are_augmented(digits: Data):
    moving = dataclasses.replace(digits, augment="shift")
    expected: dict[Split, bool] = {"train": False, "val": True}
    for split, same in expected.items():
        pair = [next(data.batches(split, batch_size=32, seed=0))[0] for data in (digits, moving)]
        assert torch.equal(*pair) is same


def test_two_levels_get_different_batches_from_one_stream(digits: Data):
    (_, lower), (_, upper) = islice(digits.batches(batch_size=64, seed=0), 2)
    assert not torch.equal(lower, upper)


def test_to_moves_every_tensor(digits: Data):
    moved = digits.to("cpu")
    assert moved.device.type == "cpu" and moved.class_names == digits.class_names
    assert torch.equal(moved.x_train, digits.x_train)


@pytest.mark.gpu
def test_a_gpu_sees_the_same_batches(digits: Data):
    moving = dataclasses.replace(digits, augment="crop-flip")
    pairs = zip(*(data.batches(batch_size=100, seed=0, epochs=2) for data in (moving, moving.to("cuda"))), strict=True)
    for (x, y), (gpu_x, gpu_y) in pairs:
        assert gpu_x.is_cuda and torch.equal(x, gpu_x.cpu()) and torch.equal(y, gpu_y.cpu())


def test_image_size_scales_packaged_images():
    data = load_data("digits", seed=0, limit=20, image_size=32)
    assert data.x_train.shape == (20, 1, 32, 32) and data.augment == "none"


def test_resize_keeps_constants_and_accepts_nothing():
    assert torch.equal(resize(torch.full((2, 3, 8, 8), 77, dtype=torch.uint8), 5), torch.full((2, 3, 5, 5), 77))
    assert resize(torch.empty(0, 3, 8, 8, dtype=torch.uint8), 5).shape == (0, 3, 5, 5)


def test_channel_statistics_match_float64():
    x = torch.randint(256, (5000, 2, 3, 3), dtype=torch.uint8)
    x[:, 1] = 7
    mean, std = channel_statistics(x)
    wanted = x.double().div(255).transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, wanted.mean(1).float())
    torch.testing.assert_close(std, torch.tensor([wanted[0].std(correction=0), 1.0]).float())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"y_val": torch.tensor([0, 1, 2, 0])}, r"y_val: expected labels in \[0, 2\), got 2"),
        ({"y_test": torch.tensor([0, -1, 0, 0])}, r"y_test: expected labels in \[0, 2\), got -1"),
        ({"y_train": torch.tensor([0, 1, 0])}, r"y_train: expected torch.int64 of shape \(4,\)"),
        ({"x_val": torch.zeros(4, 1, 3, 3)}, "x_val: expected torch.uint8 images"),
        ({"x_test": torch.zeros(4, 1, 4, 4, dtype=torch.uint8)}, r"x_test: .* shape \(1, 3, 3\)"),
        ({"x_train": torch.zeros(0, 1, 3, 3, dtype=torch.uint8)}, "x_train: expected shape"),
        ({"augment": "cutout"}, "augment: expected one of none, shift, crop-flip, crop-flip-mean, got 'cutout'"),
    ],
)
def test_data_refuses_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        make_data(**changes)


def test_data_refuses_unknown_split(digits: Data):
    with pytest.raises(ValueError, match="split: expected one of train, val, test, got 'valid'"):
        digits.split("valid")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name, channels", [("cifar10", 10), ("cifar100", 100)])
def test_cifar_is_carved_like_everything_else(monkeypatch, tmp_path, name: str, channels: int):
    def fake(root, *, train, download):
        assert root == str(tmp_path) and not download
        count = 2000 if train else 500
        images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        return SimpleNamespace(
            data=images, targets=[i % channels for i in range(count)], classes=[str(i) for i in range(channels)]
        )

    monkeypatch.setattr(torchvision.datasets, name.upper(), fake)
    data = load_data(name, seed=0, root=tmp_path)
    assert [len(data.split(split)[1]) for split in ("train", "val", "test")] == [1800, 200, 500]
    assert (data.classes, data.channels, data.image_size, data.augment) == (channels, 3, 32, "crop-flip")
    assert torch.equal(
        data.x_test[7], torch.from_numpy(fake(str(tmp_path), train=False, download=False).data[7]).permute(2, 0, 1)
    )


@pytest.mark.parametrize("name, first", [("cifar10-full", (0.4914, 0.2470)), ("cifar100-full", (0.5071, 0.2673))])
def test_the_papers_train_on_all_of_cifar(monkeypatch, tmp_path, name: str, first: tuple[float, float]):
    def fake(root, *, train, download):
        count = 50 if train else 20
        images = np.random.default_rng(train).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        return SimpleNamespace(data=images, targets=[i % 10 for i in range(count)], classes=[str(i) for i in range(10)])

    monkeypatch.setattr(torchvision.datasets, name.removesuffix("-full").upper(), fake)
    data = load_data(name, seed=0, root=tmp_path)
    assert [len(data.labels(split)) for split in ("train", "val", "test")] == [50, 0, 20]
    assert torch.equal(data.x_train, torch.from_numpy(fake("", train=True, download=False).data).permute(0, 3, 1, 2))
    assert (float(data.mean[0]), float(data.std[0])) == pytest.approx(first) and data.augment == "crop-flip"
    assert len(load_data(name, seed=0, root=tmp_path, limit=10).labels("val")) == 0


def test_missing_cifar_names_the_folder_and_the_way_to_get_it(tmp_path):
    with pytest.raises(ValueError, match=r"root: expected the files of CIFAR10 under .*download=True") as caught:
        load_data("cifar10", seed=0, root=tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "name, options, message",
    [
        (
            "mnist",
            {},
            r"name: expected digits, cifar10, .*-bip, imagenet, imagenet-spode or a folder of images, got 'mnist'",
        ),
        ("digits", {"image_size": 0}, "image_size: expected an integer >= 1 or None, got 0"),
        ("digits", {"limit": 0}, "limit: expected an integer >= 1 or None, got 0"),
    ],
)
def test_load_data_refuses_what_it_does_not_know(name, options, message):
    with pytest.raises(ValueError, match=message):
        load_data(name, seed=0, **options)
