"""The settings of CrossViT (Chen et al., 2021), and how a branch of it reads images.

Tested in tests/models/crossvit_test.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.errors import UserError
from evovit_jax.models.bicubic import resize_bicubic
from evovit_jax.models.config_checks import check_fields
from evovit_jax.models.layers import PatchEmbed, patch_grid, truncated_normal
from evovit_jax.models.positions import resize_positions
from evovit_jax.models.vit import ViTConfig

BRANCHES = 2
# Kernel, stride and padding of the three convolutions that make patches of a size (dagger models).
CONVOLUTIONS = {
    12: ((7, 4, 3), (3, 3, 0), (3, 1, 1)),
    16: ((7, 4, 3), (3, 2, 1), (3, 2, 1)),
}


@dataclasses.dataclass(frozen=True)
class CrossViTConfig:
    """Every setting of a CrossViT; lists have a number for each branch.

    Attributes:
      image_size: side of the images that the positions are for, pixels; others are interpolated.
      image_scale: side of a branch's copy of an image over the image's, rounded down to pixels.
      crop_scale: whether a smaller copy is the middle of the image instead of the resized image.
      patch_size: side of a patch of the copy, pixels.
      in_channels: channels of the images.
      num_classes: size of the logits.
      embed_dim: width of the tokens.
      depth: of each stage the blocks of both branches, and how many fusions follow one another,
        where 0 means one, under the names of the published weights.
      num_heads: attention heads.
      mlp_ratio: hidden width of the MLPs over the tokens'; a third number, as in timm, has no MLP.
      qkv_bias: whether queries, keys and values have biases.
      multi_conv: patches by three convolutions (dagger), of 12 or 16 pixels.
      drop_path_rate: stochastic depth of the last block; it rises linearly from 0 at the first.
      norm_eps: epsilon of every LayerNorm.
      dtype: compute dtype of matmuls; parameters, scores, softmax and logits stay float32.
      remat: what the backward pass recomputes: "none", "full", or "dots" (keeps matmul results).
      attention_kernel: "auto", "matmul" or "fused", of the blocks.
    """

    image_size: int = 240
    image_scale: tuple[float, ...] = (1.0, 224 / 240)
    crop_scale: bool = False
    patch_size: tuple[int, ...] = (12, 16)
    in_channels: int = 3
    num_classes: int = 1000
    embed_dim: tuple[int, ...] = (128, 256)
    depth: tuple[tuple[int, ...], ...] = ((1, 3, 0),) * 3
    num_heads: tuple[int, ...] = (4, 4)
    mlp_ratio: tuple[float, ...] = (3.0, 3.0, 1.0)
    qkv_bias: bool = True
    multi_conv: bool = False
    drop_path_rate: float = 0.0
    norm_eps: float = 1e-6
    dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "auto"

    def __post_init__(self):
        check_fields(self)
        for name in ("image_scale", "patch_size", "embed_dim", "num_heads"):
            if len(getattr(self, name)) != BRANCHES:
                raise UserError(f"{name} must have {BRANCHES} numbers, one for each branch")
        if len(self.mlp_ratio) not in (BRANCHES, BRANCHES + 1):
            raise UserError(f"mlp_ratio must have {BRANCHES} numbers, one for each branch")
        if not self.depth or not all(map(is_stage, self.depth)):
            raise UserError(
                "depth must have (blocks of branch 0, blocks of branch 1, fusions) for each stage, "
                f"blocks from 1 and fusions from 0, got {self.depth!r}"
            )
        for branch in range(BRANCHES):
            self.of_branch(branch)
            if self.multi_conv and self.patch_size[branch] not in CONVOLUTIONS:
                raise UserError(
                    f"multi_conv makes patches of {' or '.join(map(str, CONVOLUTIONS))} pixels, "
                    f"got patch_size {self.patch_size}"
                )

    def scaled_size(self, height: int, width: int, branch: int) -> tuple[int, int]:
        """(height, width) of a branch's copy of an image of that size, pixels."""
        scale = self.image_scale[branch]
        return int(height * scale), int(width * scale)

    def of_branch(self, branch: int) -> ViTConfig:
        """The settings of a ViT with the blocks of a branch; its depth is that of all stages."""
        return ViTConfig(
            image_size=self.scaled_size(self.image_size, self.image_size, branch)[0],
            patch_size=self.patch_size[branch],
            in_channels=self.in_channels,
            embed_dim=self.embed_dim[branch],
            depth=sum(max(stage[:BRANCHES]) for stage in self.depth),
            num_heads=self.num_heads[branch],
            mlp_ratio=self.mlp_ratio[branch],
            qkv_bias=self.qkv_bias,
            drop_path_rate=self.drop_path_rate,
            norm_eps=self.norm_eps,
            dtype=self.dtype,
            remat=self.remat,
            attention_kernel=self.attention_kernel,
        )


