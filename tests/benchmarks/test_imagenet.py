# SPDX-License-Identifier: Apache-2.0
"""ImageNet from generated folders: what torchvision would list and cut, streams that resume, errors that say what to do."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("PIL")

from generated_images import WNIDS, write_image, write_imagenet  # noqa: E402
from PIL import Image  # noqa: E402

from sparsekit.benchmarks import random_crop, streaming  # noqa: E402
from sparsekit.benchmarks.data import load_data  # noqa: E402
from sparsekit.benchmarks.imagenet import StreamedData  # noqa: E402
from sparsekit.benchmarks.random_crop import centre_crop, draw_window, generator_of, random_resized_crop  # noqa: E402

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_imagenet(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture(autouse=True)
def no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "WORKERS", 0)


def load(root: Path, **options: Any) -> StreamedData:
    data = load_data("imagenet", **{"seed": 0, "root": root, **options})
    assert isinstance(data, StreamedData)
    return data


def same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def image_of(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8))


# Windows


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (256, 256), (500, 375), (333, 500), (343, 256), (256, 343)])
def test_the_centre_is_torchvisions(size: tuple[int, int]) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    wanted = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(image_of(*size))
    assert centre_crop(image_of(*size), 224).tobytes() == wanted.tobytes()


def test_a_random_window_is_scaled_as_torchvision_does() -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    flips = 0
    for seed in range(12):
        image, generator = image_of(120, 90), generator_of("x", seed)
        left, top, right, bottom = draw_window(120, 90, generator)
        flip = generator.random() < 0.5
        wanted = functional.resized_crop(image, top, left, bottom - top, right - left, [56, 56])
        wanted = functional.hflip(wanted) if flip else wanted
        assert random_resized_crop(image, 56, generator_of("x", seed)).tobytes() == wanted.tobytes()
        flips += flip
    assert 2 < flips < 10


def test_windows_are_distributed_as_torchvisions() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    image, generator = torch.empty(3, 90, 120), random.Random(0)
    torch.manual_seed(0)
    ours = [draw_window(120, 90, generator) for _ in range(4000)]
    theirs = [transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    mine = torch.tensor([(t, left, b - t, r - left) for left, t, r, b in ours], dtype=torch.float64)
    other = torch.tensor(theirs, dtype=torch.float64)
    # Besides corner and sides the form, whose logarithm is what is drawn evenly, and the area.
    mine, other = (torch.cat([x, (x[:, 3:] / x[:, 2:3]).log(), x[:, 2:3] * x[:, 3:]], dim=1) for x in (mine, other))
    spread = (mine.var(0) / 4000 + other.var(0) / 4000).sqrt()
    assert ((mine.mean(0) - other.mean(0)).abs() < 4 * spread).all()
    assert ((mine.std(0) / other.std(0) - 1).abs() < 0.05).all()
    assert all(0 <= left < r <= 120 and 0 <= t < b <= 90 for left, t, r, b in ours)
    # Smaller windows come to every edge.
    inner = [(left, t, r, b) for left, t, r, b in ours if r - left < 120 and b - t < 90]
    assert [f(edge) for f, edge in zip((min, min, max, max), zip(*inner, strict=True), strict=True)] == [0, 0, 120, 90]


def test_a_window_that_never_fits_is_the_largest_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    monkeypatch.setattr(random_crop, "TRIES", 0)
    for width, height in ((300, 40), (40, 300), (100, 90)):
        left, top, right, bottom = draw_window(width, height, random.Random(0))
        # A share of more than the whole never fits.
        theirs = transforms.RandomResizedCrop.get_params(torch.empty(3, height, width), [99.0, 99.0], [3 / 4, 4 / 3])
        assert (top, left, bottom - top, right - left) == tuple(theirs)


# Files


def test_files_are_those_of_image_folder(root: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    data = load(root)
    for split, part in (("train", "train"), ("test", "val")):
        wanted = datasets.ImageFolder(str(root / part))
        files = data.files[split]
        assert [(str(files.path(i)), int(files.labels[i])) for i in range(len(files.labels))] == wanted.samples
        assert list(data.class_names) == wanted.classes == list(WNIDS)
    assert (data.classes, data.channels, data.image_size) == (3, 3, 224) and len(data.labels("val")) == 0


def test_evaluation_is_every_centre_once(root: Path) -> None:
    data = load(root, image_size=32)
    batches = list(data.evaluation("test", batch_size=5))
    assert [len(y) for _, y in batches] == [5, 5, 2] and list(data.evaluation("val")) == []
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(y, data.labels("test"))
    for i, image in enumerate(x):
        pixels = np.array(centre_crop(Image.open(data.files["test"].path(i)).convert("RGB"), 32))
        wanted = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - MEAN[:, None, None]) / STD[:, None, None]
        torch.testing.assert_close(image, wanted, rtol=1e-5, atol=1e-5)


def test_batches_are_windows_by_hand(root: Path) -> None:
    data = load(root, image_size=24)
    stream = data.batches(batch_size=4, seed=7, start_step=5)
    x, y = next(stream)
    assert stream.steps_per_epoch == 4 and stream.step == 6 and x.dtype == torch.float32
    order = torch.randperm(18, generator=streaming.make_generator("epoch", 7, 1))[4:8]
    assert torch.equal(y, data.labels("train")[order])
    for place, (number, image) in enumerate(zip(order.tolist(), x, strict=True), start=4):
        whole = Image.open(data.files["train"].path(number)).convert("RGB")
        pixels = np.array(random_resized_crop(whole, 24, generator_of("crop", 7, 1, place)))
        wanted = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - MEAN[:, None, None]) / STD[:, None, None]
        torch.testing.assert_close(image, wanted, rtol=1e-5, atol=1e-5)


def test_streams_resume_at_any_step_and_end(root: Path) -> None:
    data = load(root, image_size=16)
    whole = list(data.batches(batch_size=4, seed=1, epochs=3))
    assert len(whole) == 12 and not same(whole[0], whole[4])
    for start in (1, 4, 11, 12):
        rest = list(data.batches(batch_size=4, seed=1, epochs=3, start_step=start))
        assert len(rest) == 12 - start and all(same(a, b) for a, b in zip(rest, whole[start:], strict=True))
    labels = torch.cat([y for _, y in whole[:4]])
    assert torch.bincount(labels).sum() == 16 and not same(next(data.batches(batch_size=4, seed=2)), whole[0])


def test_workers_change_nothing_but_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load(root, image_size=16)
    plain = list(islice(data.batches(batch_size=4, seed=1), 6))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    monkeypatch.setattr(streaming, "WORKERS", 2)
    for x, wanted in zip(data.batches(batch_size=4, seed=1), plain, strict=False):
        assert same(x, wanted)
    assert torch.equal(torch.get_rng_state(), state)  # that dropout draws from


def test_the_random_state_of_the_caller_is_left_alone(root: Path) -> None:
    data, state = load(root, image_size=16), torch.get_rng_state()
    list(data.batches(batch_size=4, seed=1, epochs=1)), list(data.evaluation())
    assert torch.equal(torch.get_rng_state(), state)


def test_layout_and_device(root: Path) -> None:
    data = load(root, image_size=16)
    x = next(replace(data, channels_last=True).to("cpu").batches(batch_size=4, seed=0))[0]
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, next(data.batches(batch_size=4, seed=0))[0])


@pytest.mark.gpu
def test_a_gpu_sees_the_same_pixels(root: Path) -> None:
    data = load(root, image_size=16)
    for split in ("batches", "evaluation"):
        how = {"batch_size": 4, **({"seed": 0, "epochs": 2} if split == "batches" else {})}
        for a, b in zip(getattr(data, split)(**how), getattr(data.to("cuda"), split)(**how), strict=True):
            assert b[0].is_cuda and torch.equal(a[0], b[0].cpu()) and torch.equal(a[1], b[1].cpu())


def test_limits_keep_class_shares(root: Path) -> None:
    data = load(root, limit=6)
    assert [torch.bincount(data.labels(split), minlength=3).tolist() for split in ("train", "test")] == [[2] * 3] * 2
    assert not len(data.labels("val"))


# What is wrong


def test_a_file_that_is_no_image_is_named_by_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_imagenet(tmp_path, 2, 1)
    broken = root / "train" / WNIDS[0] / f"{WNIDS[0]}_1.JPEG"
    broken.write_bytes(broken.read_bytes()[:400])
    for workers in (0, 1):
        monkeypatch.setattr(streaming, "WORKERS", workers)
        with pytest.raises(ValueError, match="^load_data: name: expected .* image in .*_1.JPEG, got [^\n]*$"):
            list(load(root, image_size=8).batches(batch_size=2, seed=0, epochs=1))


def test_missing_folders_say_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected train/ and val/ .* https://image-net.org/.*torchvision"):
        load(tmp_path)
    root = write_imagenet(tmp_path / "imagenet", 1, 1)
    assert load(tmp_path).classes == 3
    write_image(root / "val" / "n09" / "a.JPEG", 0, (9, 9))
    with pytest.raises(ValueError, match="expected the same classes in train/ and val/, got 'n09' in one of them"):
        load(tmp_path)
    (root / "train" / "n09").mkdir()
    with pytest.raises(ValueError, match="expected images in .*n09, got none"):
        load(tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, r"batches: batch_size: expected an integer in \[1, 18\], got 0"),
        ({"batch_size": 19}, r"batches: batch_size: expected an integer in \[1, 18\], got 19"),
        ({"epochs": -1}, "batches: epochs: expected an integer >= 0 or None, got -1"),
        ({"start_step": -1}, "batches: start_step: expected an integer >= 0, got -1"),
    ],
)
def test_bad_arguments(root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(root).batches(**{"batch_size": 2, "seed": 0, **options})
    with pytest.raises(ValueError, match="evaluation: batch_size: expected an integer >= 1, got 0"):
        load(root).evaluation(batch_size=0)
