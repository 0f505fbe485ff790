"""Bicubic resizing as PyTorch computes it without antialias: a = -0.75, edges repeated.

`jax.image.resize` has a = -0.5 and drops what lies beyond an edge. Tested in
tests/models/crossvit_test.py.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

A = -0.75  # the kernel's slope at distance 1


def cubic_taps(old: int, new: int) -> tuple[Int[np.ndarray, "n 4"], Float[np.ndarray, "n 4"]]:
    """The four places that each of `new` places is a sum of, and their weights."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centres).astype(int) - 1
    places = first[:, None] + np.arange(4)
    x = np.abs(centres[:, None] - places)
    near = ((A + 2) * x - (A + 3)) * x**2 + 1
    far = A * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.clip(places, 0, old - 1), np.where(x <= 1, near, far)


def resize_bicubic(
    images: Float[Array, "b h w c"], size: tuple[int, int]
) -> Float[Array, "b y x c"]:
    """Images at another (height, width), computed in float32; half-pixel centres."""
    x = images.astype(jnp.float32)
    for axis, new in enumerate(size, 1):
        if x.shape[axis] == new:
            continue
        places, weights = cubic_taps(x.shape[axis], new)
        shape = [1, 1, 1, 1]
        shape[axis] = new
        # Four sums and no product of matrices: a resize is not one of the network's multiply-adds.
        x = sum(
            jnp.take(x, places[:, tap], axis=axis)
            * jnp.asarray(weights[:, tap], jnp.float32).reshape(shape)
            for tap in range(4)
        )
    return x.astype(images.dtype)
