"""How the networks of golden files are built here, a module for each family."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def unfilled(make: Callable[[], nnx.Module]) -> nnx.Module:
    """The network that `make` makes, zeros for its values: its tensors are read next.

    Drawing random ones compiles a program for each shape.
    """
    graphdef, state = nnx.split(nnx.eval_shape(make))
    return nnx.merge(
        graphdef, jax.tree.map(lambda x: jnp.asarray(np.zeros(x.shape, x.dtype)), state)
    )
