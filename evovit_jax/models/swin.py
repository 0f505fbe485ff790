"""Swin Transformer (Liu et al., 2021, arXiv:2103.14030): attention within windows of a pyramid.

Windows, and their shift in every other block, are in windows.py. A learned bias for each difference
between two places of a window stands in for positions, so that images of any size will do that
divides into patches. Between stages 2x2 places become one by a linear map (patch merging).

A window needs a token in every place of the map, so that the only reduction is DynamicViT's on maps
(`reduction/dynamic_spatial.py`), which gives some positions a cheaper feed-forward.
"""

import dataclasses
import itertools
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.models.attention import attend
from evovit_jax.models.batch_norm import torch_uniform
from evovit_jax.models.config_checks import check_fields
from evovit_jax.models.grid_block import GridBlock
from evovit_jax.models.layers import (
    LayerNorm,
    as_float32,
    patch_grid,
    rematerialised,
    truncated_normal,
)
from evovit_jax.models.outputs import Outputs, patch_map
from evovit_jax.models.pyramid import check_stages, of_blocks, sides
from evovit_jax.models.registry import Entry, at_crop
from evovit_jax.models.token_model import TokenModel
from evovit_jax.models.windows import Windows, table_rows
from evovit_jax.reduction import Backbone, create_reducer
from evovit_jax.reduction.base import NOTHING_ASKED, AttentionRequest, AttentionView
from evovit_jax.reduction.map_blocks import MapBlocks, with_feed_forward
from evovit_jax.reduction.tokens import TokenSet

STRIDE = 2  # between two stages


