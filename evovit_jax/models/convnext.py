"""ConvNeXt (Liu et al., 2022, arXiv:2201.03545): depthwise 7x7 convolutions and feed-forwards.

Patches do not overlap, and between stages 2x2 cells of the normalised map become one place; what is
left over of an image or a map is lost. A block is a depthwise convolution, LayerNorm, a
feed-forward and a factor a channel, with one residual around all of it. The mean over the last map
is normalised, and classified. Images of any size will do.

Every convolution needs a token in every place, so that the only reduction is DynamicViT's on maps
(`reduction/dynamic_spatial.py`), which gives some positions a cheaper feed-forward.
"""

import dataclasses
import itertools
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.errors import UserError
from evovit_jax.models.activations import ACTIVATIONS
from evovit_jax.models.config_checks import check_fields
from evovit_jax.models.convolution import convolve
from evovit_jax.models.layers import (
    LayerNorm,
    Mlp,
    as_float32,
    rematerialised,
    truncated_normal,
)
from evovit_jax.models.outputs import Outputs, patch_map
from evovit_jax.models.pyramid import whole_patches
from evovit_jax.models.registry import Entry, EvalTransform
from evovit_jax.models.token_model import TokenModel
from evovit_jax.reduction import Backbone, create_reducer
from evovit_jax.reduction.base import AttentionRequest, AttentionView
from evovit_jax.reduction.map_blocks import MapBlocks, with_feed_forward
from evovit_jax.reduction.tokens import TokenSet

STRIDE = 2  # between two stages


@dataclasses.dataclass(frozen=True)
class ConvNeXtConfig:
    """Every setting of a ConvNeXt.

    Attributes:
      image_size: side of the images that it was made for, pixels; others work.
      patch_size: side of a patch, pixels.
      in_channels: channels of the images.
      num_classes: size of the logits.
      embed_dim: channels of each stage.
      depth: blocks of each stage.
      kernel_size: side of the depthwise convolutions, odd.
      mlp_ratio: hidden width of the feed-forwards over the channels.
      activation: of the feed-forwards: "gelu", "gelu_tanh" or "quick_gelu".
      layer_scale: what the factors of a block's channels start from; None without such.
      drop_path_rate: stochastic depth of the last block; it rises linearly from 0 at the first.
      norm_eps: epsilon of every LayerNorm.
      dtype: compute dtype of convolutions and matmuls; parameters and logits stay float32.
      remat: what the backward pass recomputes: "none", "full", or "dots" (keeps matmul results).
      attention_kernel: of no use here, as there is no attention; "auto", "matmul" or "fused".
    """

    image_size: int = 224
    patch_size: int = 4
    in_channels: int = 3
    num_classes: int = 1000
    embed_dim: tuple[int, ...] = (96, 192, 384, 768)
    depth: tuple[int, ...] = (3, 3, 9, 3)
    kernel_size: int = 7
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    layer_scale: float | None = 1e-6
    drop_path_rate: float = 0.0
    norm_eps: float = 1e-6
    dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "auto"

    choices: ClassVar = {"activation": tuple(ACTIVATIONS)}

    def __post_init__(self):
        check_fields(self)
        if len(self.embed_dim) != len(self.depth):
            raise UserError("embed_dim and depth must have one member for each stage")
        if self.kernel_size % 2 == 0:
            raise UserError(f"kernel_size must be odd, got {self.kernel_size}")

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """The rate of stochastic depth of each block."""
        blocks = sum(self.depth)
        return tuple(self.drop_path_rate * i / max(1, blocks - 1) for i in range(blocks))


def convolution(
    channels: int, out: int, size: int, *, config: ConvNeXtConfig, rngs: nnx.Rngs, **settings
) -> nnx.Conv:
    """A convolution with the network's initial values and compute dtype."""
    return nnx.Conv(
        channels,
        out,
        (size, size),
        kernel_init=truncated_normal,
        dtype=jnp.dtype(config.dtype),
        conv_general_dilated=convolve,
        rngs=rngs,
        **settings,
    )


