"""Convolutions that every device makes of its own images.

XLA divides a convolution of one group over the devices that share a batch. Of one with several
groups it first gathers the whole batch on every device, in the forward pass or in the backward
pass: in RegNetY-16GF, LeViT's teacher, 78 GB a training step of 8 GPUs.
Tested by `tests/models/convolution_test.py`.
"""

import functools
from typing import Any

import jax
from jaxtyping import Array, Float

from evovit_jax.parallel.per_device import per_device


def convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "i j c_of_group e"],
    *arguments: Any,
    feature_group_count: int,
    **settings: Any,
) -> Float[Array, "b y x e"]:
    """`jax.lax.conv_general_dilated`, for the argument of that name of `flax.nnx.Conv`."""
    function = functools.partial(_convolve, arguments, settings, feature_group_count)
    if feature_group_count == 1:
        return function(kernel, x)
    return per_device(function, x, shared=(kernel,))


def _convolve(arguments: tuple, settings: dict[str, Any], groups: int, kernel, x) -> Any:
    return jax.lax.conv_general_dilated(
        x, kernel, *arguments, feature_group_count=groups, **settings
    )
