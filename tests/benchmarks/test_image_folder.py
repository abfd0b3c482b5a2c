# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsekit.benchmarks import image_files, image_folder
from sparsekit.benchmarks.data import Data, load_data

Image = pytest.importorskip("PIL.Image")


def write_class(folder: Path, count: int, *, size=(8, 8), mode="RGB", shade=0, suffix=".png") -> None:
    """`count` images whose first channel holds their number and whose other pixels hold `shade`."""
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.full((size[1], size[0], 3), shade, dtype=np.uint8)
        pixels[..., 0] = i
        image = Image.fromarray(pixels[..., 0] if mode == "L" else pixels)
        image.save(folder / f"{i:03}{suffix}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, shade in (("cat", 10), ("ant", 20)):
        write_class(tmp_path / "set" / "train" / name, 20, shade=shade)
        write_class(tmp_path / "set" / "test" / name, 4, shade=shade)
    return tmp_path / "set"


def load(folder: Path, **options) -> Data:
    return load_data(str(folder), **{"seed": 0, "root": folder.parent / "root", **options})


def counts(data: Data) -> list[int]:
    return [len(data.split(split)[1]) for split in ("train", "val", "test")]


def test_train_and_test_folders(folder: Path):
    data = load(folder)
    assert counts(data) == [36, 4, 8] and data.class_names == ("ant", "cat")
    assert data.x_test.shape == (8, 3, 8, 8) and data.augment == "none"
    assert data.y_test.tolist() == [0] * 4 + [1] * 4
    assert data.x_test[:, 0, 0, 0].tolist() == [0, 1, 2, 3] * 2
    assert torch.equal(data.x_test[:, 1, 0, 0] == 20, data.y_test == 0)


def test_val_serves_as_test_or_as_validation(folder: Path):
    (folder / "test").rename(folder / "val")
    assert counts(load(folder)) == [36, 4, 8]
    write_class(folder / "test" / "ant", 3)
    assert counts(load(folder)) == [40, 8, 3]


def test_a_single_folder_is_split(folder: Path):
    data = load(folder / "train")
    assert counts(data) == [29, 3, 8]
    seen = [
        (int(y), int(x[0, 0, 0])) for split in ("train", "val", "test") for x, y in zip(*data.split(split), strict=True)
    ]
    assert len(set(seen)) == 40


def test_tiny_imagenet_layout(folder: Path):
    write_class(folder / "val" / "images", 3)
    table = "002.png\tcat\t0\t0\n000.png\tant\t0\t0\n001.png\tcat\t0\t0\n"
    (folder / "val" / "val_annotations.txt").write_text(table)
    data = load(folder)
    assert counts(data) == [36, 4, 3] and data.y_test.tolist() == [0, 1, 1]


def test_images_may_lie_deeper_and_other_files_are_ignored(tmp_path: Path):
    for name in ("a", "b"):
        write_class(tmp_path / "set" / name / "images", 10)
        (tmp_path / "set" / name / "notes.txt").write_text("no image")
        (tmp_path / "set" / name / ".hidden.png").write_text("no image")
    (tmp_path / "set" / ".git").mkdir()
    assert sum(counts(load(tmp_path / "set"))) == 20


def test_limit_decodes_only_what_it_keeps(folder: Path, monkeypatch):
    decoded: list[Path] = []
    real = image_files._decode_into
    monkeypatch.setattr(image_files, "_decode_into", lambda room, path: (decoded.append(path), real(room, path)))
    assert counts(load(folder, limit=2)) == [2, 2, 2] and len(decoded) == 6


def test_the_second_load_reads_the_cache(folder: Path, monkeypatch):
    first = load(folder)
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "decode_all", lambda *_: pytest.fail("decoded again"))
        second = load(folder)
    assert torch.equal(first.x_train, second.x_train) and torch.equal(first.y_train, second.y_train)
    assert [path.suffix for path in (folder.parent / "root" / ".cache").iterdir()] == [".safetensors"]


def test_a_changed_file_or_form_renews_the_cache(folder: Path):
    load(folder)
    changed = folder / "test" / "ant" / "000.png"
    Image.new("RGB", (8, 8), (99, 99, 99)).save(changed)
    os.utime(changed, ns=(1, 1))
    assert load(folder).x_test[0].unique().tolist() == [99]
    assert load(folder, image_size=4).image_size == 4
    assert len(list((folder.parent / "root" / ".cache").iterdir())) == 3


def test_a_damaged_cache_is_made_anew(folder: Path, caplog):
    load(folder)
    (path,) = (folder.parent / "root" / ".cache").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        assert counts(load(folder)) == [36, 4, 8]
    assert "cannot be read" in caplog.text and path.stat().st_size > 1000


def test_a_cache_that_cannot_be_written_is_no_error(folder: Path, caplog):
    root = folder.parent / "root"
    root.write_text("a file where a folder should be")
    with caplog.at_level(logging.WARNING):
        assert counts(load(folder)) == [36, 4, 8]
    assert "cannot be written" in caplog.text


def test_grey_images_keep_one_channel_unless_mixed(tmp_path: Path):
    for name in ("a", "b"):
        write_class(tmp_path / "set" / name, 10, mode="L")
    assert load(tmp_path / "set").channels == 1
    write_class(tmp_path / "set" / "c", 10)
    assert load(tmp_path / "set").channels == 3


def test_unequal_images_need_a_size(tmp_path: Path):
    write_class(tmp_path / "set" / "a", 5, size=(12, 8))
    write_class(tmp_path / "set" / "b", 5, size=(8, 40), suffix=".jpg")
    with pytest.raises(ValueError, match="image_size: expected a number .* 8 x 40, 12 x 8"):
        load(tmp_path / "set")
    assert load(tmp_path / "set", image_size=32).x_train.shape[1:] == (3, 32, 32)


def test_the_centre_is_cut_out(tmp_path: Path):
    pixels = np.zeros((4, 8, 3), dtype=np.uint8)
    pixels[:, 2:6] = 200
    for i in range(10):
        path = tmp_path / "set" / "a" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    assert load(tmp_path / "set", image_size=4).x_train.unique().tolist() == [200]


def test_large_images_are_augmented(tmp_path: Path):
    write_class(tmp_path / "set" / "a", 10, size=(32, 32))
    assert load(tmp_path / "set").augment == "crop-flip"


def test_folders_that_do_not_fit(folder: Path, monkeypatch):
    (folder / "test" / "dog").mkdir()
    with pytest.raises(ValueError, match="only classes of the training set, got 'dog'"):
        load(folder)
    (folder / "train" / "dog").mkdir()
    with pytest.raises(ValueError, match="expected images in .*dog, got none"):
        load(folder)
    with pytest.raises(ValueError, match="expected one subfolder per class"):
        load(folder / "train" / "dog")


def test_files_that_are_no_images(folder: Path):
    broken = folder / "train" / "ant" / "000.png"
    whole = broken.read_bytes()
    for content in (b"text", whole[: len(whole) // 2]):
        broken.write_bytes(content)
        with pytest.raises(ValueError, match="image in .*000.png, got"):
            load(folder)


def test_more_than_the_memory_holds(folder: Path, monkeypatch):
    monkeypatch.setattr(image_files, "MEMORY_SHARE", 1e-12)
    with pytest.raises(ValueError, match="pass a smaller image_size or a limit"):
        load(folder)
