"""Learned positions on another grid of patches.

Tested in tests/models/encoder_test.py and tests/models/vit_test.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# The cubic convolution of PyTorch without antialias, and what facebookresearch/dinov2 adds to a
# size before it divides by the old one.
CUBIC, OFFSET = -0.75, 0.1


def resize_positions(
    positions: Float[Array, "1 n d"],
    old: tuple[int, int],
    new: tuple[int, int],
    rule: str = "antialias",
) -> Float[Array, "1 m d"]:
    """Learned positions of a grid, bicubically interpolated to another grid.

    Args:
      positions: of the patches, in raster order.
      old: (rows, columns) that they are for.
      new: (rows, columns) that are wanted.
      rule: "antialias", as timm and DINOv2 with registers do; "dinov2", as facebookresearch/dinov2
        does without registers: no antialias, and steps that are a little too short.
    """
    if old == new:
        return positions
    grid = positions.reshape(1, *old, -1)
    if rule == "antialias":
        grid = jax.image.resize(grid, (1, *new, grid.shape[-1]), "bicubic", antialias=True)
    else:
        rows, columns = (cubic_steps(*sizes) for sizes in zip(old, new, strict=True))
        grid = jnp.einsum("ri,cj,bijd->brcd", rows, columns, grid, precision="highest")
    return grid.reshape(1, new[0] * new[1], -1)


def cubic_steps(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """The weights of `old` places in each of `new`, that lie at `(i + 0.5) / scale - 0.5`."""
    scale = (new + OFFSET) / old
    at = (np.arange(new) + 0.5) / scale - 0.5
    first = np.floor(at).astype(int)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        distance = np.abs(at - first - tap)
        near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
        far = CUBIC * (((distance - 5) * distance + 8) * distance - 4)
        # Beyond an edge its last place is repeated.
        place = np.clip(first + tap, 0, old - 1)
        np.add.at(weights, (np.arange(new), place), np.where(distance <= 1, near, far))
    return weights.astype(np.float32)