def is_stage(depth: object) -> bool:
    """Whether `depth` is (blocks of each branch, from 1 on; fusions, from 0 on)."""
    right = isinstance(depth, tuple) and len(depth) == BRANCHES + 1
    whole = right and all(isinstance(n, int) and not isinstance(n, bool) for n in depth)
    return whole and min(depth[:BRANCHES]) >= 1 and depth[BRANCHES] >= 0


class ConvPatchEmbed(nnx.Module):
    """Patches of 12x12 or 16x16 pixels by three convolutions with ReLU between them (dagger)."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        dim, self.patch_size = config.embed_dim, config.patch_size
        widths = (config.in_channels, dim // 4, dim // 2, dim)
        self.proj = nnx.List(
            nnx.Conv(
                widths[i],
                widths[i + 1],
                (kernel, kernel),
                strides=stride,
                padding=padding,
                dtype=jnp.dtype(config.dtype),
                rngs=rngs,
            )
            for i, (kernel, stride, padding) in enumerate(CONVOLUTIONS[self.patch_size])
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches of an image of that size."""
        return patch_grid(height, width, self.patch_size)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b p d"]:
        """Patch tokens in raster order."""
        self.grid(*images.shape[1:3])
        x = images
        for i, conv in enumerate(self.proj):
            x = conv(x if i == 0 else jax.nn.relu(x))
        return x.reshape(x.shape[0], -1, x.shape[-1])


class Embedding(nnx.Module):
    """A branch's copy of the images as class and patch tokens with their positions."""

    def __init__(self, config: CrossViTConfig, branch: int, *, rngs: nnx.Rngs):
        own, dtype = config.of_branch(branch), jnp.dtype(config.dtype)
        self.branch, self.config, self.dtype = branch, config, dtype
        channels, dim = own.in_channels, own.embed_dim
        self.patch_embed = (
            ConvPatchEmbed(own, rngs=rngs)
            if config.multi_conv
            else PatchEmbed(own.patch_size, channels, dim, dtype=dtype, rngs=rngs)
        )
        self.grid = (own.image_size // own.patch_size,) * 2
        places = 1 + self.grid[0] * self.grid[1]
        self.cls_token = nnx.Param(truncated_normal(rngs.params(), (1, 1, dim)))
        self.pos_embed = nnx.Param(truncated_normal(rngs.params(), (1, places, dim)))

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        """The tokens in the compute dtype.

        Raises:
          UserError: the branch's copy of the images does not divide into patches.
        """
        size = self.config.scaled_size(*images.shape[1:3], self.branch)
        grid = self.patch_embed.grid(*size)
        images = scaled(images, size, crop=self.config.crop_scale)
        x = self.patch_embed(images.astype(self.dtype))
        token = jnp.broadcast_to(self.cls_token[...], (x.shape[0], 1, x.shape[2]))
        positions = self.pos_embed[...]
        own = resize_positions(positions[:, 1:], self.grid, grid)
        positions = jnp.concatenate([positions[:, :1], own], axis=1).astype(self.dtype)
        return jnp.concatenate([token.astype(self.dtype), x], axis=1) + positions


def scaled(
    images: Float[Array, "b h w c"], size: tuple[int, int], *, crop: bool
) -> Float[Array, "b y x c"]:
    """Images at another (height, width): the middle with `crop` where it fits in, else resized."""
    height, width = images.shape[1:3]
    if crop and size[0] <= height and size[1] <= width:
        top, left = (round((old - new) / 2) for old, new in zip((height, width), size, strict=True))
        return images[:, top : top + size[0], left : left + size[1]]
    return resize_bicubic(images, size)