@dataclasses.dataclass(frozen=True)
class SwinConfig:
    """Every setting of a Swin Transformer.

    Attributes:
      image_size: side of the images that it was made for, pixels, or their height and width; others
        work. A stage whose map is then smaller than a window has biases for that map's size only.
      patch_size: side of a patch, pixels.
      in_channels: channels of the images.
      num_classes: size of the logits.
      embed_dim: width of the tokens in each stage.
      depth: blocks of each stage.
      num_heads: attention heads in each stage.
      window_size: side of a window, in places of the map.
      mlp_ratio: hidden width of the MLP over the tokens'.
      qkv_bias: whether queries, keys and values have biases.
      drop_path_rate: stochastic depth of the last block; it rises linearly from 0 at the first.
      norm_eps: epsilon of every LayerNorm.
      dtype: compute dtype of matmuls; parameters, scores, softmax and logits stay float32.
      remat: what the backward pass recomputes: "none", "full", or "dots" (keeps matmul results).
      attention_kernel: "auto", "matmul" or "fused"; the biases leave it to matmuls.
    """

    image_size: int | tuple[int, int] = 224
    patch_size: int = 4
    in_channels: int = 3
    num_classes: int = 1000
    embed_dim: tuple[int, ...] = (96, 192, 384, 768)
    depth: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    drop_path_rate: float = 0.0
    norm_eps: float = 1e-5
    dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "auto"

    def __post_init__(self):
        check_fields(self)
        check_stages(self, "embed_dim", "depth", "num_heads")
        self.windows()

    def windows(self) -> list[tuple[int, int]]:
        """(rows, columns) of the windows in each stage.

        Raises:
          UserError: the images do not divide into patches.
        """
        rows, columns = patch_grid(*sides(self.image_size), self.patch_size)
        found = []
        for _ in self.depth:
            found.append((min(rows, self.window_size), min(columns, self.window_size)))
            rows, columns = -(-rows // 2), -(-columns // 2)
        return found


class PatchEmbed(nnx.Module):
    """Patches beside one another through one linear map, then LayerNorm."""

    def __init__(self, config: SwinConfig, *, rngs: nnx.Rngs):
        size, dim, dtype = config.patch_size, config.embed_dim[0], jnp.dtype(config.dtype)
        self.patch_size = size
        self.proj = nnx.Conv(
            config.in_channels,
            dim,
            (size, size),
            strides=size,
            padding="VALID",
            kernel_init=torch_uniform,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = LayerNorm(dim, epsilon=config.norm_eps, dtype=dtype, rngs=rngs)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches of an image of that size."""
        return patch_grid(height, width, self.patch_size)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b p d"]:
        """Patch tokens in raster order.

        Raises:
          UserError: the images do not divide into patches.
        """
        self.grid(*images.shape[1:3])
        x = self.proj(images)
        return self.norm(x.reshape(x.shape[0], -1, x.shape[-1]))


class PatchMerging(nnx.Module):
    """Every 2x2 places of a map become one: their channels side by side, LayerNorm, linear map."""

    def __init__(self, config: SwinConfig, dim: int, out: int, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.norm = LayerNorm(4 * dim, epsilon=config.norm_eps, dtype=dtype, rngs=rngs)
        self.reduction = nnx.Linear(
            4 * dim, out, use_bias=False, kernel_init=truncated_normal, dtype=dtype, rngs=rngs
        )

    def attend(
        self, tokens: TokenSet, request: AttentionRequest
    ) -> tuple[Float[Array, "b m e"], AttentionView]:
        """The tokens of the next stage; zeros stand in for what an odd last row or column lacks."""
        del request
        x = patch_map(tokens)
        odd = ((0, side % STRIDE) for side in tokens.grid)
        x = jnp.pad(x, ((0, 0), *odd, (0, 0)))
        # Down the left column first, as in the official code.
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        merged = self.reduction(self.norm(jnp.concatenate(corners, axis=-1)))
        return merged.reshape(merged.shape[0], -1, merged.shape[-1]), AttentionView()

    def feed_forward(self, tokens: TokenSet) -> TokenSet:
        """Those tokens."""
        return tokens


class WindowAttention(nnx.Module):
    """Attention of each place to those of its window, with a learned bias for their difference."""

    def __init__(self, config: SwinConfig, stage: int, *, shifted: bool, rngs: nnx.Rngs):
        dim, self.heads = config.embed_dim[stage], config.num_heads[stage]
        self.window, self.shifted = config.windows()[stage], shifted
        self.scale, self.kernel = (dim // self.heads) ** -0.5, config.attention_kernel
        made = {"kernel_init": truncated_normal, "dtype": jnp.dtype(config.dtype), "rngs": rngs}
        self.qkv = nnx.Linear(dim, 3 * dim, use_bias=config.qkv_bias, **made)
        self.proj = nnx.Linear(dim, dim, **made)
        table = truncated_normal(rngs.params(), (table_rows(self.window), self.heads))
        self.relative_position_bias_table = nnx.Param(table)

    def __call__(self, x: Float[Array, "b n d"], grid: tuple[int, int]) -> Float[Array, "b n d"]:
        """Attention over a map; places beyond it are keys like others, as in timm."""
        b, n, d = x.shape
        windows = Windows.of(grid, self.window, shifted=self.shifted)
        qkv = self.qkv(windows.split(x.reshape(b, *grid, d)))
        _, count, places, _ = qkv.shape
        qkv = qkv.reshape(b, count, places, 3, self.heads, -1).transpose(3, 0, 1, 4, 2, 5)
        # A window's head is a head of its image: the images stay on the devices that have them.
        q, k, v = qkv.reshape(3, b, count * self.heads, places, -1)
        bias = self._bias(windows)
        mixed, _ = attend(
            q, k, v, scale=self.scale, request=NOTHING_ASKED, bias=bias, kernel=self.kernel
        )
        mixed = mixed.reshape(b, count, self.heads, places, -1).swapaxes(2, 3)
        mixed = self.proj(mixed.reshape(b, count, places, d))
        return windows.join(mixed).reshape(b, n, d)

    def _bias(self, windows: Windows) -> Float[Array, "1 heads n n"]:
        """What is added to the logits of each window's heads."""
        table = self.relative_position_bias_table[...]
        bias = jnp.moveaxis(table[windows.bias_index(self.window)], 2, 0)[None]
        mask, (rows, columns) = windows.mask(), windows.counts
        if mask is not None:
            bias = bias + mask[:, None]
        bias = jnp.broadcast_to(bias, (rows * columns, *bias.shape[1:]))
        return bias.reshape(1, -1, *bias.shape[2:])


class Block(GridBlock):
    """A pre-norm block whose feed-forward may be for some of a map's tokens."""

    def attend(
        self, block: int, tokens: TokenSet, request: AttentionRequest = NOTHING_ASKED
    ) -> tuple[TokenSet, AttentionView]:
        """The map after attention, which is the shortcut of the feed-forward."""
        tokens, view = super().attend(block, tokens, request)
        return tokens.put_aside(shortcut=tokens.x), view

    def feed_forward(self, block: int, tokens: TokenSet) -> TokenSet:
        """The shortcut plus the MLP."""
        branch = rematerialised(lambda x: self.mlp(self.norm2(x)), self.remat)(tokens.x)
        return with_feed_forward(tokens, branch, self.drop_path_rate, 2 * block + 1)


class Swin(TokenModel):
    """A Swin Transformer; its features are the places of the last map after the norm."""

    Config = SwinConfig
    smoke: ClassVar = {
        "image_size": 32,
        "embed_dim": (8, 16, 32),
        "depth": (2, 1, 4),
        "num_heads": (1, 2, 4),
    }
    prefix = 0

    def __init__(self, config: SwinConfig, reduction=None, *, rngs: nnx.Rngs):
        self.config = config
        dim, dtype = config.embed_dim, jnp.dtype(config.dtype)
        self.patch_embed = PatchEmbed(config, rngs=rngs)
        self.grid = self.patch_embed.grid(*sides(config.image_size))
        numbers = itertools.count()
        self.stages = nnx.List(
            nnx.List(self._block(stage, next(numbers), i, rngs) for i in range(blocks))
            for stage, blocks in enumerate(config.depth)
        )
        self.downsamples = nnx.List(
            PatchMerging(config, *widths, rngs=rngs) for widths in itertools.pairwise(dim)
        )
        self.norm = LayerNorm(dim[-1], epsilon=config.norm_eps, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(dim[-1], config.num_classes, kernel_init=truncated_normal, rngs=rngs)
        self.reducer = create_reducer(reduction, self._backbone(), rngs=rngs)

    def _block(self, stage: int, number: int, place: int, rngs: nnx.Rngs) -> Block:
        """Block number `number` of the network, which is `place` in its stage."""
        config = self.config
        attention = WindowAttention(config, stage, shifted=place % 2 == 1, rngs=rngs)
        return Block(of_blocks(config, stage), number, attention, rngs=rngs)

    def _backbone(self) -> Backbone:
        """What a reducer may know of this network."""
        config = self.config
        map_blocks = MapBlocks(
            mixing="windows of attention",
            adds_to="mixed",
            drop_path_rates=tuple(
                block.drop_path_rate for blocks in self.stages for block in blocks
            ),
            norm_eps=config.norm_eps,
            dtype=config.dtype,
        )
        return Backbone(
            depth=sum(config.depth),
            dim=config.embed_dim,
            heads=config.num_heads,
            grid=self.grid,
            prefix=0,
            stage_depths=config.depth,
            classes=config.num_classes,
            stride=STRIDE,
            map_blocks=map_blocks,
        )

    def embed(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b n d"]:
        """Patch tokens in the compute dtype."""
        del train
        return self.patch_embed(images.astype(jnp.dtype(self.config.dtype)))

    def classify(self, tokens: TokenSet) -> tuple[Float[Array, "b k"], Outputs]:
        """Logits of the mean of the normalised places, and these."""
        features = self.norm(tokens.x)
        pooled = as_float32(features).mean(axis=1)
        return self.head(pooled), Outputs(features, pooled)


_SMALL = {"depth": (2, 2, 18, 2)}
_BASE = {"embed_dim": (128, 256, 512, 1024), "num_heads": (4, 8, 16, 32), **_SMALL}
_SIZES = {
    "tiny_patch4_window7_224": {},
    "small_patch4_window7_224": _SMALL,
    "base_patch4_window7_224": _BASE,
    "base_patch4_window12_384": {**_BASE, "image_size": 384, "window_size": 12},
}
# Published top-1 by size and tag; of those that differ in the tag, timm's default is the first.
_PUBLISHED = {
    ("tiny_patch4_window7_224", "ms_in1k"): 81.2,
    ("tiny_patch4_window7_224", "ms_in22k_ft_in1k"): 80.9,
    ("small_patch4_window7_224", "ms_in22k_ft_in1k"): 83.2,
    ("small_patch4_window7_224", "ms_in1k"): 83.2,
    ("base_patch4_window7_224", "ms_in22k_ft_in1k"): 85.2,
    ("base_patch4_window7_224", "ms_in1k"): 83.5,
    ("base_patch4_window12_384", "ms_in22k_ft_in1k"): 86.4,
    ("base_patch4_window12_384", "ms_in1k"): 84.5,
}
MODELS = {
    f"swin_{size}.{tag}": Entry(
        Swin,
        _SIZES[size],
        transform=at_crop(384, 1.0) if size.endswith("384") else at_crop(224, 0.9),
        top1=top1,
        weights=f"hf://timm/swin_{size}.{tag}",
    )
    for (size, tag), top1 in _PUBLISHED.items()
}
