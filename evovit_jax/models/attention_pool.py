"""Multihead attention pooling (MAP): a learned query asks all tokens, then an MLP.

Zhai et al., "Scaling Vision Transformers", CVPR 2022 (Section 2.2); in SigLIP and the Perception
Encoder. Tested in tests/models/encoder_test.py.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.models.layers import LayerNorm, Mlp, as_float32, truncated_normal
from evovit_jax.reduction.attention_request import key_mask
from evovit_jax.reduction.merging import log_sizes
from evovit_jax.reduction.tokens import TokenSet


class AttentionPool(nnx.Module):
    """One vector of all tokens, class tokens and registers included."""

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        epsilon: float,
        activation: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        settings = {"kernel_init": truncated_normal, "dtype": dtype, "rngs": rngs}
        self.heads = heads
        self.latent = nnx.Param(truncated_normal(rngs.params(), (1, 1, dim)))
        self.q = nnx.Linear(dim, dim, **settings)
        self.kv = nnx.Linear(dim, 2 * dim, **settings)
        self.proj = nnx.Linear(dim, dim, **settings)
        self.norm = LayerNorm(dim, epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, hidden, dtype=dtype, activation=activation, rngs=rngs)

    def weights(self, keys: Float[Array, "b n d"], bias: Array | None) -> Float[Array, "b h n"]:
        """The query's attention to the tokens of these `keys`, float32."""
        b, n, d = keys.shape
        q = self.q(self.latent[...]).reshape(self.heads, -1) * (d // self.heads) ** -0.5
        keys = keys.reshape(b, n, self.heads, -1)
        logits = jnp.einsum("hc,bnhc->bhn", q, keys, preferred_element_type=jnp.float32)
        return jax.nn.softmax(logits if bias is None else logits + bias, axis=-1)

    def scores(self, x: Float[Array, "b n d"]) -> Float[Array, "b h n"]:
        """The query's attention to the normalised tokens `x`, float32: what rank them."""
        return self.weights(self._halves(x)[0], None)

    def _halves(self, x: Float[Array, "b n d"]) -> tuple[Array, Array]:
        keys, values = jnp.split(self.kv(x), 2, axis=-1)
        return keys, values

    def __call__(self, tokens: TokenSet) -> Float[Array, "b d"]:
        """The pooled tokens, float32; merged tokens count by size, masked ones not at all."""
        b, n, d = tokens.x.shape
        bias = log_sizes(tokens)
        if tokens.mask is not None:
            mask = key_mask(tokens.mask)
            bias = mask if bias is None else bias + mask
        keys, values = self._halves(tokens.x)
        weights = self.weights(keys, None if bias is None else bias[:, 0])
        values = values.reshape(b, n, self.heads, -1)
        mixed = jnp.einsum("bhn,bnhc->bhc", weights.astype(values.dtype), values)
        x = self.proj(mixed.reshape(b, d))
        return as_float32(x + self.mlp(self.norm(x)))
