"""The layers of LeViT (Graham et al., 2021), and its settings.

Every linear layer and convolution is followed by batch norm; `norm.fuse` folds it in.

Tested in tests/models/levit_test.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from evovit_jax.errors import UserError
from evovit_jax.models.attention import attend
from evovit_jax.models.batch_norm import LinearNorm, recomputed
from evovit_jax.models.config_checks import check_fields
from evovit_jax.models.layers import add_branch, truncated_normal
from evovit_jax.models.positions import resize_positions
from evovit_jax.reduction.base import AttentionRequest, AttentionView
from evovit_jax.reduction.tokens import TokenSet

PATCH_SIZE = 16  # pixels: the stem's four strides
STRIDE = 2  # of every subsampling


@dataclasses.dataclass(frozen=True)
class LeViTConfig:
    """Every setting of a LeViT.

    Attributes:
      image_size: side of the images, pixels; a multiple of 16.
      in_channels: channels of the images.
      num_classes: size of the logits.
      embed_dim: width of the tokens in each stage.
      key_dim: width of a head's queries and keys.
      num_heads: attention heads in each stage.
      depth: blocks of each stage.
      attn_ratio: width of a head's values over `key_dim`; at a subsampling twice that.
      mlp_ratio: hidden width of the MLP over the tokens'.
      class_token: a class token and learned positions instead of attention biases (Evo-LeViT).
      distilled: a second head, averaged with the first in inference.
      drop_path_rate: stochastic depth, the same in every block.
      freeze_norm: batch norm uses, and keeps, its running statistics in training too.
      dtype: compute dtype of matmuls; parameters, statistics, scores and logits stay float32.
      remat: what the backward pass recomputes: "none", "full", or "dots" (keeps matmul results).
      attention_kernel: "auto", "matmul" or "fused".
    """

    image_size: int = 224
    in_channels: int = 3
    num_classes: int = 1000
    embed_dim: tuple[int, ...] = (128, 256, 384)
    key_dim: int = 16
    num_heads: tuple[int, ...] = (4, 6, 8)
    depth: tuple[int, ...] = (2, 3, 4)
    attn_ratio: float = 2.0
    mlp_ratio: float = 2.0
    class_token: bool = False
    distilled: bool = True
    drop_path_rate: float = 0.0
    freeze_norm: bool = False
    dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "auto"

    def __post_init__(self):
        check_fields(self)
        if not len(self.embed_dim) == len(self.num_heads) == len(self.depth):
            raise UserError("embed_dim, num_heads and depth must have one number for each stage")
        if self.image_size % PATCH_SIZE:
            raise UserError(f"image_size {self.image_size} is not a multiple of {PATCH_SIZE}")

    def grids(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of patch tokens in each stage."""
        sides = [self.image_size // PATCH_SIZE]
        for _ in self.depth[1:]:
            sides.append(-(-sides[-1] // STRIDE))
        return tuple((side, side) for side in sides)

    def layer_settings(self, rngs: nnx.Rngs) -> dict:
        """What every layer with batch norm is made with."""
        return {"dtype": jnp.dtype(self.dtype), "frozen": self.freeze_norm, "rngs": rngs}


def bias_index(grid: tuple[int, int], stride: int = 1) -> Int[np.ndarray, "q k"]:
    """Which bias applies to a pair of places: by their distance along each axis.

    Queries are every `stride`-th row and column of `grid`, keys all places. The index is
    `|dy| * columns + |dx|`, and a bias exists for each place of the grid.
    """
    rows, columns = grid
    ys, xs = np.divmod(np.arange(rows * columns), columns)
    chosen = (ys % stride == 0) & (xs % stride == 0)
    dy = np.abs(ys[chosen][:, None] - ys[None])
    dx = np.abs(xs[chosen][:, None] - xs[None])
    return dy * columns + dx


def every_other(x: Float[Array, "b p d"], grid: tuple[int, int]) -> Float[Array, "b q d"]:
    """The tokens of a raster at every `STRIDE`-th row and column."""
    b, _, d = x.shape
    return x.reshape(b, *grid, d)[:, ::STRIDE, ::STRIDE].reshape(b, -1, d)


def after_hardswish(layer: LinearNorm, x: Array, *, train: bool) -> Array:
    """Every linear layer that is not the first of its branch follows a Hardswish."""
    return layer(jax.nn.hard_swish(x), train=train)


class Attention(nnx.Module):
    """LeViT's attention within a stage; `qkv` is laid out per head, [query, key, value]."""

    def __init__(self, config: LeViTConfig, stage: int, *, rngs: nnx.Rngs):
        dim, self.heads = config.embed_dim[stage], config.num_heads[stage]
        self.key_dim, self.value_dim = config.key_dim, int(config.attn_ratio * config.key_dim)
        self.kernel = config.attention_kernel
        made = config.layer_settings(rngs)
        self.qkv = LinearNorm(dim, self.heads * (2 * self.key_dim + self.value_dim), **made)
        self.proj = LinearNorm(self.heads * self.value_dim, dim, initial_scale=0.0, **made)
        self.grid = config.grids()[stage]
        if not config.class_token:
            self.attention_bias = nnx.Param(jnp.zeros((self.heads, self.grid[0] * self.grid[1])))

    def __call__(
        self, x: Float[Array, "b n d"], request: AttentionRequest, *, train: bool
    ) -> tuple[Float[Array, "b n d"], AttentionView]:
        """Attention over all tokens, and what `request` asks to see of it."""
        b, n, _ = x.shape
        qkv = self.qkv(x, train=train).reshape(b, n, self.heads, -1).swapaxes(1, 2)
        q, k, v = jnp.split(qkv, (self.key_dim, 2 * self.key_dim), axis=-1)
        bias = None
        if hasattr(self, "attention_bias"):
            bias = self.attention_bias[...][:, bias_index(self.grid)][None]
        scale = self.key_dim**-0.5
        mixed, view = attend(q, k, v, scale=scale, request=request, bias=bias, kernel=self.kernel)
        mixed = mixed.swapaxes(1, 2).reshape(b, n, -1)
        return after_hardswish(self.proj, mixed, train=train), view


class SubsampleAttention(nnx.Module):
    """Attention from every other row and column (and the class token) to all tokens."""

    def __init__(self, config: LeViTConfig, stage: int, *, rngs: nnx.Rngs):
        dim, out = config.embed_dim[stage], config.embed_dim[stage + 1]
        self.heads, self.key_dim = dim // config.key_dim, config.key_dim
        self.value_dim = int(2 * config.attn_ratio * config.key_dim)
        self.prefix = 1 if config.class_token else 0
        self.kernel = config.attention_kernel
        made = config.layer_settings(rngs)
        self.kv = LinearNorm(dim, self.heads * (self.key_dim + self.value_dim), **made)
        self.q = LinearNorm(dim, self.heads * self.key_dim, **made)
        self.proj = LinearNorm(self.heads * self.value_dim, out, **made)
        self.grid = config.grids()[stage]
        places = self.grid[0] * self.grid[1]
        if config.class_token:
            self.pos_embed = nnx.Param(truncated_normal(rngs.params(), (1, 1 + places, dim)))
        else:
            self.attention_bias = nnx.Param(jnp.zeros((self.heads, places)))

    def __call__(
        self,
        x: Float[Array, "b n d"],
        grid: tuple[int, int],
        request: AttentionRequest,
        *,
        train: bool,
    ) -> tuple[Float[Array, "b m e"], AttentionView]:
        """The tokens of the next stage, and what `request` asks to see of the attention."""
        bias = None
        if self.prefix:
            x = x + positions_for(self.pos_embed[...], self.grid, grid).astype(x.dtype)
        else:
            bias = self.attention_bias[...][:, bias_index(self.grid, STRIDE)][None]
        b, n, _ = x.shape
        kv = self.kv(x, train=train).reshape(b, n, self.heads, -1).swapaxes(1, 2)
        k, v = jnp.split(kv, (self.key_dim,), axis=-1)
        chosen = [x[:, : self.prefix], every_other(x[:, self.prefix :], grid)]
        q = self.q(jnp.concatenate(chosen, axis=1), train=train)
        q = q.reshape(b, -1, self.heads, self.key_dim).swapaxes(1, 2)
        scale = self.key_dim**-0.5
        mixed, view = attend(q, k, v, scale=scale, request=request, bias=bias, kernel=self.kernel)
        mixed = mixed.swapaxes(1, 2).reshape(b, q.shape[2], -1)
        return after_hardswish(self.proj, mixed, train=train), view


def positions_for(
    positions: Float[Array, "1 n d"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Array, "1 m d"]:
    """Positions of the class token and a grid, interpolated to another grid."""
    if old == new:
        return positions
    return jnp.concatenate([positions[:, :1], resize_positions(positions[:, 1:], old, new)], 1)


class Mlp(nnx.Module):
    """Two linear layers with Hardswish between them."""

    def __init__(self, config: LeViTConfig, stage: int, *, rngs: nnx.Rngs):
        dim, made = config.embed_dim[stage], config.layer_settings(rngs)
        self.fc1 = LinearNorm(dim, int(dim * config.mlp_ratio), **made)
        self.fc2 = LinearNorm(int(dim * config.mlp_ratio), dim, initial_scale=0.0, **made)

    def __call__(self, x: Float[Array, "b n d"], *, train: bool) -> Float[Array, "b n d"]:
        """The MLP of each token on its own."""
        return after_hardswish(self.fc2, self.fc1(x, train=train), train=train)


class Block(nnx.Module):
    """Attention and MLP, each with its residual; a reducer may step in between."""

    def __init__(self, config: LeViTConfig, stage: int, *, rngs: nnx.Rngs):
        self.attn = Attention(config, stage, rngs=rngs)
        self.mlp = Mlp(config, stage, rngs=rngs)
        self.drop_path_rate, self.remat = config.drop_path_rate, config.remat

    def attend(
        self, block: int, tokens: TokenSet, request: AttentionRequest
    ) -> tuple[TokenSet, AttentionView]:
        """The attention half of block number `block`, and what `request` asks to see of it."""

        def half(attn: Attention, x: Array) -> tuple[Array, AttentionView]:
            return attn(x, request, train=tokens.train)

        branch, view = recomputed(half, self.remat)(self.attn, tokens.x)
        return add_branch(tokens, branch, self.drop_path_rate, 2 * block), view

    def feed_forward(self, block: int, tokens: TokenSet) -> TokenSet:
        """The MLP half of block number `block`."""

        def half(mlp: Mlp, x: Array) -> Array:
            return mlp(x, train=tokens.train)

        branch = recomputed(half, self.remat)(self.mlp, tokens.x)
        return add_branch(tokens, branch, self.drop_path_rate, 2 * block + 1)


class Downsample(nnx.Module):
    """What lies between two stages: subsampling attention, then an MLP with its residual."""

    def __init__(self, config: LeViTConfig, stage: int, *, rngs: nnx.Rngs):
        self.attn = SubsampleAttention(config, stage, rngs=rngs)
        self.mlp = Mlp(config, stage + 1, rngs=rngs)
        self.drop_path_rate, self.remat = config.drop_path_rate, config.remat
        self.branch = 2 * sum(config.depth) + stage + 1  # after those of the blocks

    def attend(
        self, tokens: TokenSet, request: AttentionRequest
    ) -> tuple[Float[Array, "b m e"], AttentionView]:
        """The tokens of the next stage, and what `request` asks to see of the attention."""

        def half(attn: SubsampleAttention, x: Array) -> tuple[Array, AttentionView]:
            return attn(x, tokens.grid, request, train=tokens.train)

        return recomputed(half, self.remat)(self.attn, tokens.x)

    def feed_forward(self, tokens: TokenSet) -> TokenSet:
        """The MLP half."""

        def half(mlp: Mlp, x: Array) -> Array:
            return mlp(x, train=tokens.train)

        added = recomputed(half, self.remat)(self.mlp, tokens.x)
        return add_branch(tokens, added, self.drop_path_rate, self.branch)
