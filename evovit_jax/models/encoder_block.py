"""The block of the encoders: what they have beside a plain ViT's, each by a setting.

Tested in tests/models/encoder_test.py and by the golden files of the encoders.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.models.glu import PackedSwiGLU, SwiGLU
from evovit_jax.models.layers import Mlp
from evovit_jax.models.rotary import Rotation, rotation_of
from evovit_jax.models.self_attention import Attention
from evovit_jax.models.vit import Block
from evovit_jax.reduction.base import AttentionRequest, AttentionView
from evovit_jax.reduction.tokens import TokenSet


class QueryValueBias(nnx.Module):
    """One linear map to queries, keys and values, of which keys have no bias."""

    def __init__(self, linear: nnx.Linear):
        out = linear.kernel.shape[1]
        self.kernel, self.dtype = linear.kernel, linear.dtype
        self.q_bias = nnx.Param(jnp.zeros((out // 3,)))
        self.v_bias = nnx.Param(jnp.zeros((out // 3,)))

    @property
    def bias(self) -> Float[Array, "e"]:
        """The whole bias; of keys it is zero."""
        q, v = self.q_bias[...], self.v_bias[...]
        return jnp.concatenate([q, jnp.zeros_like(q), v])

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n e"]:
        """Queries, keys and values beside one another."""
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias.astype(self.dtype)
        return x.astype(self.dtype) @ kernel + bias[None, None]


class EncoderBlock(Block):
    """A block with rotary positions, a gated feed-forward, or another activation."""

    def __init__(self, config, number: int, *, rngs: nnx.Rngs):
        super().__init__(config, number, rngs=rngs)
        self.config = config

    def _attention(self, config, rngs: nnx.Rngs) -> Attention:
        attention = super()._attention(config, rngs)
        if config.qkv_bias and not config.key_bias:
            attention.qkv = QueryValueBias(attention.qkv)
        return attention

    def _feed_forward(self, config, rngs: nnx.Rngs) -> nnx.Module:
        settings = {"dtype": jnp.dtype(config.dtype), "rngs": rngs}
        if config.mlp == "mlp":
            settings["activation"] = config.activation
        kinds = {"mlp": Mlp, "packed_swiglu": PackedSwiGLU, "swiglu": SwiGLU}
        return kinds[config.mlp](config.embed_dim, config.mlp_width, **settings)

    def _rotation(self, tokens: TokenSet) -> Rotation | None:
        config = self.config
        if config.rope == "none":
            return None
        return rotation_of(
            config.rope,
            tokens.place,
            prefix=tokens.prefix,
            grid=tokens.grid,
            head_dim=config.embed_dim // config.num_heads,
            temperature=config.temperature,
            reference=config.reference_grid,
        )


@dataclasses.dataclass(frozen=True)
class RankedBlock:
    """A block that can show how its tokens rank in the network's pooling head.

    Attributes:
      block: itself.
      ranks: the pooling head's attention to tokens `[b, n, d]` after the block's attention.
    """

    block: Block
    ranks: Callable[[Float[Array, "b n d"]], Float[Array, "b h n"]]

    def attend(
        self, block: int, tokens: TokenSet, request: AttentionRequest
    ) -> tuple[TokenSet, AttentionView]:
        """As the block's, and the class row where it is to be the pooling head's."""
        tokens, view = self.block.attend(block, tokens, request)
        if request.score == "map" and "class_row" in request.needs:
            view = dataclasses.replace(view, class_row=self.ranks(tokens.x))
        return tokens, view

    def feed_forward(self, block: int, tokens: TokenSet) -> TokenSet:
        """As the block's."""
        return self.block.feed_forward(block, tokens)
