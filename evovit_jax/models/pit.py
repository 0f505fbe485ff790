"""PiT (Heo et al., 2021, arXiv:2103.16302): a ViT whose tokens are pooled between its stages.

Patches overlap. Within a stage the blocks are those of a ViT; a depthwise convolution with stride
2 pools the patch tokens, and a linear map takes the class tokens to the new width. A pool needs
every token in its place, so that of the reductions those run here that give a stage its grid back,
and the last stage may end with any set.
"""

import dataclasses
import itertools
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.errors import UserError
from evovit_jax.models.batch_norm import torch_uniform
from evovit_jax.models.config_checks import check_fields
from evovit_jax.models.convolution import convolve
from evovit_jax.models.layers import LayerNorm, as_float32, truncated_normal
from evovit_jax.models.outputs import Outputs, patch_map
from evovit_jax.models.positions import resize_positions
from evovit_jax.models.pyramid import check_stages, of_blocks, sides, whole_patches
from evovit_jax.models.registry import Entry, EvalTransform
from evovit_jax.models.token_model import TokenModel
from evovit_jax.models.vit import Block
from evovit_jax.reduction import Backbone, create_reducer
from evovit_jax.reduction.base import AttentionRequest, AttentionView
from evovit_jax.reduction.tokens import TokenSet

STRIDE = 2  # of every pool


@dataclasses.dataclass(frozen=True)
class PiTConfig:
    """Every setting of a PiT.

    Attributes:
      image_size: side of the images that the positions are for, pixels, or their height and width;
        for others they are interpolated.
      patch_size: side of a patch, pixels.
      stride: pixels from one patch to the next.
      in_channels: channels of the images.
      num_classes: size of the logits.
      embed_dim: width of the tokens in each stage, each a multiple of that before.
      depth: blocks of each stage.
      num_heads: attention heads in each stage.
      mlp_ratio: hidden width of the MLP over the tokens'.
      qkv_bias: whether queries, keys and values have biases.
      distilled: a second class token with its own head; inference averages both.
      drop_path_rate: stochastic depth of the last block; it rises linearly from 0 at the first.
      norm_eps: epsilon of every LayerNorm.
      dtype: compute dtype of matmuls; parameters, scores, softmax and logits stay float32.
      remat: what the backward pass recomputes: "none", "full", or "dots" (keeps matmul results).
      attention_kernel: "auto", "matmul" or "fused".
    """

    image_size: int | tuple[int, int] = 224
    patch_size: int = 16
    stride: int = 8
    in_channels: int = 3
    num_classes: int = 1000
    embed_dim: tuple[int, ...] = (144, 288, 576)
    depth: tuple[int, ...] = (2, 6, 4)
    num_heads: tuple[int, ...] = (3, 6, 12)
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    distilled: bool = False
    drop_path_rate: float = 0.0
    norm_eps: float = 1e-6
    dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "auto"

    def __post_init__(self):
        check_fields(self)
        check_stages(self, "embed_dim", "depth", "num_heads")
        for dim, pooled in itertools.pairwise(self.embed_dim):
            if pooled % dim:
                raise UserError(
                    f"embed_dim {pooled} is not a multiple of {dim}, that of the stage before"
                )


