# SPDX-License-Identifier: Apache-2.0
"""ImageNet augmented as in SpODE's released code: torchvision's own classes with the same draws, and streams of it."""

from __future__ import annotations

import random
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("PIL")
transforms = pytest.importorskip("torchvision.transforms")

from generated_images import write_imagenet  # noqa: E402
from PIL import Image  # noqa: E402
from torchvision.transforms.v2 import functional  # noqa: E402

from sparsekit.benchmarks import streaming  # noqa: E402
from sparsekit.benchmarks.colours import SCALE, random_colours, spode_crop  # noqa: E402
from sparsekit.benchmarks.data import load_data  # noqa: E402
from sparsekit.benchmarks.imagenet import StreamedData  # noqa: E402
from sparsekit.benchmarks.random_crop import draw_window, generator_of  # noqa: E402

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
CHANGES = ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_imagenet(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture(autouse=True)
def no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "WORKERS", 0)


def load(root: Path, name: str = "imagenet-spode", **options: Any) -> StreamedData:
    data = load_data(name, **{"seed": 0, "root": root, "image_size": 16, **options})
    assert isinstance(data, StreamedData)
    return data


def same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def image_of(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8))


# One image


def fixed(transform: Any, *drawn: Any) -> Any:
    """A transform of torchvision whose draws are given."""
    transform.get_params = lambda *ignored: drawn
    return transform


def released(image: Image.Image, size: int, generator: random.Random) -> tuple[Image.Image, tuple[bool, bool]]:
    """The transforms of the released code in its order, and whether the image was mirrored and made grey."""
    left, top, right, bottom = draw_window(image.width, image.height, generator, (0.2, 1.0))
    flip, grey = generator.random() < 0.5, generator.random() < 0.2
    amounts = [generator.uniform(0.6, 1.4) for _ in range(3)] + [generator.uniform(-0.4, 0.4)]
    order = torch.tensor(generator.sample(range(4), 4))
    pipeline = [
        fixed(transforms.RandomResizedCrop(size, scale=(0.2, 1.0)), top, left, bottom - top, right - left),
        transforms.RandomGrayscale(p=float(grey)),
        fixed(transforms.ColorJitter(0.4, 0.4, 0.4, 0.4), order, *amounts),
        transforms.RandomHorizontalFlip(p=float(flip)),
    ]
    return transforms.Compose(pipeline)(image), (flip, grey)


def test_an_image_is_that_of_torchvisions_transforms_with_the_same_draws() -> None:
    seen = set()
    for seed in range(40):
        image = image_of(120 + seed % 3, 90)
        wanted, kind = released(image, 32, generator_of("x", seed))
        found = spode_crop(image, 32, generator_of("x", seed))
        assert found.mode == "RGB" and found.tobytes() == wanted.tobytes()
        seen.add(kind)
    assert len(seen) == 4


