"""Gated feed-forwards: SwiGLU in one matrix or in two (Shazeer, 2020).

Tested by the golden files of DINOv2 giant and DINOv3 plus, in tests/parity_test.py.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.models.layers import truncated_normal


class PackedSwiGLU(nnx.Module):
    """`fc2(silu(first half) * second half)` of what `fc1` gives (DINOv2 giant)."""

    def __init__(self, dim: int, hidden: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        settings = {"kernel_init": truncated_normal, "dtype": dtype, "rngs": rngs}
        self.fc1 = nnx.Linear(dim, 2 * hidden, **settings)
        self.fc2 = nnx.Linear(hidden, dim, **settings)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """The feed-forward of each token on its own."""
        gate, value = jnp.split(self.fc1(x), 2, axis=-1)
        return self.fc2(jax.nn.silu(gate) * value)


class SwiGLU(nnx.Module):
    """`fc2(silu(fc1_g x) * fc1_x x)` (DINOv3 plus and 7B)."""

    def __init__(self, dim: int, hidden: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        settings = {"kernel_init": truncated_normal, "dtype": dtype, "rngs": rngs}
        self.fc1_g = nnx.Linear(dim, hidden, **settings)
        self.fc1_x = nnx.Linear(dim, hidden, **settings)
        self.fc2 = nnx.Linear(hidden, dim, **settings)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """The feed-forward of each token on its own."""
        return self.fc2(jax.nn.silu(self.fc1_g(x)) * self.fc1_x(x))