def flat(x: Float[Array, "b h w c"]) -> Float[Array, "b h*w c"]:
    """The places of a map in raster order."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


class PatchEmbed(nnx.Module):
    """Patches through one linear map, then LayerNorm; what makes no whole patch is unseen."""

    def __init__(self, config: ConvNeXtConfig, *, rngs: nnx.Rngs):
        size, dim = config.patch_size, config.embed_dim[0]
        self.patch_size = size
        settings = {"strides": size, "padding": "VALID", "config": config, "rngs": rngs}
        self.conv = convolution(config.in_channels, dim, size, **settings)
        self.norm = LayerNorm(dim, epsilon=config.norm_eps, dtype=self.conv.dtype, rngs=rngs)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches of an image of that size.

        Raises:
          UserError: the image is smaller than a patch.
        """
        return whole_patches(height, width, self.patch_size, self.patch_size)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b p d"]:
        """Patch tokens in raster order."""
        self.grid(*images.shape[1:3])
        return self.norm(flat(self.conv(images)))


class Block(nnx.Module):
    """Depthwise convolution, norm, feed-forward and its factors, with one residual."""

    def __init__(self, config: ConvNeXtConfig, stage: int, number: int, *, rngs: nnx.Rngs):
        dim, dtype = config.embed_dim[stage], jnp.dtype(config.dtype)
        size = config.kernel_size
        settings = {"padding": size // 2, "feature_group_count": dim, "config": config}
        self.conv_dw = convolution(dim, dim, size, rngs=rngs, **settings)
        self.norm = LayerNorm(dim, epsilon=config.norm_eps, dtype=dtype, rngs=rngs)
        hidden = int(dim * config.mlp_ratio)
        self.mlp = Mlp(dim, hidden, activation=config.activation, dtype=dtype, rngs=rngs)
        scale = config.layer_scale
        self.gamma = None if scale is None else nnx.Param(jnp.full((dim,), scale))
        self.drop_path_rate, self.remat = config.drop_path_rates[number], config.remat

    def attend(
        self, block: int, tokens: TokenSet, request: AttentionRequest
    ) -> tuple[TokenSet, AttentionView]:
        """The map after the convolution; the block's input is the shortcut."""
        del block, request
        mixed = flat(self.conv_dw(patch_map(tokens)))
        return tokens.replace(x=mixed).put_aside(shortcut=tokens.x), AttentionView()

    def feed_forward(self, block: int, tokens: TokenSet) -> TokenSet:
        """The shortcut plus the feed-forward."""
        branch = rematerialised(self._branch, self.remat)(tokens.x)
        return with_feed_forward(tokens, branch, self.drop_path_rate, 2 * block + 1)

    def _branch(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        x = self.mlp(self.norm(x))
        return x if self.gamma is None else x * self.gamma[...].astype(x.dtype)[None, None]


class Downsample(nnx.Module):
    """LayerNorm and a linear map of each 2x2 cell, between two stages."""

    def __init__(self, config: ConvNeXtConfig, dim: int, out: int, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.norm = LayerNorm(dim, epsilon=config.norm_eps, dtype=dtype, rngs=rngs)
        settings = {"strides": STRIDE, "padding": "VALID", "config": config}
        self.conv = convolution(dim, out, STRIDE, rngs=rngs, **settings)

    def attend(
        self, tokens: TokenSet, request: AttentionRequest
    ) -> tuple[Float[Array, "b m e"], AttentionView]:
        """The tokens of the next stage.

        Raises:
          UserError: the map is smaller than a cell.
        """
        del request
        rows, columns = tokens.grid
        if min(rows, columns) < STRIDE:
            raise UserError(f"a map of {rows}x{columns} tokens is too small: use larger images")
        return flat(self.conv(self.norm(patch_map(tokens)))), AttentionView()

    def feed_forward(self, tokens: TokenSet) -> TokenSet:
        """Those tokens."""
        return tokens


class ConvNeXt(TokenModel):
    """A ConvNeXt; its features are the places of the last map, each after the norm."""

    Config = ConvNeXtConfig
    smoke: ClassVar = {"image_size": 32, "embed_dim": (8, 12, 16, 24), "depth": (1, 1, 4, 1)}
    prefix = 0

    def __init__(self, config: ConvNeXtConfig, reduction=None, *, rngs: nnx.Rngs):
        self.config = config
        dim, depth = config.embed_dim, config.depth
        self.patch_embed = PatchEmbed(config, rngs=rngs)
        self.grid = self.patch_embed.grid(config.image_size, config.image_size)
        numbers = itertools.count()
        self.stages = nnx.List(
            nnx.List(Block(config, stage, next(numbers), rngs=rngs) for _ in range(blocks))
            for stage, blocks in enumerate(depth)
        )
        self.downsamples = nnx.List(
            Downsample(config, *widths, rngs=rngs) for widths in itertools.pairwise(dim)
        )
        wide = jnp.dtype(jnp.float32)
        self.norm = LayerNorm(dim[-1], epsilon=config.norm_eps, dtype=wide, rngs=rngs)
        self.head = nnx.Linear(dim[-1], config.num_classes, kernel_init=truncated_normal, rngs=rngs)
        map_blocks = MapBlocks(
            mixing="depthwise convolutions",
            adds_to="input",
            drop_path_rates=config.drop_path_rates,
            norm_eps=config.norm_eps,
            layer_scale=config.layer_scale,
            drops_odd=True,
            dtype=config.dtype,
        )
        backbone = Backbone(
            depth=sum(depth),
            dim=dim,
            heads=(1,) * len(dim),
            grid=self.grid,
            prefix=0,
            stage_depths=depth,
            classes=config.num_classes,
            stride=STRIDE,
            map_blocks=map_blocks,
        )
        self.reducer = create_reducer(reduction, backbone, rngs=rngs)

    def embed(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b n d"]:
        """Patch tokens in the compute dtype."""
        del train
        return self.patch_embed(images.astype(jnp.dtype(self.config.dtype)))

    def classify(self, tokens: TokenSet) -> tuple[Float[Array, "b k"], Outputs]:
        """Logits of the normalised mean, and the normalised places."""
        pooled = self.norm(as_float32(tokens.x).mean(axis=1))
        return self.head(pooled), Outputs(self.norm(tokens.x).astype(tokens.x.dtype), pooled)


_SIZES = {
    "tiny": {},
    "small": {"depth": (3, 3, 27, 3)},
    "base": {"depth": (3, 3, 27, 3), "embed_dim": (128, 256, 512, 1024)},
    "large": {"depth": (3, 3, 27, 3), "embed_dim": (192, 384, 768, 1536)},
}
# Top-1 by the tag of the weights, in the order of the sizes.
_TOP1 = {
    "fb_in1k": (82.1, 83.1, 83.8, 84.3),
    "fb_in22k_ft_in1k": (82.9, 84.6, 85.8, 86.6),
    "fb_in22k_ft_in1k_384": (84.1, 85.8, 86.8, 87.5),
}
_AT_384 = EvalTransform(image_size=384, resize=384)


def _entry(size: str, tag: str, top1: float) -> Entry:
    larger = tag.endswith("_384")
    return Entry(
        ConvNeXt,
        _SIZES[size] | ({"image_size": 384} if larger else {}),
        transform=_AT_384 if larger else EvalTransform(),
        top1=top1,
        weights=f"hf://timm/convnext_{size}.{tag}",
    )


MODELS = {
    f"convnext_{size}.{tag}": _entry(size, tag, top1)
    for tag, published in _TOP1.items()
    for size, top1 in zip(_SIZES, published, strict=True)
}
