"""The speed of matmuls of a model's own shapes: what its share of the peak is measured against."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from flax import nnx

from evovit_jax.models.token_model import TokenModel
from evovit_jax.parallel import inference_program
from evovit_jax.reduction import token_counts

Shape = tuple[int, int, int]  # rows, inner dimension, columns


def matmul_shapes(model: nnx.Module, batch_size: int) -> set[Shape]:
    """The matmuls of a batch in the linear maps of the first and of the last block.

    A network without tokens has none.
    """
    if not isinstance(model, TokenModel):
        return set()
    blocks = [block for stage in model.stages for block in stage]
    counts = token_counts.count(model.reducer, model.grid)
    shapes = set()
    for i in (0, len(blocks) - 1):
        tokens = counts[i]
        for half, n in ((blocks[i].attn, tokens.attention), (blocks[i].mlp, tokens.feed_forward)):
            for _, layer in nnx.iter_modules(half):
                if isinstance(layer, nnx.Linear):
                    shapes.add((batch_size * n, *layer.kernel.shape))
    return shapes


def largest(shapes: Iterable[Shape], count: int = 6) -> list[Shape]:
    """The `count` largest; the fastest is among them."""
    return sorted(set(shapes), key=lambda s: (s[0] * s[1] * s[2], s), reverse=True)[:count]


def matmul(shape: Shape, dtype: str) -> Callable[[], jax.Array]:
    """A call that multiplies matrices of `shape`, and waits for the product."""
    rows, inner, columns = shape
    left, right = jax.random.split(jax.random.key(0))
    a = jax.random.normal(left, (rows, inner), jnp.dtype(dtype))
    b = jax.random.normal(right, (inner, columns), jnp.dtype(dtype))
    product = inference_program.jitted(jnp.matmul).lower(a, b).compile()
    return lambda: product(a, b).block_until_ready()


def operations(shape: Shape) -> int:
    """Floating-point operations of a matmul, two for a multiply-add."""
    return 2 * shape[0] * shape[1] * shape[2]
