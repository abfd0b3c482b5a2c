# SPDX-License-Identifier: Apache-2.0
"""Tiny-ImageNet from a generated folder of its layout: splits of both papers, augmentation, and what is missing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("PIL")

from generated_images import WNIDS, write_tiny_imagenet  # noqa: E402

from sparsekit.benchmarks.data import Data, load_data  # noqa: E402
from sparsekit.benchmarks.splits import SPLITS  # noqa: E402


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_imagenet(tmp_path_factory.mktemp("tiny")).parent


def load(root: Path, name: str = "tiny-imagenet", **options: Any) -> Data:
    data = load_data(name, **{"seed": 0, "root": root, **options})
    assert isinstance(data, Data)
    return data


def counts(data: Data) -> list[int]:
    return [len(data.labels(split)) for split in SPLITS]


def test_spode_trains_on_everything_and_tests_on_all_of_val(root: Path) -> None:
    data = load(root)
    assert counts(data) == [24, 0, 18] and data.class_names == WNIDS
    assert (data.classes, data.channels, data.image_size, data.augment) == (3, 3, 64, "crop-flip")
    assert torch.bincount(data.y_train).tolist() == [8] * 3 and torch.bincount(data.y_test).tolist() == [6] * 3
    torch.testing.assert_close(data.mean, torch.tensor([0.480, 0.448, 0.397]))
    torch.testing.assert_close(data.std, torch.tensor([0.276, 0.269, 0.282]))


def test_bip_cuts_val_in_two_halves_class_by_class(root: Path) -> None:
    whole, data = load(root), load(root, "tiny-imagenet-bip")
    assert counts(data) == [24, 9, 9] and data.augment == "crop-flip-mean"
    torch.testing.assert_close(data.mean, torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(data.std, torch.tensor([0.229, 0.224, 0.225]))
    for split in ("val", "test"):
        assert torch.bincount(data.labels(split)).tolist() == [3] * 3
    parts = [x.numpy().tobytes() for x in (*data.x_val, *data.x_test)]
    assert sorted(parts) == sorted(x.numpy().tobytes() for x in whole.x_test) and len(set(parts)) == 18
    assert torch.equal(data.x_train, whole.x_train)
    assert torch.equal(load(root, "tiny-imagenet-bip", seed=5).x_test, data.x_test)  # the seed of limits moves no half


def test_labels_of_val_are_those_of_its_table(root: Path) -> None:
    from PIL import Image

    data, folder = load(root), root / "tiny-imagenet-200" / "val" / "images"
    for i in (0, 4, 17):
        pixels = torch.frombuffer(bytearray(Image.open(folder / f"val_{i}.JPEG").tobytes()), dtype=torch.uint8)
        found = [n for n, x in enumerate(data.x_test) if torch.equal(x.permute(1, 2, 0).flatten(), pixels)]
        assert [int(data.y_test[n]) for n in found] == [i % 3]


def test_the_folder_itself_may_be_the_root_and_limits_hold(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(root / "tiny-imagenet-200", folder)
    assert counts(load(folder, limit=6)) == [6, 0, 6] and counts(load(folder, "tiny-imagenet-bip", limit=3)) == [3] * 3
    assert load(folder, image_size=32).image_size == 32


def test_what_comes_in_has_the_mean_colour(root: Path) -> None:
    """Windows of normalised images that are padded with zeros, as BiP cuts them: never black, exactly 0 at some edge."""
    data = load(root, "tiny-imagenet-bip")
    x, y = next(data.batches(batch_size=24, seed=3))
    plain, labels = (torch.cat(parts) for parts in zip(*data.evaluation("train"), strict=True))
    moved = 0
    for image, label in zip(x, y, strict=True):
        windows = [
            torch.nn.functional.pad(candidate, (4,) * 4)[:, i : i + 64, j : j + 64]
            for candidate in (*plain[labels == label], *plain[labels == label].flip(-1))
            for i in range(9)
            for j in range(9)
        ]
        found = [window for window in windows if torch.equal(window, image)]
        assert found
        moved += bool((image == 0).all(0).any())
    assert moved > 12


def test_streams_resume_and_layouts_keep_their_numbers(root: Path) -> None:
    from dataclasses import replace

    data = load(root)
    whole = list(data.batches(batch_size=5, seed=1, epochs=3))
    for x, wanted in zip(data.batches(batch_size=5, seed=1, epochs=3, start_step=6), whole[6:], strict=True):
        assert torch.equal(x[0], wanted[0]) and torch.equal(x[1], wanted[1])
    last = next(replace(data, channels_last=True).batches(batch_size=5, seed=1))[0]
    assert last.is_contiguous(memory_format=torch.channels_last) and torch.equal(last, whole[0][0])
    assert whole[0][0].is_contiguous()


def test_missing_data_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"load_data: root: expected tiny-imagenet-200 under .* curl -L http://cs231n"):
        load(tmp_path)
    folder = write_tiny_imagenet(tmp_path, 1, 1)
    (folder / "val" / "val_annotations.txt").unlink()
    with pytest.raises(ValueError, match="with train/ and val/val_annotations.txt, got neither"):
        load(tmp_path)
