# SPDX-License-Identifier: Apache-2.0
"""Every line of the tables of masked_linear, compiled for Hopper: nothing spills, all fits, and the masked weight goes to
the tensor cores from registers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("triton")

from offline import HOPPER_SHARED, SMALLEST_SHARED, Binary, compiled  # noqa: E402

from sparsekit.kernels import masked_linear_configs as configs  # noqa: E402
from sparsekit.kernels.masked_linear_configs import GradientConfig, ProductConfig  # noqa: E402
from sparsekit.kernels.masked_linear_kernels import gradient_kernel, product_kernel, sum_kernel  # noqa: E402

pytestmark = pytest.mark.slow
# Kind -> types of x and weight, precision, the instruction's types.
KINDS = {
    "narrow": ("bf16", "bf16", "ieee", "f32.bf16.bf16"),
    "masters": ("fp16", "fp32", "ieee", "f32.f16.f16"),
    "tf32": ("fp32", "fp32", "tf32", "f32.tf32.tf32"),
    "fp32": ("fp32", "fp32", "ieee", None),
}
INTS = ("tokens", "features", "depth", "width", "stride_x", "stride_weight")


def unique(table: dict) -> list:
    return list(dict.fromkeys(config for candidates in table.values() for config in candidates))


def product_cases() -> Iterator:
    for kind in KINDS:
        for config in unique(configs.products(kind, (9, 0))):
            for transposed in (False, True):
                yield pytest.param(kind, config, transposed, id=f"{kind}-{config}-{'dx' if transposed else 'y'}")


def product(
    kind: str, config: ProductConfig, transposed: bool, split: int = 1, ones: tuple[str, ...] = (), capability: int = 90
) -> Binary:
    """The kernel as a launch compiles it for sizes that are multiples of 16, those in ``ones`` apart."""
    x, weight, precision, _ = KINDS[kind]
    types = {"x_ptr": f"*{x}", "weight_ptr": f"*{weight}", "words_ptr": "*i32", "bias_ptr": f"*{x}"}
    types |= {"out_ptr": f"*{x if split == 1 else 'fp32'}", **dict.fromkeys(INTS, "i32")}
    tiles = {"BLOCK_F": config.features, "BLOCK_T": config.tokens, "BLOCK_D": config.depth}
    flags = {"TRANSPOSED": transposed, "HAS_BIAS": not transposed, "ACTIVATION": "none", "EVEN_DEPTH": not transposed}
    constants = {**tiles, **flags, "PRECISION": precision, "SPLIT": split, **dict.fromkeys(ones, 1)}
    types = {name: kind for name, kind in types.items() if name not in ones}
    options = {"num_warps": config.warps, "num_stages": config.stages}
    return compiled(product_kernel, types, constants, set(types) - {"tokens"}, capability, **options)


def check(binary: Binary, instruction: str | None, from_registers: bool) -> None:
    assert binary.local_bytes == 0 and binary.shared <= HOPPER_SHARED and binary.registers <= 255
    if instruction is None:
        assert binary.wgmma == ()
        return
    assert binary.wgmma and all(form.endswith(instruction) for form, _ in binary.wgmma)
    assert all(registers == from_registers for _, registers in binary.wgmma)


@pytest.mark.parametrize(("kind", "config", "transposed"), list(product_cases()))
def test_products(kind: str, config: ProductConfig, transposed: bool) -> None:
    check(product(kind, config, transposed), KINDS[kind][3], True)


def test_parts_of_a_sum_and_their_sum() -> None:
    check(product("narrow", configs.HOPPER_NARROW[16][0], False, split=4), KINDS["narrow"][3], True)
    types = {"parts_ptr": "*fp32", "bias_ptr": "*bf16", "out_ptr": "*bf16", "count": "i32", "features": "i32"}
    constants = {"HAS_BIAS": True, "ACTIVATION": "gelu", "SPLIT": 4, "BLOCK": 1024}
    check(compiled(sum_kernel, types, constants, set(types), num_warps=4, num_stages=3), None, False)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_at_the_weight(kind: str) -> None:
    x, weight, precision, instruction = KINDS[kind]
    pointers = {"dy_ptr": x, "x_ptr": x, "words_ptr": "i32", "masked_ptr": weight, "dense_ptr": weight}
    types = {name: f"*{kind}" for name, kind in pointers.items()}
    types |= dict.fromkeys(("tokens", "out_features", "in_features", "width", "stride_dy", "stride_x"), "i32")
    for config in unique(configs.gradients(kind, (9, 0))):
        assert isinstance(config, GradientConfig) and max(config.out, config.inputs) <= 128
        for masked, dense in ((True, False), (True, True)):
            tiles = {"BLOCK_O": config.out, "BLOCK_I": config.inputs, "BLOCK_T": config.tokens}
            constants = {**tiles, "MASKED": masked, "DENSE": dense, "PRECISION": precision}
            divisible = set(types) - {"tokens"}
            binary = compiled(
                gradient_kernel, types, constants, divisible, num_warps=config.warps, num_stages=config.stages
            )
            check(binary, instruction, False)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("ones", [("tokens",), INTS], ids=["one token", "all sizes one"])
def test_sizes_of_one_which_triton_takes_for_constants(ones: tuple[str, ...], transposed: bool) -> None:
    for split in (1, 4):
        check(product("narrow", configs.HOPPER_NARROW[16][0], transposed, split, ones), KINDS["narrow"][3], True)


@pytest.mark.parametrize("kind", KINDS)
def test_products_on_the_smallest_devices(kind: str) -> None:
    for config in unique(configs.products(kind, (8, 6))):
        for transposed in (False, True):
            assert product(kind, config, transposed, capability=86).shared <= SMALLEST_SHARED
