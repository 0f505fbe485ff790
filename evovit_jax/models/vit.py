"""ViT and DeiT: flat vision transformers (Dosovitskiy et al., 2021; Touvron et al., 2021)."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.errors import UserError
from evovit_jax.models.attention import shares
from evovit_jax.models.config_checks import check_fields
from evovit_jax.models.layers import (
    LayerNorm,
    LayerScale,
    Mlp,
    PatchEmbed,
    add_branch,
    as_float32,
    mean_of_patches,
    rematerialised,
    truncated_normal,
)
from evovit_jax.models.outputs import Outputs
from evovit_jax.models.rotary import Rotation
from evovit_jax.models.self_attention import Attention
from evovit_jax.models.token_model import TokenModel
from evovit_jax.reduction import Backbone, create_reducer
from evovit_jax.reduction.base import AttentionRequest, AttentionView
from evovit_jax.reduction.tokens import TokenSet


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Every setting of a flat vision transformer.

    Attributes:
      image_size: side of the images that the positions are for, pixels; others are interpolated.
      patch_size: side of a patch, pixels.
      in_channels: channels of the images.
      num_classes: size of the logits; 0 for no head, the logits are then the pooled features.
      embed_dim: width of the tokens.
      depth: number of blocks.
      num_heads: attention heads of a block.
      mlp_ratio: hidden width of the MLP over `embed_dim`.
      qkv_bias: whether queries, keys and values have biases.
      distilled: a second class token with its own head (distilled DeiT); inference averages both.
      class_position: whether class tokens have positions (not in DeiT-III).
      init_values: LayerScale's initial value, None for no LayerScale.
      pool: "token" classifies the class token; "avg" the mean of the patch tokens, and the class
        token has an auxiliary head in training (Evo-ViT).
      skip_lam: what residual branches are divided by (LV-ViT).
      drop_path_rate: stochastic depth of the last block; it rises linearly from 0 at the first.
      norm_eps: epsilon of every LayerNorm.
      dtype: compute dtype of matmuls; parameters, scores, softmax and logits stay float32.
      remat: what the backward pass recomputes: "none", "full", or "dots" (keeps matmul results).
      attention_kernel: "auto", "matmul" or "fused".
    """

    image_size: int = 224
    patch_size: int = 16
    in_channels: int = 3
    num_classes: int = 1000
    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    distilled: bool = False
    class_position: bool = True
    init_values: float | None = None
    pool: str = "token"
    skip_lam: float = 1.0
    drop_path_rate: float = 0.0
    norm_eps: float = 1e-6
    dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "auto"

    def __post_init__(self):
        check_fields(self)
        if self.embed_dim % self.num_heads:
            raise UserError(
                f"embed_dim {self.embed_dim} does not divide into num_heads {self.num_heads}"
            )
        if self.image_size % self.patch_size:
            raise UserError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )

    @property
    def prefix(self) -> int:
        """How many tokens come before those of the patches."""
        return 2 if self.distilled else 1


