"""A classifier of what learned queries gather of the tokens (see cropr.py).

tests/reduction/cropr_test.py tests it.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class Mlp(nnx.Module):
    """Two linear maps with GELU between them."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.fc1, self.fc2 = (
            nnx.Linear(dim, 4 * dim, rngs=rngs),
            nnx.Linear(4 * dim, dim, rngs=rngs),
        )

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """The MLP of each token."""
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class CrossAttention(nnx.Module):
    """Learned queries over the tokens, which are their own keys and values."""

    def __init__(self, dim: int, queries: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.queries = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, queries, dim)))
        if heads > 1:
            self.proj = nnx.Linear(dim, dim, rngs=rngs)
        self.mlp_norm, self.mlp = nnx.LayerNorm(dim, epsilon=1e-6, rngs=rngs), Mlp(dim, rngs=rngs)

    def scores(self, x: Float[Array, "b n d"]) -> Float[Array, "b n"]:
        """The scalar products of each token with all queries, added up."""
        query = self.queries[...].sum(axis=(0, 1))
        return jnp.einsum("bnd,d->bn", x, query, precision="highest")

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b q d"]:
        """What the queries gather of float32 tokens."""
        b, n, d = x.shape
        width = d // self.heads
        query = self.queries[0].reshape(-1, self.heads, width) * width**-0.5
        split = x.reshape(b, n, self.heads, width)
        weights = jax.nn.softmax(jnp.einsum("qhc,bnhc->bhqn", query, split, precision="highest"))
        mixed = jnp.einsum("bhqn,bnhc->bqhc", weights, split, precision="highest")
        mixed = mixed.reshape(b, -1, d)
        mixed = self.proj(mixed) if self.heads > 1 else mixed
        return mixed + self.mlp(self.mlp_norm(mixed))


class Head(nnx.Module):
    """Logits of the mean of the queries."""

    def __init__(self, dim: int, classes: int, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(dim, epsilon=1e-5, rngs=rngs)
        self.head = nnx.Linear(dim, classes, rngs=rngs)

    def __call__(self, x: Float[Array, "b q d"]) -> Float[Array, "b k"]:
        """The logits."""
        return self.head(self.norm(x.mean(axis=1)))
