"""GELU as each platform computes it best: of a network's MLPs it takes as long as a product."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float

from evovit_jax.hardware.platforms import as_one, by_platform


@jax.checkpoint
def gelu_erf(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """GELU without what it computed on the way: the backward pass computes that again.

    By the error function, as PyTorch has it. `jax.nn.gelu` has its complement, which is exact to
    more digits far below zero and takes a CPU two and a half times as long.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


# u(x) = x (a + b x^2 + c x^4), fitted for 0.5 (1 + tanh(u)) to be the normal distribution function
# within 2.6e-5 for x^2 up to 36, from where on both are 0 or 1.
GELU_TANH = (0.7975077883222883, 0.03700571944886032, -0.00035152677734300773)


def gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The exact (erf) GELU, as in every published ViT; in bfloat16 on accelerators exact to its
    rounding.

    The backward pass keeps `x` alone, but on a TPU: what else it needs is cheaper computed than
    stored.
    """
    if x.dtype != jnp.bfloat16:
        return as_one(gelu_erf, x)
    # A TPU's compiler knows itself what to compute again; for a GPU's a third of the memory of a
    # training step hangs on it.
    again = jax.checkpoint(gelu_bfloat16)
    return by_platform(x, tpu=gelu_bfloat16, gpu=again, default=gelu_erf)


def gelu_bfloat16(x: BFloat16[Array, "*n"]) -> BFloat16[Array, "*n"]:
    """GELU by the hyperbolic tangent of a polynomial, within 2.6e-5.

    That is under half a unit in the last place of any bfloat16 result above 0.01. The error
    function takes a TPU twice as long, and NVIDIA's compiler makes two kernels of it.
    """
    wide = x.astype(jnp.float32)
    square = jnp.minimum(wide * wide, 36.0)
    a, b, c = GELU_TANH
    inner = wide * (a + square * (b + square * c))
    return (0.5 * wide * (1 + jnp.tanh(inner))).astype(x.dtype)
