"""Dense outputs of a reduced set: a value for every patch of the input's grid.

Tested in tests/models/dense_test.py.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from evovit_jax.reduction.base import check_choice
from evovit_jax.reduction.tokens import gather, spread


def on_grid(
    x: Float[Array, "b n d"],
    source: Int[Array, "b p"],
    *,
    grid: tuple[int, int],
    dropped: str = "nearest",
) -> Float[Array, "b r c d"]:
    """The values of the tokens that hold the patches, on their grid.

    Args:
      x: values of the finished set.
      source: the token that holds each patch, in raster order; negative where it was dropped.
      grid: (rows, columns) of the patches.
      dropped: "nearest" gives a dropped patch the value of the nearest patch in the grid that was
        not dropped (of equally near ones the first in raster order); "zero" gives it zeros.

    Raises:
      UserError: `dropped` is another word.
    """
    check_choice("dropped", dropped, ("nearest", "zero"))
    if dropped == "nearest":
        source = gather(source, nearest_held(source >= 0, grid))
    return spread(x, source).reshape(x.shape[0], *grid, x.shape[-1])


def nearest_held(held: Bool[Array, "b p"], grid: tuple[int, int]) -> Int[Array, "b p"]:
    """For every patch the nearest one that is held, itself where it is."""
    y, x = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    squared = (y[:, None] - y[None]) ** 2 + (x[:, None] - x[None]) ** 2
    distance = jnp.where(held[:, None], jnp.asarray(squared, jnp.float32)[None], jnp.inf)
    return distance.argmin(axis=2).astype(jnp.int32)