class Block(nnx.Module):
    """A pre-norm transformer block, in the two halves between which a reducer may step in."""

    def __init__(self, config: ViTConfig, number: int, *, rngs: nnx.Rngs):
        dim, dtype = config.embed_dim, jnp.dtype(config.dtype)
        self.drop_path_rate = config.drop_path_rate * number / max(1, config.depth - 1)
        self.skip_lam, self.remat = config.skip_lam, config.remat
        self.norm1 = LayerNorm(dim, epsilon=config.norm_eps, dtype=dtype, rngs=rngs)
        self.attn = self._attention(config, rngs)
        self.norm2 = LayerNorm(dim, epsilon=config.norm_eps, dtype=dtype, rngs=rngs)
        self.mlp = self._feed_forward(config, rngs)
        initial = config.init_values
        self.ls1 = None if initial is None else LayerScale(dim, initial, dtype=dtype)
        self.ls2 = None if initial is None else LayerScale(dim, initial, dtype=dtype)

    def _attention(self, config: ViTConfig, rngs: nnx.Rngs) -> Attention:
        return Attention(
            config.embed_dim,
            config.num_heads,
            qkv_bias=config.qkv_bias,
            dtype=jnp.dtype(config.dtype),
            kernel=config.attention_kernel,
            rngs=rngs,
        )

    def _feed_forward(self, config: ViTConfig, rngs: nnx.Rngs) -> nnx.Module:
        hidden = int(config.embed_dim * config.mlp_ratio)
        return Mlp(config.embed_dim, hidden, dtype=jnp.dtype(config.dtype), rngs=rngs)

    def _rotation(self, tokens: TokenSet) -> Rotation | None:
        """How the attention turns queries and keys; here not at all."""
        del tokens

    def _add(
        self, tokens: TokenSet, branch: Array, scale: LayerScale | None, number: int
    ) -> TokenSet:
        """The tokens plus residual branch number `number` of the network."""
        branch = branch if scale is None else scale(branch)
        branch = branch if self.skip_lam == 1 else branch / self.skip_lam
        return add_branch(tokens, branch, self.drop_path_rate, number)

    def attend(
        self, block: int, tokens: TokenSet, request: AttentionRequest
    ) -> tuple[TokenSet, AttentionView]:
        """The attention half of block number `block`, and what `request` asks to see of it."""
        rotation = self._rotation(tokens)
        attention = functools.partial(
            self.attn, request=request, rotation=rotation, norm=self.norm1
        )
        branch = rematerialised(attention, self.remat)
        mixed, view = branch(tokens.x)
        tokens = tokens.first(request.queries)
        after = self._add(tokens, mixed, self.ls1, 2 * block)
        if request.score == "shift" and "class_row" in request.needs:
            view = dataclasses.replace(view, class_row=attention_shift(tokens.x, after.x))
        return after, view

    def feed_forward(self, block: int, tokens: TokenSet) -> TokenSet:
        """The MLP half of block number `block`."""
        branch = rematerialised(lambda x: self.mlp(self.norm2(x)), self.remat)
        return self._add(tokens, branch(tokens.x), self.ls2, 2 * block + 1)


def attention_shift(
    before: Float[Array, "b n d"], after: Float[Array, "b n d"]
) -> Float[Array, "b 1 n"]:
    """How far each token moved, in shares of all; the one head of a class row."""
    moves = after.astype(jnp.float32) - before.astype(jnp.float32)
    return shares(jnp.linalg.norm(moves, axis=-1))[:, None]


class Unchanged(nnx.Module):
    """The head of a network without classes: its logits are the pooled features."""

    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b d"]:
        """`x`."""
        return x


