"""Attention of the class token alone to all tokens (Touvron et al., "CaiT", 2021).

VOLO's last blocks and CrossViT's fusion use it. Tested in tests/models/volo_test.py.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.models.attention import attend
from evovit_jax.models.layers import truncated_normal
from evovit_jax.reduction.base import AttentionRequest


class ClassAttention(nnx.Module):
    """Multi-head attention whose one query is the first token; `kv` is laid out `[k, v]`."""

    def __init__(self, dim: int, heads: int, *, qkv_bias: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        made = {"kernel_init": truncated_normal, "dtype": dtype, "rngs": rngs}
        self.q = nnx.Linear(dim, dim, use_bias=qkv_bias, **made)
        self.kv = nnx.Linear(dim, 2 * dim, use_bias=qkv_bias, **made)
        self.proj = nnx.Linear(dim, dim, **made)

    def __call__(
        self, x: Float[Array, "b n d"], bias: Float[Array, "b 1 1 n"] | None = None
    ) -> Float[Array, "b 1 d"]:
        """What the first token of `x` gathers; `bias` is added to the attention logits."""
        b, n, d = x.shape
        q = self.q(x[:, :1]).reshape(b, 1, self.heads, -1).swapaxes(1, 2)
        k, v = jnp.moveaxis(self.kv(x).reshape(b, n, 2, self.heads, -1), (2, 3), (0, 2))
        request = AttentionRequest(bias=bias)
        mixed, _ = attend(q, k, v, scale=self.scale, request=request, kernel="matmul")
        return self.proj(mixed.swapaxes(1, 2).reshape(b, 1, d))
