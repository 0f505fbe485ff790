"""Graphs of patches: neighbours in the grid, patches that are alike, or both (see gtp.py).

tests/reduction/gtp_test.py tests them.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from evovit_jax.reduction.matching import products, unit
from evovit_jax.reduction.tokens import nearest_distances

GRAPHS = ("mixed", "semantic", "spatial")


@functools.partial(jax.tree_util.register_dataclass, data_fields=["weights"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Graph:
    """How patches propagate to each other, float32 `[b, p, p]`: from columns to rows."""

    weights: Float[Array, "b p p"]


def make_graph(
    patches: Float[Array, "b p d"], grid: tuple[int, int], kind: str, neighbours: int
) -> Graph:
    """The normalised adjacency of the patches; `kind` is one of `GRAPHS`."""
    p = grid[0] * grid[1]
    rows, cols = np.divmod(np.arange(p), grid[1])
    apart = np.maximum(abs(rows[:, None] - rows), abs(cols[:, None] - cols))
    linked = jnp.broadcast_to(jnp.asarray(apart == 1), (patches.shape[0], p, p))
    if kind != "spatial":
        direction = unit(patches)
        cosine = products(direction, direction)
        # The token itself is the nearest of all.
        k = min(neighbours + 1, p)
        least = -nearest_distances(-cosine, k)[..., -1:]
        near = (cosine >= least) & ~jnp.eye(p, dtype=bool)[None]
        linked = near if kind == "semantic" else near | linked
    linked = linked.astype(jnp.float32)
    degree = jnp.maximum(linked.sum(axis=2), 1.0) ** -0.5
    return Graph(degree[:, :, None] * linked * degree[:, None, :])