class PatchEmbed(nnx.Module):
    """Overlapping patches through a convolution without padding."""

    def __init__(self, config: PiTConfig, *, rngs: nnx.Rngs):
        self.patch_size, self.stride = config.patch_size, config.stride
        self.conv = nnx.Conv(
            config.in_channels,
            config.embed_dim[0],
            (config.patch_size, config.patch_size),
            strides=config.stride,
            padding="VALID",
            kernel_init=torch_uniform,
            dtype=jnp.dtype(config.dtype),
            rngs=rngs,
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches of an image of that size; what is left at its end is unseen.

        Raises:
          UserError: the image is smaller than a patch.
        """
        return whole_patches(height, width, self.patch_size, self.stride)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b p d"]:
        """Patch tokens in raster order."""
        x = self.conv(images)
        return x.reshape(x.shape[0], -1, x.shape[-1])


class Pool(nnx.Module):
    """What lies between two stages; there is no attention to be seen in it."""

    def __init__(self, dim: int, out: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        made = {"kernel_init": torch_uniform, "dtype": dtype, "rngs": rngs}
        self.conv = nnx.Conv(
            dim,
            out,
            (3, 3),
            strides=STRIDE,
            padding=1,
            feature_group_count=dim,
            conv_general_dilated=convolve,
            **made,
        )
        self.fc = nnx.Linear(dim, out, **made)

    def attend(
        self, tokens: TokenSet, request: AttentionRequest
    ) -> tuple[Float[Array, "b m e"], AttentionView]:
        """The tokens of the next stage."""
        del request
        pooled = self.conv(patch_map(tokens))
        classes = self.fc(tokens.x[:, : tokens.prefix])
        patches = pooled.reshape(len(pooled), -1, pooled.shape[-1])
        return jnp.concatenate([classes, patches], axis=1), AttentionView()

    def feed_forward(self, tokens: TokenSet) -> TokenSet:
        """Those tokens."""
        return tokens


class PiT(TokenModel):
    """A PiT with a reducer; its features are the last stage's tokens after the norm."""

    Config = PiTConfig
    smoke: ClassVar = {
        "image_size": 64,
        "embed_dim": (8, 16, 32),
        "depth": (1, 1, 1),
        "num_heads": (1, 2, 4),
    }

    def __init__(self, config: PiTConfig, reduction=None, *, rngs: nnx.Rngs):
        self.config = config
        dim, dtype = config.embed_dim, jnp.dtype(config.dtype)
        self.prefix = 2 if config.distilled else 1
        self.patch_embed = PatchEmbed(config, rngs=rngs)
        self.grid = self.patch_embed.grid(*sides(config.image_size))
        self.pos_embed = nnx.Param(truncated_normal(rngs.params(), (1, *self.grid, dim[0])))
        self.cls_token = nnx.Param(truncated_normal(rngs.params(), (1, self.prefix, dim[0])))
        number, stages = 0, []
        for stage, depth in enumerate(config.depth):
            settings = of_blocks(config, stage)
            blocks = [Block(settings, number + i, rngs=rngs) for i in range(depth)]
            stages.append(nnx.List(blocks))
            number += depth
        self.stages = nnx.List(stages)
        self.downsamples = nnx.List(
            Pool(*widths, dtype=dtype, rngs=rngs) for widths in itertools.pairwise(dim)
        )
        self.norm = LayerNorm(dim[-1], epsilon=config.norm_eps, dtype=dtype, rngs=rngs)

        def head() -> nnx.Linear:
            return nnx.Linear(dim[-1], config.num_classes, kernel_init=truncated_normal, rngs=rngs)

        self.head = head()
        if config.distilled:
            self.head_dist = head()
        backbone = Backbone(
            depth=sum(config.depth),
            dim=dim,
            heads=config.num_heads,
            grid=self.grid,
            prefix=self.prefix,
            stage_depths=config.depth,
            classes=config.num_classes,
            stride=STRIDE,
        )
        self.reducer = create_reducer(reduction, backbone, rngs=rngs)

    def embed(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b n d"]:
        """Class tokens, and patch tokens with their positions, in the compute dtype."""
        del train
        dtype = jnp.dtype(self.config.dtype)
        grid = self.patch_embed.grid(*images.shape[1:3])
        positions = self.pos_embed[...].reshape(1, -1, self.config.embed_dim[0])
        x = self.patch_embed(images.astype(dtype))
        x = x + resize_positions(positions, self.grid, grid).astype(dtype)
        classes = self.cls_token[...].astype(dtype)
        classes = jnp.broadcast_to(classes, (x.shape[0], *classes.shape[1:]))
        return jnp.concatenate([classes, x], axis=1)

    def classify(self, tokens: TokenSet) -> tuple[Float[Array, "b k"], Outputs]:
        """Logits, normalised features, and in training the logits "dist" of a second head."""
        features = self.norm(tokens.x)
        wide = as_float32(features[:, : tokens.prefix])
        logits = self.head(wide[:, 0])
        if not self.config.distilled:
            return logits, Outputs(features, wide[:, 0])
        distilled = self.head_dist(wide[:, 1])
        if not tokens.train:
            logits = (logits + distilled) / 2
        return logits, Outputs(features, wide[:, 0], aux_logits={"dist": distilled})


_TRANSFORM = EvalTransform(resize=248)
# Width of a head, heads, top-1 without and with distillation; B has other patches and depth.
_SIZES = {
    "ti": (32, (2, 4, 8), 73.0, 74.6),
    "xs": (48, (2, 4, 8), 78.1, 79.1),
    "s": (48, (3, 6, 12), 80.9, 81.9),
    "b": (64, (4, 8, 16), 82.0, 84.0),
}
_OF_B = {"patch_size": 14, "stride": 7, "depth": (3, 6, 4)}


def _entry(size: str, distilled: bool) -> Entry:
    width, heads, *top1 = _SIZES[size]
    settings = {"embed_dim": tuple(width * n for n in heads), "num_heads": heads}
    settings |= _OF_B if size == "b" else {}
    kind = "distilled_" if distilled else ""
    return Entry(
        PiT,
        settings | {"distilled": distilled},
        transform=_TRANSFORM,
        top1=top1[distilled],
        weights=f"hf://timm/pit_{size}_{kind}224.in1k",
    )


MODELS = {f"pit_{size}_224": _entry(size, False) for size in _SIZES}
MODELS |= {f"pit_{size}_distilled_224": _entry(size, True) for size in _SIZES}
