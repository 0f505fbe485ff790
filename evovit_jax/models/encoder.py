"""The image encoders that are used with their published weights: one ViT with settings.

DINOv2 (Oquab et al., 2023), with registers (Darcet et al., 2023), DINOv3 (Simeoni et al., 2025),
CLIP (Radford et al., 2021), SigLIP (Zhai et al., 2023) and SigLIP 2 (Tschannen et al., 2025), the
Perception Encoder (Bolya et al., 2025), MAE (He et al., 2021). Each has its table of names in a
file of its own; what they have beside a plain ViT's is a setting below.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.errors import UserError
from evovit_jax.models.activations import ACTIVATIONS
from evovit_jax.models.attention_pool import AttentionPool
from evovit_jax.models.encoder_block import EncoderBlock, RankedBlock
from evovit_jax.models.layers import PatchEmbed, as_float32, mean_of_patches, truncated_normal
from evovit_jax.models.outputs import Outputs
from evovit_jax.models.positions import resize_positions
from evovit_jax.models.rotary import TEMPERATURES
from evovit_jax.models.vit import Block, VisionTransformer, ViTConfig
from evovit_jax.reduction import Backbone
from evovit_jax.reduction.tokens import TokenSet


@dataclasses.dataclass(frozen=True)
class EncoderConfig(ViTConfig):
    """Settings of an encoder, beside those of a ViT.

    Attributes:
      class_token: whether there is one.
      reg_tokens: registers, learned tokens between the class token and the patches.
      learned_positions: whether patches have learned positions (and the class token and registers,
        with `class_position`).
      resizing: how positions are interpolated: "antialias", as timm does; "dinov2", as
        facebookresearch/dinov2 does without registers.
      rope: rotary positions: "none", "dinov3" or "axial" (the Perception Encoder's).
      rope_temperature: of these; by default the published one, 100 or 10,000.
      rope_reference: side, in patches, of the grid that axial coordinates are of; by default the
        grid of `image_size`.
      patch_bias: whether the patch embedding has a bias.
      pre_norm: whether tokens are normalised before the first block.
      key_bias: whether, with `qkv_bias`, keys have one too.
      mlp: "mlp"; "packed_swiglu", one matrix to both halves, whose widths together are `mlp_ratio`
        times `embed_dim`; "swiglu", two matrices.
      mlp_multiple: the width of the MLP is rounded up to a multiple of it.
      activation: of "mlp" and of the pooling head: "gelu", "gelu_tanh" or "quick_gelu".
      pool: what is classified: "token", the class token; "avg", the mean of the patches; "map",
        what an attention pool makes of all tokens.
      fc_norm: whether the last norm is after the pooling and not before; by default with "avg".
      map_heads: attention heads of the attention pool; by default the blocks'.
      map_mlp_ratio: hidden width of its MLP over `embed_dim`; by default the blocks'.
    """

    class_token: bool = True
    reg_tokens: int = 0
    learned_positions: bool = True
    resizing: str = "antialias"
    rope: str = "none"
    rope_temperature: float | None = None
    rope_reference: int | None = None
    patch_bias: bool = True
    pre_norm: bool = False
    key_bias: bool = True
    mlp: str = "mlp"
    mlp_multiple: int = 1
    activation: str = "gelu"
    fc_norm: bool | None = None
    map_heads: int | None = None
    map_mlp_ratio: float | None = None

    choices: ClassVar = {
        "pool": ("token", "avg", "map"),
        "resizing": ("antialias", "dinov2"),
        "rope": ("none", *TEMPERATURES),
        "mlp": ("mlp", "packed_swiglu", "swiglu"),
        "activation": tuple(ACTIVATIONS),
    }

    def __post_init__(self):
        super().__post_init__()
        at_least = {"reg_tokens": 0, "mlp_multiple": 1, "rope_reference": 1, "map_heads": 1}
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} must be {least} or more, got {value}")
        if self.distilled:
            raise UserError("an encoder has no distillation token; use a deit_*_distilled model")
        if self.pool == "token" and not self.class_token:
            raise UserError("pool=token needs a class token; use avg or map")
        if self.rope != "none" and self.embed_dim // self.num_heads % 4:
            raise UserError(
                f"rotary positions need heads of a multiple of 4 channels, got embed_dim "
                f"{self.embed_dim} and num_heads {self.num_heads}"
            )
        if self.pool == "map" and self.embed_dim % self.pool_heads:
            raise UserError(
                f"embed_dim {self.embed_dim} does not divide into map_heads {self.pool_heads}"
            )

    @property
    def prefix(self) -> int:
        """How many tokens come before those of the patches."""
        return self.class_token + self.reg_tokens

    @property
    def mlp_width(self) -> int:
        """Hidden width of the blocks' MLP."""
        width = int(self.embed_dim * self.mlp_ratio)
        if self.mlp == "packed_swiglu":
            width //= 2
        return math.ceil(width / self.mlp_multiple) * self.mlp_multiple

    @property
    def norm_after_pool(self) -> bool:
        """Whether the last norm is after the pooling."""
        return self.pool == "avg" if self.fc_norm is None else self.fc_norm

    @property
    def pool_heads(self) -> int:
        """Attention heads of the attention pool."""
        return self.num_heads if self.map_heads is None else self.map_heads

    @property
    def pool_width(self) -> int:
        """Hidden width of the attention pool's MLP."""
        ratio = self.mlp_ratio if self.map_mlp_ratio is None else self.map_mlp_ratio
        return int(self.embed_dim * ratio)

    @property
    def temperature(self) -> float:
        """Of the rotary positions."""
        return self.rope_temperature or TEMPERATURES[self.rope]

    @property
    def reference_grid(self) -> tuple[int, int]:
        """(rows, columns) that axial coordinates are of."""
        side = self.rope_reference or self.image_size // self.patch_size
        return (side, side)


class Encoder(VisionTransformer):
    """A flat vision transformer as the published encoders are, with a reducer.

    `model(images)` returns the logits, without classes the pooled features float32 `[b, d]`, and
    `Outputs`: `features` are all tokens after the last norm (after the last block with `fc_norm`),
    `pooled` what the head classifies.

    Methods of reduction that rank tokens do so, by default, by the class token's attention; where
    there is no class token (SigLIP) or where it learned nothing (`fc_norm`: MAE fine-tuned with
    mean pooling) by the attention that a token receives.
    """

    Config = EncoderConfig

    def _backbone(self) -> Backbone:
        config = self.config
        scores = ["class"] if config.class_token else []
        scores.insert(0 if config.norm_after_pool else len(scores), "received")
        scores += ["map"] if config.pool == "map" else []
        return dataclasses.replace(
            super()._backbone(),
            rotary=config.rope != "none",
            scores=(*scores, "key_norm", "shift"),
        )

    def _patch_embed(self, rngs: nnx.Rngs) -> nnx.Module:
        c = self.config
        settings = {"bias": c.patch_bias, "dtype": jnp.dtype(c.dtype), "rngs": rngs}
        return PatchEmbed(c.patch_size, c.in_channels, c.embed_dim, **settings)

    def _block(self, number: int, rngs: nnx.Rngs) -> Block:
        return EncoderBlock(self.config, number, rngs=rngs)

    def _add_tokens(self, rngs: nnx.Rngs) -> None:
        config = self.config
        dim = config.embed_dim
        if config.class_token:
            self.cls_token = nnx.Param(truncated_normal(rngs.params(), (1, 1, dim)))
        if config.reg_tokens:
            shape = (1, config.reg_tokens, dim)
            self.reg_token = nnx.Param(truncated_normal(rngs.params(), shape))
        if config.learned_positions:
            self._add_positions(rngs)
        if config.pre_norm:
            self.norm_pre = self._norm(rngs)

    def _add_heads(self, rngs: nnx.Rngs) -> None:
        c = self.config
        if c.norm_after_pool:
            self.fc_norm = self._norm(rngs)
        else:
            self.norm = self._norm(rngs)
        if c.pool == "map":
            self.attn_pool = AttentionPool(
                c.embed_dim,
                c.pool_heads,
                c.pool_width,
                epsilon=c.norm_eps,
                activation=c.activation,
                dtype=jnp.dtype(c.dtype),
                rngs=rngs,
            )
        self.head = self._head(rngs)

    def walked_stages(self) -> Sequence[Sequence[Block | RankedBlock]]:
        """All blocks, as one stage; with an attention pool they know how it ranks tokens."""
        if self.config.pool != "map":
            return self.stages
        ranks = lambda x: self.attn_pool.scores(self._normed(x))  # noqa: E731
        return [[RankedBlock(block, ranks) for block in self.blocks]]

    def _normed(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return x if self.config.norm_after_pool else self.norm(x)

    def embed(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b n d"]:
        """Class token, registers and patch tokens with their positions, in the compute dtype."""
        config = self.config
        if config.learned_positions and config.prefix:
            x = super().embed(images, train=train)
        else:
            x = self._embed_other(images, train=train)
        return self.norm_pre(x) if config.pre_norm else x

    def _embed_other(self, images: Float[Array, "b h w c"], *, train: bool) -> Array:
        """Tokens of a network without positions, or without a token before the patches."""
        dtype = jnp.dtype(self.config.dtype)
        if self.config.learned_positions:
            x = self.placed_patches(images, self.pos_embed[...], train=train)
        else:
            x = self.patch_embed(images.astype(dtype), train=train)
        first = [
            jnp.broadcast_to(token, (x.shape[0], *token.shape[1:])).astype(dtype)
            for token in self._prefix_tokens()
        ]
        return jnp.concatenate([*first, x], axis=1)

    def _prefix_tokens(self) -> list[Float[Array, "1 k d"]]:
        first = [self.cls_token[...]] if self.config.class_token else []
        return first + ([self.reg_token[...]] if self.config.reg_tokens else [])

    def resized(
        self, positions: Float[Array, "1 n d"], old: tuple[int, int], new: tuple[int, int]
    ) -> Float[Array, "1 m d"]:
        """Positions of the patches of one grid for another."""
        return resize_positions(positions, old, new, self.config.resizing)

    def classify(self, tokens: TokenSet) -> tuple[Float[Array, "b k"], Outputs]:
        """Logits, the tokens after the last norm, and the pooled features."""
        config = self.config
        tokens = tokens.replace(x=self._normed(tokens.x))
        if config.pool == "map":
            pooled = self.attn_pool(tokens)
        elif config.pool == "avg":
            pooled = mean_of_patches(tokens.replace(x=as_float32(tokens.x)))
        else:
            pooled = tokens.x[:, 0]
        if config.norm_after_pool:
            pooled = self.fc_norm(pooled)
        pooled = as_float32(pooled)
        return self.head(pooled), Outputs(tokens.x, pooled)