class VisionTransformer(TokenModel):
    """A flat vision transformer with a reducer."""

    Config = ViTConfig
    smoke: ClassVar = {
        "image_size": 32,
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 4,
        "num_heads": 3,
    }

    def __init__(self, config: ViTConfig, reduction=None, *, rngs: nnx.Rngs):
        self.config, self.prefix = config, config.prefix
        side = config.image_size // config.patch_size
        self.grid = (side, side)
        self.patch_embed = self._patch_embed(rngs)
        self._add_tokens(rngs)
        self.blocks = nnx.List(self._block(i, rngs) for i in range(config.depth))
        self._add_heads(rngs)
        self.reducer = create_reducer(reduction, self._backbone(), rngs=rngs)

    def _backbone(self) -> Backbone:
        """What a reducer may know of this network."""
        config = self.config
        return Backbone(
            depth=config.depth,
            dim=(config.embed_dim,),
            heads=(config.num_heads,),
            grid=self.grid,
            prefix=self.prefix,
            stage_depths=(config.depth,),
            classes=config.num_classes,
            scores=("class", "received", "key_norm", "shift"),
            pools_patches=config.pool != "token",
        )

    def _block(self, number: int, rngs: nnx.Rngs) -> Block:
        return Block(self.config, number, rngs=rngs)

    def _add_tokens(self, rngs: nnx.Rngs) -> None:
        """The class tokens, and the positions of all tokens that have one."""
        config = self.config
        dim = config.embed_dim
        self.cls_token = nnx.Param(truncated_normal(rngs.params(), (1, 1, dim)))
        if config.distilled:
            self.dist_token = nnx.Param(truncated_normal(rngs.params(), (1, 1, dim)))
        self._add_positions(rngs)

    def _add_positions(self, rngs: nnx.Rngs) -> None:
        rows, columns = self.grid
        count = rows * columns + (self.prefix if self.config.class_position else 0)
        shape = (1, count, self.config.embed_dim)
        self.pos_embed = nnx.Param(truncated_normal(rngs.params(), shape))

    def _add_heads(self, rngs: nnx.Rngs) -> None:
        """The last norm and the heads."""
        config = self.config
        self.norm, self.head = self._norm(rngs), self._head(rngs)
        if config.distilled:
            self.head_dist = self._head(rngs)
        if config.pool == "avg":
            self.norm_cls, self.head_cls = self._norm(rngs), self._head(rngs)

    def _norm(self, rngs: nnx.Rngs) -> LayerNorm:
        c = self.config
        return LayerNorm(c.embed_dim, epsilon=c.norm_eps, dtype=jnp.dtype(c.dtype), rngs=rngs)

    def _head(self, rngs: nnx.Rngs) -> Callable[[Array], Array]:
        c = self.config
        if not c.num_classes:
            return Unchanged()
        return nnx.Linear(c.embed_dim, c.num_classes, kernel_init=truncated_normal, rngs=rngs)

    def _patch_embed(self, rngs: nnx.Rngs) -> nnx.Module:
        c = self.config
        return PatchEmbed(
            c.patch_size, c.in_channels, c.embed_dim, dtype=jnp.dtype(c.dtype), rngs=rngs
        )

    @property
    def read_tokens(self) -> int | None:
        """The class tokens, where the head does not read the patches."""
        return self.prefix if self.config.pool == "token" else None

    @property
    def stages(self) -> list[Sequence[Block]]:
        """All blocks, as one stage."""
        return [self.blocks]

    def embed(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b n d"]:
        """Class and patch tokens with their positions, in the compute dtype."""
        in_positions = self.prefix if self.config.class_position else 0
        positions = self.pos_embed[...]
        x = self.placed_patches(images, positions[:, in_positions:], train=train)
        classes = jnp.concatenate(self._prefix_tokens(), axis=1)
        if in_positions:
            classes = classes + positions[:, :in_positions]
        classes = jnp.broadcast_to(classes, (x.shape[0], *classes.shape[1:])).astype(x.dtype)
        return jnp.concatenate([classes, x], axis=1)

    def _prefix_tokens(self) -> list[Float[Array, "1 k d"]]:
        """The tokens before those of the patches."""
        return [self.cls_token[...]] + ([self.dist_token[...]] if self.config.distilled else [])

    def classify(self, tokens: TokenSet) -> tuple[Float[Array, "b k"], Outputs]:
        """Logits, normalised features, and the logits "cls" or "dist" of a second head."""
        config = self.config
        features = self.norm(tokens.x)
        if config.pool == "avg":
            pooled = as_float32(self.norm(mean_of_patches(tokens)))
            on_class = self.head_cls(as_float32(self.norm_cls(tokens.x[:, 0])))
            return self.head(pooled), Outputs(features, pooled, aux_logits={"cls": on_class})
        pooled = as_float32(features[:, 0])
        logits = self.head(pooled)
        if not config.distilled:
            return logits, Outputs(features, pooled)
        distilled = self.head_dist(as_float32(features[:, 1]))
        if not tokens.train:
            logits = (logits + distilled) / 2
        return logits, Outputs(features, pooled, aux_logits={"dist": distilled})
