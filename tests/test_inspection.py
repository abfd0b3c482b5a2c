# SPDX-License-Identifier: Apache-2.0
"""What ``sk.inspect`` and ``sk.diff`` say, against plain arithmetic on the dense masks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import sparsekit as sk


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 10))


def pruned(sparsity: float = 0.8, seed: int = 0) -> nn.Sequential:
    model = network(seed)
    sk.sparsify(model)
    weights = {name: layer.weight.detach() for name, layer in sk.masked_layers(model).items()}
    sk.set_masks(model, sk.Projection()(weights, sparsity).masks)
    return model


def zero_pruned(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for layer in sk.masked_layers(model).values():
            layer.weight.mul_(layer.mask.dense())
    return model


def test_a_model_and_its_checkpoint_look_alike(tmp_path: Path) -> None:
    model = pruned()
    live, stored = sk.inspect(model), sk.inspect(sk.save(model, tmp_path))
    assert live.layers == stored.layers and live.problems == stored.problems == ()
    assert live.mask_hash == stored.mask_hash == sk.masks(model).hash()
    assert (live.kept, live.total, live.sparsity) == (sk.masks(model).count(), 216 + 320, sk.masks(model).sparsity)
    assert live.file_bytes is None and stored.file_bytes == (tmp_path / "model.safetensors").stat().st_size
    assert sk.inspect(tmp_path / "model.safetensors") == stored


def test_layers_come_in_the_order_of_the_modules(tmp_path: Path) -> None:
    model = nn.ModuleDict({"b": nn.Linear(4, 4), "a": nn.Linear(4, 4)})
    sk.sparsify(model)
    found = sk.inspect(sk.save(model, tmp_path))
    assert [layer.name for layer in found.layers] == ["b", "a"] and found.mask_hash == sk.masks(model).hash()


def test_the_numbers_of_a_layer() -> None:
    model = pruned().to(torch.float64)
    conv, linear = sk.inspect(model).layers
    kept = model[0].mask.dense()
    assert (conv.name, conv.shape, conv.dtype, conv.total) == ("0", (8, 3, 3, 3), "float64", 216)
    assert conv.kept == int(kept.sum()) and conv.sparsity == pytest.approx(1 - conv.kept / 216)
    assert conv.dense_bytes == 216 * 8 and conv.packed_bytes == conv.kept * 8 + 8 * 4
    assert conv.revived == 216 - conv.kept and conv.exposed is None and linear.name == "3"


def test_sizes_add_up() -> None:
    model = pruned()
    found = sk.inspect(model)
    state = sk.dense_state_dict(model)
    assert found.dense_bytes == sum(t.nbytes for t in state.values())
    saved = sum(layer.dense_bytes - layer.packed_bytes for layer in found.layers)
    assert found.packed_bytes == found.dense_bytes - saved


def test_a_glob_narrows_the_table_and_not_the_totals() -> None:
    model = pruned()
    part, whole = sk.inspect(model, layers="3"), sk.inspect(model)
    assert [layer.name for layer in part.layers] == ["3"]
    assert (part.kept, part.mask_hash, part.problems) == (whole.kept, whole.mask_hash, whole.problems)


def test_revived_weights_are_counted_and_harmless_under_a_mask() -> None:
    model = zero_pruned(pruned())
    assert sk.inspect(model).revived == 0
    with torch.no_grad():
        model[0].weight[~model[0].mask.dense()] = torch.arange(216 - sk.masks(model)["0"].count()).float()
    found = sk.inspect(model)
    assert found.revived == found.layers[0].revived == 215 - sk.masks(model)["0"].count() and found.problems == ()


def test_revived_weights_that_something_reads_without_the_mask(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    sk.sparsify(model)
    model[0].mask = sk.Mask.from_dense(torch.rand(8, 8) < 0.5)
    model.register_parameter("reader", model[0].weight)
    for source in (model, sk.save(model, tmp_path)):
        found = sk.inspect(source)
        assert found.layers[0].exposed == "reader" and len(found.problems) == 1
        assert "reader reads" in found.problems[0] and "without the mask" in found.problems[0]
    assert sk.inspect(zero_pruned(model)).problems == ()


def test_tied_layers_appear_once_and_are_no_danger(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    sk.sparsify(model)
    sk.set_masks(model, {"0": sk.Mask.from_dense(torch.rand(8, 8) < 0.5)})
    for source in (model, sk.save(model, tmp_path)):
        found = sk.inspect(source)
        assert [layer.name for layer in found.layers] == ["0"] and found.problems == ()
        assert found.mask_hash == sk.masks(model).hash()


def test_empty_layers_and_numbers_that_are_none() -> None:
    model = pruned()
    sk.set_masks(model, {"0": ~sk.Mask.full((8, 3, 3, 3))})
    assert ["keeps none of 216 weights" in text for text in sk.inspect(model).problems] == [True]
    model = pruned()
    with torch.no_grad():
        model[3].weight[model[3].mask.dense()] = math.nan
        model[0].weight[~model[0].mask.dense()] = math.inf  # under zero bits nobody minds
    (text,) = sk.inspect(model).problems
    assert f"{sk.masks(model)['3'].count()} kept weights are inf or NaN" in text


def test_a_file_that_contradicts_itself(tmp_path: Path) -> None:
    model = pruned()
    sk.save(model, tmp_path)
    tensors, file = load_file(tmp_path / "model.safetensors"), tmp_path / "other.safetensors"
    words = tensors["3.mask_words"]
    words[0, 0] ^= 1
    description = (tmp_path / "sparsity.json").read_text()
    # Written by somebody else, without the digest that would have told at once.
    told = json.loads(description) | {"sha256": None}
    save_file(tensors, file, metadata={"sparsity.json": json.dumps(told)})
    layer, whole = sk.inspect(file).problems
    assert layer.startswith("3: the file describes it as") and whole.startswith("the file says that its masks have")
    (tmp_path / "sparsity.json").write_text(json.dumps(json.loads(description) | {"sparsity": 0.1}))
    assert sk.inspect(tmp_path).problems == (
        "sparsity.json does not describe model.safetensors: it is from another save, or was edited",
    )
    (tmp_path / "sparsity.json").write_text("{")
    assert len(sk.inspect(tmp_path).problems) == 1


def test_stray_bits(tmp_path: Path) -> None:
    tensors = {"fc.weight": torch.zeros(2, 5), "fc.mask_words": torch.tensor([[31], [32 + 1]], dtype=torch.int32)}
    save_file(tensors, tmp_path / "a.safetensors")
    found = sk.inspect(tmp_path / "a.safetensors")
    assert found.layers[0].stray_bits and found.layers[0].kept == 6
    assert found.problems == ("fc: padding bits are set in its mask",)


def test_masks_without_weights_or_of_another_shape(tmp_path: Path) -> None:
    words = torch.zeros(2, 1, dtype=torch.int32)
    save_file({"fc.mask_words": words}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="expected a weight for every mask, got none for 'fc'"):
        sk.inspect(tmp_path / "a.safetensors")
    save_file({"fc.mask_words": words, "fc.weight": torch.zeros(3, 5)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="inspect: masks\\['fc'\\]"):
        sk.inspect(tmp_path / "a.safetensors")


def test_zeros_count_as_pruned_where_no_masks_are_stored(tmp_path: Path) -> None:
    model = pruned()
    save_file(
        {name: value.contiguous() for name, value in sk.dense_state_dict(model).items()}, tmp_path / "a.safetensors"
    )
    found = sk.inspect(tmp_path / "a.safetensors")
    assert found.inferred and found.kept == sk.masks(model).count() and found.revived == 0
    assert not sk.inspect(model).inferred


# diff


def test_diff_counts_what_sets_count() -> None:
    a, b = pruned(0.5, seed=0), pruned(0.7, seed=1)
    found = sk.diff(a, b)
    for layer in found.layers:
        one, two = (sk.masks(model)[layer.name].dense() for model in (a, b))
        assert (layer.kept_a, layer.kept_b, layer.both) == (int(one.sum()), int(two.sum()), int((one & two).sum()))
        assert (layer.only_a, layer.only_b) == (int((one & ~two).sum()), int((two & ~one).sum()))
        assert layer.iou == pytest.approx(float((one & two).sum() / (one | two).sum()))
    assert found.iou == pytest.approx(sk.masks(a).overlap(sk.masks(b))) and not found.identical
    assert (found.hash_a, found.hash_b) == (sk.masks(a).hash(), sk.masks(b).hash())


def test_diff_of_the_same_masks_in_every_form(tmp_path: Path) -> None:
    model = pruned()
    for other in (model, sk.masks(model), dict(sk.masks(model)), sk.save(model, tmp_path)):
        found = sk.diff(model, other)
        assert found.identical and found.iou == 1.0 and found.hash_a == found.hash_b


def test_diff_names_layers_that_one_side_lacks() -> None:
    masks = sk.masks(pruned())
    found = sk.diff({"0": masks["0"], "x": masks["3"]}, masks)
    assert [layer.name for layer in found.layers] == ["0"] and not found.identical
    assert (found.missing_in_a, found.missing_in_b) == (("3",), ("x",))


def test_two_empty_masks_agree() -> None:
    nothing = ~sk.Mask.full((4, 4))
    found = sk.diff({"a": nothing}, {"a": nothing})
    assert found.iou == found.chance == found.layers[0].chance == 1.0


def test_chance_is_told_beside_the_overlap() -> None:
    half, third = torch.arange(12) % 2 < 1, torch.arange(12) % 3 < 1
    a = {"x": sk.Mask.from_dense(half.reshape(3, 4)), "y": sk.Mask.full((2, 5))}
    b = {"x": sk.Mask.from_dense(third.reshape(3, 4)), "y": sk.Mask.full((2, 5))}
    found = sk.diff(a, b)
    # Of 6 and 4 of 12 chance lets 2 meet.
    assert [layer.chance for layer in found.layers] == [2 / 8, 1.0] and found.chance == pytest.approx(12 / 18)


def test_densities_beside_those_of_erk() -> None:
    model = pruned()
    found = sk.inspect(model)
    shapes = {layer.name: layer.shape for layer in found.layers}
    expected = sk.ERK()(shapes, {layer.name: layer.total for layer in found.layers}, "0.8")
    assert {layer.name: layer.erk for layer in found.layers} == expected
    assert sum(expected.values()) == found.kept and found.effective is None and found.layers[0].effective is None


def test_effective_weights_are_reported_where_they_are_given() -> None:
    model = pruned()
    kept = sk.masks(model)["3"].dense()
    kept[:, :4] = False  # four places of the first channel
    sk.set_masks(model, {"3": sk.Mask.from_dense(kept)})
    found = sk.inspect(model, effective=sk.effective_masks(model, torch.ones(1, 3, 4, 4)))
    conv, linear = found.layers
    first = int(model[0].mask.dense()[0].sum())
    assert first and conv.effective == conv.kept - first and found.effective == conv.effective + (linear.effective or 0)
    assert conv.cut_outputs == 1 + conv.dead_outputs and linear.cut_inputs == linear.dead_inputs
    assert found.problems == ()
    nothing = {name: mask ^ mask for name, mask in sk.masks(model).items()}
    assert "no path leads from the input to the output" in sk.inspect(model, effective=nothing).problems[0]


def test_effective_weights_of_other_masks_are_refused() -> None:
    model = pruned()
    for wrong in ({}, {"0": sk.Mask.full((8, 3, 3, 3)), "3": sk.masks(model)["3"]}):
        with pytest.raises(ValueError, match="inspect: effective.'0'.: expected weights that the mask keeps, got "):
            sk.inspect(model, effective=wrong)
