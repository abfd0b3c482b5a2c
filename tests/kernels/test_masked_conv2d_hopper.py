# SPDX-License-Identifier: Apache-2.0
"""Every line of the tables of masked_conv2d, compiled for Hopper: nothing spills, all fits, and the masked weight goes to
the tensor cores from registers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("triton")

from offline import HOPPER_SHARED, SMALLEST_SHARED, Binary, compiled  # noqa: E402

from sparsekit.kernels import masked_conv2d_configs as configs  # noqa: E402
from sparsekit.kernels.masked_conv2d_configs import GradientTiles, ProductTiles  # noqa: E402
from sparsekit.kernels.masked_conv2d_gradient import gradient_kernel, sum_gradients_kernel  # noqa: E402
from sparsekit.kernels.masked_conv2d_kernels import product_kernel, sum_pixels_kernel  # noqa: E402

pytestmark = pytest.mark.slow
# Kind -> types of x and weight, precision, the instruction's types.
KINDS = {
    "narrow": ("bf16", "bf16", "ieee", "f32.bf16.bf16"),
    "masters": ("fp16", "fp32", "ieee", "f32.f16.f16"),
    "tf32": ("fp32", "fp32", "tf32", "f32.tf32.tf32"),
    "fp32": ("fp32", "fp32", "ieee", None),
}
# Arguments that no convolution of common networks makes a multiple of 16.
ODD = {
    "pixels",
    "target_h",
    "target_w",
    "source_h",
    "source_w",
    "pad_h",
    "pad_w",
    "dilation_h",
    "dilation_w",
    "weight_s",
}
ODD |= {"dy_h", "dy_w", "x_h", "x_w", "parts", "weight_r", "width"}
# Strides of channels, which are 1 in channels_last tensors.
CHANNELS = {"source_c": 1, "target_c": 1, "weight_c": 1, "dy_c": 1, "x_c": 1}


def arguments(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], ones: tuple[str, ...] = ()
) -> tuple[dict, dict, set]:
    """(types, constants, divisible) of a launch on channels_last tensors with channels in multiples of 16, or 1 (``ones``)."""
    ints = [name for name in kernel.arg_names if not name.isupper() and name not in types]
    constants = constants | {name: value for name, value in CHANNELS.items() if name in ints}
    constants |= dict.fromkeys(ones, 1)
    types = types | {name: "i32" for name in ints if name not in constants}
    return types, constants, set(types) - ODD


def product(
    kind: str, tiles: ProductTiles, transposed: bool, taps: int = 3, stride: int = 1, split: int = 1, **options: Any
) -> Binary:
    x, weight, precision, _ = KINDS[kind]
    even, flat, changes = options.pop("even", True), options.pop("flat", False), options.pop("types", {})
    ones = options.pop("ones", ())
    types = {"source_ptr": f"*{x}", "weight_ptr": f"*{weight}", "words_ptr": "*i32", "bias_ptr": f"*{x}"}
    types |= {"target_ptr": f"*{x if split == 1 else 'fp32'}", **changes}
    constants = {"BLOCK_F": tiles.features, "BLOCK_P": tiles.pixels, "BLOCK_D": tiles.depth, "SPLIT": split}
    constants |= {"STRIDE_H": stride, "STRIDE_W": stride, "KH": taps, "KW": taps, "TRANSPOSED": transposed}
    constants |= {"FLAT": flat, "EVEN": even, "HAS_BIAS": not transposed, "PRECISION": precision}
    found = arguments(product_kernel, types, constants, ones)
    return compiled(product_kernel, *found, **options, num_warps=tiles.warps, num_stages=tiles.stages)


def gradient(
    kind: str, tiles: GradientTiles, masked: bool, dense: bool, split: int = 1, flat: bool = False, **options: Any
) -> Binary:
    x, weight, precision, _ = KINDS[kind]
    pointers = {"dy_ptr": x, "x_ptr": x, "words_ptr": "i32", "masked_ptr": weight, "dense_ptr": weight}
    types = {name: f"*{t}" for name, t in {**pointers, "parts_ptr": "fp32"}.items()}
    constants = {"BLOCK_O": tiles.out, "BLOCK_I": tiles.inputs, "BLOCK_P": tiles.pixels, "SPLIT": split}
    constants |= {"DIRECT": split == 1 and tiles.out * tiles.inputs <= 64 * 64}
    constants |= {"STRIDE_H": 1, "STRIDE_W": 1, "KH": 3, "KW": 3, "FLAT": flat}
    constants |= {"MASKED": masked, "DENSE": dense, "PRECISION": precision}
    found = arguments(gradient_kernel, types, constants)
    return compiled(gradient_kernel, *found, **options, num_warps=tiles.warps, num_stages=tiles.stages)


def check(binary: Binary, instruction: str | None, from_registers: bool | None = None) -> None:
    assert binary.local_bytes == 0 and binary.shared <= HOPPER_SHARED and binary.registers <= 255
    if instruction is None:
        assert binary.wgmma == ()
        return
    assert binary.wgmma and all(form.endswith(instruction) for form, _ in binary.wgmma)
    assert from_registers is None or all(registers == from_registers for _, registers in binary.wgmma)


def product_cases() -> Iterator:
    for kind, table in configs.HOPPER_PRODUCTS.items():
        for tiles in table.values():
            for transposed in (False, True):
                yield pytest.param(kind, tiles, transposed, id=f"{kind}-{tiles}-{'dx' if transposed else 'y'}")


@pytest.mark.parametrize(("kind", "tiles", "transposed"), list(product_cases()))
def test_products(kind: str, tiles: ProductTiles, transposed: bool) -> None:
    check(product(kind, tiles, transposed), KINDS[kind][3], True)


# Ways in which a product can differ from the common one: a launch compiles it anew for each.
VARIANTS: dict[str, dict[str, Any]] = {
    "odd channels": {"even": False},
    "stem": {"even": False, "flat": True, "taps": 7, "stride": 2},
    "gradient of a strided one": {"transposed": True, "stride": 2},
    "1x1": {"taps": 1},
    "parts": {"split": 4},
    "more than 2^31 pixels": {"types": {"pixels": "i64"}},
    "depthwise": {"even": False, "flat": True, "ones": ("features", "depth")},
    "one pixel": {"ones": ("pixels", "target_h", "target_w", "source_h", "source_w")},
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_variants_of_products(kind: str, name: str) -> None:
    options = {"transposed": False, **VARIANTS[name]}
    lines = configs.HOPPER_PRODUCTS[kind].values()
    channels = {"depthwise": (1, 1), "stem": (64, 3)}.get(name)
    for tiles in [configs.product_tiles(kind, (9, 0), *channels)] if channels else lines:
        check(product(kind, tiles, **options), KINDS[kind][3], True)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_at_the_weight(kind: str) -> None:
    common = {"masked": True, "dense": False}, {"masked": True, "dense": True}
    parts, flat = {"masked": False, "dense": True, "split": 4}, {"masked": True, "dense": True, "flat": True}
    for least, tiles in zip(
        (1, *configs.HOPPER_GRADIENTS[kind]), configs.HOPPER_GRADIENTS[kind].values(), strict=False
    ):
        for options in (*common, parts, flat) if least + 1 < tiles.inputs else (*common, parts):
            check(gradient(kind, tiles, **options), KINDS[kind][3])


def test_sums_of_parts() -> None:
    types = {"parts_ptr": "*fp32", "bias_ptr": "*bf16", "target_ptr": "*bf16"}
    found = arguments(sum_pixels_kernel, types, {"HAS_BIAS": True, "BLOCK": 1024})
    check(compiled(sum_pixels_kernel, *found, num_warps=4, num_stages=3), None)
    types = {"parts_ptr": "*fp32", "words_ptr": "*i32", "masked_ptr": "*fp32", "dense_ptr": "*fp32"}
    flags = {"KH": 3, "KW": 3, "MASKED": True, "DENSE": True, "BLOCK": 1024}
    found = arguments(sum_gradients_kernel, types, flags)
    check(compiled(sum_gradients_kernel, *found, num_warps=4, num_stages=3), None)


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_on_the_smallest_devices(kind: str) -> None:
    for tiles in configs.ELSEWHERE_PRODUCTS.values():
        for transposed in (False, True):
            assert product(kind, tiles, transposed, capability=86).shared <= SMALLEST_SHARED
    for tiles in configs.ELSEWHERE_GRADIENTS.values():
        assert gradient(kind, tiles, True, True, capability=86).shared <= SMALLEST_SHARED
