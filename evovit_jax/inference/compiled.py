"""A model as a compiled function of images, large batches in chunks that fit the caches."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.models.batch_norm import fuse

# Pixels at once on a CPU, whose caches hold the activations of so many: 8 images of 224 px, 2 of
# 384 px (docs/performance.md).
CPU_PIXELS = 8 * 224**2


def default_chunk(image_size: int) -> int | None:
    """Images of `image_size` px at once on this process's hardware; None for the whole batch."""
    return max(1, CPU_PIXELS // image_size**2) if jax.default_backend() == "cpu" else None


def chunked(function: Callable[[Array], Any], chunk: int | None) -> Callable[[Array], Any]:
    """`function` of a batch, computed `chunk` images at a time.

    Every array that it returns has the batch as its first dimension. What is left over when the
    batch does not divide is a chunk of its own. A batch that is sharded over several devices is
    left whole.
    """

    @functools.wraps(function)
    def run(images: Array) -> Any:
        n = len(images)
        if not chunk or n <= chunk or jax.sharding.get_abstract_mesh().size > 1:
            return function(images)
        whole = n - n % chunk
        parts = images[:whole].reshape(-1, chunk, *images.shape[1:])
        found = jax.lax.map(function, parts)
        found = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), found)
        if whole == n:
            return found
        rest = function(images[whole:])
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), found, rest)

    return run


def program(
    model: nnx.Module, *, chunk: int | None = None, reduction: dict | None = None
) -> tuple[Callable[[Any, Array], Array], Any]:
    """`logits(state, images)` to be jitted, and the state, batch norms folded into their layers."""
    graphdef, state = nnx.split(fuse(model))

    def logits(state: Any, images: Array) -> Array:
        return chunked(lambda x: nnx.merge(graphdef, state)(x, reduction=reduction)[0], chunk)(
            images
        )

    return logits, state


def jit_inference(
    model: nnx.Module, *, chunk: int | None = None, reduction: dict | None = None
) -> Callable[[Float[Array, "b h w c"]], Float[Array, "b k"]]:
    """`model` as a compiled function from normalised images to float32 logits.

    The parameters are those that the model has now. Each shape of images is compiled once.

    Args:
      model: of this library.
      chunk: images at once; 0 for the whole batch, None for `default_chunk`.
      reduction: settings of the reducer, by field.
    """
    chunk = default_chunk(model.config.image_size) if chunk is None else chunk
    logits, state = program(model, chunk=chunk, reduction=reduction)
    return functools.partial(jax.jit(logits), state)
