# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import islice

import pytest
import torch

from sparsekit.benchmarks.batches import AUGMENTS, Augment, BatchStream, Normalise, crop_flip

N, C, S = 22, 3, 6


def make_stream(augment: Augment = "crop-flip", batch_size=5, seed=0, **options) -> BatchStream:
    x = torch.arange(N * C * S * S, dtype=torch.int64).remainder(256).to(torch.uint8).view(N, C, S, S)
    normalise = Normalise.by(torch.full((C,), 0.5), torch.full((C,), 0.25))
    return BatchStream(x, torch.arange(N), normalise, augment=augment, batch_size=batch_size, seed=seed, **options)


def equal(a, b) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_crop_flip_equals_slicing():
    x = torch.randint(256, (9, 2, 5, 7), dtype=torch.uint8)
    down, right = torch.randint(5, (2, 9))
    flip = torch.tensor([False, True, True] * 3)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    for i, got in enumerate(crop_flip(x, down, right, flip, 2)):
        wanted = padded[i, :, down[i] : down[i] + 5, right[i] : right[i] + 7]
        assert torch.equal(got, wanted.flip(-1) if flip[i] else wanted)


def test_crop_flip_at_the_padding_is_the_identity():
    x = torch.randint(256, (4, 1, 5, 5), dtype=torch.uint8)
    middle = torch.full((4,), 4)
    assert torch.equal(crop_flip(x, middle, middle, torch.zeros(4, dtype=torch.bool), 4), x)


def test_normalise():
    x = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    got = Normalise.by(torch.tensor([0.2]), torch.tensor([0.5]))(x)
    torch.testing.assert_close(got.flatten(), torch.tensor([-0.4, 0.0, 1.6]))
    assert got.dtype == torch.float32


def test_an_epoch_shows_every_example_at_most_once_and_drops_the_rest():
    labels = torch.cat([y for _, y in make_stream(epochs=1)])
    assert labels.unique().numel() == labels.numel() == 20


def test_epochs_are_shuffled_differently():
    first, second = (torch.cat([y for _, y in islice(stream, 4)]) for stream in [make_stream()] * 2)
    assert not torch.equal(first, second)


def test_equal_seeds_give_equal_batches_and_other_seeds_others():
    first, again, other = (list(make_stream(seed=seed, epochs=2)) for seed in (3, 3, 4))
    assert len(first) == 8
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("start", [0, 3, 4, 9])
def test_a_stream_continues_where_another_stopped(start: int):
    stream = make_stream()
    list(islice(stream, start))
    resumed = make_stream(start_step=stream.step)
    for _ in range(6):
        assert equal(next(stream), next(resumed))
    assert stream.step == resumed.step == start + 6


def test_epochs_count_from_step_zero():
    assert len(list(make_stream(epochs=2, start_step=5))) == 3
    assert list(make_stream(epochs=1, start_step=9)) == list(make_stream(epochs=0)) == []


def test_augmentation_leaves_global_random_state_alone():
    state = torch.get_rng_state()
    next(make_stream())
    assert torch.equal(torch.get_rng_state(), state)


def test_without_augmentation_images_are_as_stored():
    for x, y in make_stream(augment="none", epochs=1):
        stored = torch.arange(N * C * S * S).remainder(256).view(N, C, S, S)[y]
        torch.testing.assert_close(x, (stored / 255 - 0.5) / 0.25)


def test_augmentations_move_and_mirror():
    plain = torch.cat([x for x, _ in make_stream(augment="none", epochs=1)])
    for augment in AUGMENTS[1:]:
        changed = torch.cat([x for x, _ in make_stream(augment=augment, epochs=1)])
        assert changed.shape == plain.shape and not torch.equal(changed, plain)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 23}, r"batch_size: expected an integer in \[1, 22\], got 23"),
        ({"batch_size": 0}, "batch_size: expected an integer"),
        ({"epochs": -1}, "epochs: expected an integer >= 0 or None, got -1"),
        ({"start_step": -1}, "start_step: expected an integer >= 0, got -1"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        make_stream(**options)
