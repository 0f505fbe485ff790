"""ViT and DeiT: flat vision transformers (Dosovitskiy et al., 2021; Touvron et al., 2021)."""

import dataclasses
import functools

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from evovit_jax.errors import UserError
from evovit_jax.models.config_checks import check_fields
from evovit_jax.models.layers import (
    Block,
    LayerNorm,
    PatchEmbed,
    resize_positions,
    truncated_normal,
)
from evovit_jax.models.outputs import Outputs
from evovit_jax.reduction import Backbone, create_reducer
from evovit_jax.reduction.tokens import TokenSet, check_tokens, start_tokens


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Every setting of a flat vision transformer.

    Attributes:
      image_size: side of the images that the positions are for, pixels; others are interpolated.
      patch_size: side of a patch, pixels.
      in_channels: channels of the images.
      num_classes: size of the logits.
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


class VisionTransformer(nnx.Module):
    """A flat vision transformer with a reducer.

    `model(images)` returns float32 logits `[batch, num_classes]` and `Outputs`.
    """

    Config = ViTConfig

    def __init__(self, config: ViTConfig, reduction=None, *, rngs: nnx.Rngs):
        self.config = config
        dim, dtype = config.embed_dim, jnp.dtype(config.dtype)
        self.prefix = 2 if config.distilled else 1
        side = config.image_size // config.patch_size
        self.grid = (side, side)

        def head() -> nnx.Linear:
            return nnx.Linear(dim, config.num_classes, kernel_init=truncated_normal, rngs=rngs)

        def norm() -> LayerNorm:
            return LayerNorm(dim, epsilon=config.norm_eps, dtype=dtype, rngs=rngs)

        self.patch_embed = self._patch_embed(rngs)
        self.cls_token = nnx.Param(truncated_normal(rngs.params(), (1, 1, dim)))
        if config.distilled:
            self.dist_token = nnx.Param(truncated_normal(rngs.params(), (1, 1, dim)))
        positions = side * side + (self.prefix if config.class_position else 0)
        self.pos_embed = nnx.Param(truncated_normal(rngs.params(), (1, positions, dim)))
        self.blocks = nnx.List(self._block(i, rngs) for i in range(config.depth))
        self.norm, self.head = norm(), head()
        if config.distilled:
            self.head_dist = head()
        if config.pool == "avg":
            self.norm_cls, self.head_cls = norm(), head()
        backbone = Backbone(
            depth=config.depth,
            dim=(dim,),
            heads=(config.num_heads,),
            grid=self.grid,
            prefix=self.prefix,
            stage_depths=(config.depth,),
        )
        self.reducer = create_reducer(reduction, backbone, rngs=rngs)

    def _patch_embed(self, rngs: nnx.Rngs) -> nnx.Module:
        c = self.config
        return PatchEmbed(
            c.patch_size, c.in_channels, c.embed_dim, dtype=jnp.dtype(c.dtype), rngs=rngs
        )

    def _block(self, i: int, rngs: nnx.Rngs) -> Block:
        c = self.config
        return Block(
            c.embed_dim,
            c.num_heads,
            mlp_ratio=c.mlp_ratio,
            qkv_bias=c.qkv_bias,
            drop_path_rate=c.drop_path_rate * i / max(1, c.depth - 1),
            init_values=c.init_values,
            skip_lam=c.skip_lam,
            norm_eps=c.norm_eps,
            dtype=jnp.dtype(c.dtype),
            remat=c.remat,
            attention_kernel=c.attention_kernel,
            rngs=rngs,
        )

    def embed(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b n d"]:
        """Class and patch tokens with their positions, in the compute dtype."""
        dtype = jnp.dtype(self.config.dtype)
        grid = self.patch_embed.grid(*images.shape[1:3])
        x = self.patch_embed(images.astype(dtype), train=train)
        in_positions = self.prefix if self.config.class_position else 0
        positions = self.pos_embed[...]
        patch_positions = resize_positions(positions[:, in_positions:], self.grid, grid)
        x = x + patch_positions.astype(dtype)
        tokens = [self.cls_token[...]] + ([self.dist_token[...]] if self.prefix == 2 else [])
        classes = jnp.concatenate(tokens, axis=1)
        if in_positions:
            classes = classes + positions[:, :in_positions]
        classes = jnp.broadcast_to(classes, (x.shape[0], *classes.shape[1:])).astype(dtype)
        return jnp.concatenate([classes, x], axis=1)

    def __call__(
        self,
        images: Float[Array, "b h w c"],
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
        reduction: dict | None = None,
    ) -> tuple[Float[Array, "b k"], Outputs]:
        """Logits and everything else of one pass.

        Args:
          images: normalised, channels last.
          train: a training pass: stochastic depth, auxiliary heads, the reducer's losses.
          key: where everything random of the pass comes from; None switches it off.
          reduction: settings of the reducer for this pass, by field.
        """
        grid = self.patch_embed.grid(*images.shape[1:3])
        reducer = self.reducer.override(**(reduction or {}))
        x = self.embed(images, train=train)
        tokens = start_tokens(x, prefix=self.prefix, grid=grid, train=train, key=key)
        check = functools.partial(check_tokens, dim=self.config.embed_dim, inputs=tokens.x.shape[1])
        tokens = check(reducer.start(tokens))
        maps = []
        for i, block in enumerate(self.blocks):
            tokens = check(reducer.before_block(i, tokens))
            tokens, attention = block.attend(i, tokens, reducer)
            tokens = check(reducer.after_attention(i, tokens, attention))
            maps.append(tokens.source)
            tokens = block.feed_forward(i, tokens)
            tokens = check(reducer.after_block(i, tokens))
        tokens = check(reducer.finish(tokens))
        logits, features, aux_logits, aux = self._classify(tokens)
        return logits, Outputs(
            features=features,
            token_maps=(*maps, tokens.source),
            aux_logits=aux_logits if train else {},
            losses=reducer.losses(tokens) if train else {},
            aux={**aux, **reducer.aux(tokens)},
        )

    def _classify(
        self, tokens: TokenSet
    ) -> tuple[Array, Array, dict[str, Array], dict[str, Array]]:
        """Logits `[b, k]`, normalised features `[b, n, d]`, auxiliary logits and others by name."""
        config = self.config
        if config.pool == "avg":
            pooled = self.head(as_float32(self.norm(mean_of_patches(tokens))))
            on_class = self.head_cls(as_float32(self.norm_cls(tokens.x[:, 0])))
            return pooled, self.norm(tokens.x), {"cls": on_class}, {}
        features = self.norm(tokens.x)
        logits = self.head(as_float32(features[:, 0]))
        if config.distilled:
            distilled = self.head_dist(as_float32(features[:, 1]))
            if not tokens.train:
                logits = (logits + distilled) / 2
            return logits, features, {"dist": distilled}, {}
        return logits, features, {}, {}


def as_float32(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Logits and losses are float32 whatever the compute dtype."""
    return x.astype(jnp.float32)


def mean_of_patches(tokens: TokenSet) -> Float[Array, "b d"]:
    """The mean over the input's patches: merged tokens count by size, masked ones not at all."""
    x = tokens.x[:, tokens.prefix :]
    if tokens.sizes is None and tokens.mask is None:
        return x.mean(axis=1)
    weights = jnp.ones(tokens.x.shape[:2]) if tokens.sizes is None else tokens.sizes
    if tokens.mask is not None:
        weights = jnp.where(tokens.mask, weights, 0.0)
    weights = weights[:, tokens.prefix :]
    # Where a mask drops every patch of an image, its mean is zero.
    weights = weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1.0)
    return jnp.einsum("bp,bpd->bd", weights.astype(x.dtype), x)