def test_colours_are_drawn_as_torchvision_draws_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Amounts evenly between the bounds that torchvision makes of 0.4, every order alike, one in five images grey."""
    found: list[list[tuple[str, float]]] = []
    grey = 0

    def recorded(name: str) -> Any:
        return lambda image, amount: (found[-1].append((name, amount)), image)[1]

    def counted(image: Any, num_output_channels: int) -> Any:
        nonlocal grey
        assert num_output_channels == 3 and not found[-1]  # before the jitter
        grey += 1
        return image

    for name in CHANGES:
        monkeypatch.setattr(functional, name, recorded(name))
    monkeypatch.setattr(functional, "rgb_to_grayscale", counted)
    generator, image, n = random.Random(0), image_of(2, 2), 4000
    for _ in range(n):
        found.append([])
        random_colours(image, generator)
    jitter = transforms.ColorJitter(0.4, 0.4, 0.4, 0.4)
    assert abs(grey - 0.2 * n) < 4 * (n * 0.2 * 0.8) ** 0.5
    for name in CHANGES:
        low, high = getattr(jitter, name.removeprefix("adjust_"))
        values = torch.tensor([dict(changes)[name] for changes in found])
        assert low <= values.min() < low + 0.01 * (high - low) and high - 0.01 * (high - low) < values.max() <= high
        spread = (high - low) / 12**0.5
        assert abs(values.mean() - (low + high) / 2) < 4 * spread / n**0.5
        assert abs(values.std() / spread - 1) < 0.05
    orders = {}
    for changes in found:
        order = tuple(name for name, _ in changes)
        orders[order] = orders.get(order, 0) + 1
    assert len(orders) == 24 and all(abs(count - n / 24) < 5 * (n / 24) ** 0.5 for count in orders.values())


def test_windows_have_at_least_a_fifth_of_the_area() -> None:
    generator = random.Random(0)
    windows = [draw_window(100, 100, generator, SCALE) for _ in range(2000)]
    shares = torch.tensor([(right - left) * (bottom - top) / 1e4 for left, top, right, bottom in windows])
    assert 0.195 < shares.min() < 0.22 and shares.max() > 0.95


# Streams


def test_batches_are_coloured_windows_by_hand(root: Path) -> None:
    data = load(root)
    stream = data.batches(batch_size=4, seed=7, start_step=5)
    x, y = next(stream)
    order = torch.randperm(18, generator=streaming.make_generator("epoch", 7, 1))[4:8]
    assert torch.equal(y, data.labels("train")[order]) and stream.step == 6
    for place, (number, image) in enumerate(zip(order.tolist(), x, strict=True), start=4):
        whole = Image.open(data.files["train"].path(number)).convert("RGB")
        pixels = np.array(released(whole, 16, generator_of("crop", 7, 1, place))[0])
        wanted = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - MEAN[:, None, None]) / STD[:, None, None]
        torch.testing.assert_close(image, wanted, rtol=1e-5, atol=1e-5)


def test_only_the_pixels_of_training_images_differ_from_imagenet(root: Path) -> None:
    data, plain = load(root), load(root, "imagenet")
    assert data.name == "imagenet-spode" and data.class_names == plain.class_names
    assert (data.mean, data.std, data.image_size) == (plain.mean, plain.std, plain.image_size)
    for a, b in zip(data.evaluation("test"), plain.evaluation("test"), strict=True):
        assert same(a, b)
    (x, y), (other, labels) = (next(d.batches(batch_size=6, seed=1)) for d in (data, plain))
    assert torch.equal(y, labels) and not any(torch.equal(a, b) for a, b in zip(x, other, strict=True))
    assert load_data("imagenet-spode", seed=0, root=root).image_size == 224


def test_streams_resume_at_any_step(root: Path) -> None:
    data, state = load(root), torch.get_rng_state()
    whole = list(data.batches(batch_size=4, seed=1, epochs=3))
    assert len(whole) == 12 and not same(whole[0], whole[4])
    for start in range(13):
        rest = list(data.batches(batch_size=4, seed=1, epochs=3, start_step=start))
        assert len(rest) == 12 - start and all(same(a, b) for a, b in zip(rest, whole[start:], strict=True))
    assert not same(next(data.batches(batch_size=4, seed=2)), whole[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_change_nothing_but_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load(root)
    plain = list(islice(data.batches(batch_size=4, seed=1), 5))
    for workers in (1, 2):
        monkeypatch.setattr(streaming, "WORKERS", workers)
        for found, wanted in zip(data.batches(batch_size=4, seed=1), plain, strict=False):
            assert same(found, wanted)


def test_limits_keep_class_shares(root: Path) -> None:
    data, plain = load(root, limit=6), load(root, "imagenet", limit=6)
    assert [torch.bincount(data.labels(s), minlength=3).tolist() for s in ("train", "test")] == [[2] * 3] * 2
    assert not len(data.labels("val")) and data.files["train"].names.tolist() == plain.files["train"].names.tolist()


def test_torchvision_is_asked_for_before_anything_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2.functional", None)
    expected = (
        r"load_data: name: 'imagenet-spode' expected the package torchvision \(pip install torchvision\), got none"
    )
    with pytest.raises(ValueError, match=expected):
        load(root)
    assert len(load(root, "imagenet").labels("train")) == 18
