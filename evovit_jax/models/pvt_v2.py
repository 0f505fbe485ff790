"""PVT v2 (Wang et al., 2022, arXiv:2106.13797): attention to a smaller map, convolutions in MLPs.

Queries are all tokens of a stage; keys and values are made of its map after a convolution with
stride, or in the linear variant ("Li") of its means over 7x7 bins. A depthwise convolution in
every MLP stands in for positions, so that images of any size will do.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.errors import UserError
from evovit_jax.hardware.gelu import gelu
from evovit_jax.models.config_checks import check_fields
from evovit_jax.models.convolution import convolve
from evovit_jax.models.layers import LayerNorm, Mlp, as_float32, truncated_normal
from evovit_jax.models.pyramid import (
    Block,
    OverlapPatchEmbed,
    Pyramid,
    Stage,
    check_stages,
    multi_head,
)
from evovit_jax.models.registry import Entry, EvalTransform
from evovit_jax.reduction.tokens import TokenSet

POOLED_SIDE = 7  # rows and columns of the linear variant's keys
he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


@dataclasses.dataclass(frozen=True)
class PVTv2Config:
    """Every setting of a PVT v2.

    Attributes:
      image_size: side of the images that it was made for, pixels; others work.
      in_channels: channels of the images.
      num_classes: size of the logits.
      embed_dim: width of the tokens in each stage.
      depth: blocks of each stage.
      num_heads: attention heads in each stage.
      sr_ratios: side of the map over that of its keys, in each stage; the linear variant has 7x7.
      mlp_ratios: hidden width of the MLP over the tokens', in each stage.
      linear: keys of means over 7x7 bins, and ReLU before the convolution in an MLP.
      qkv_bias: whether queries, keys and values have biases.
      drop_path_rate: stochastic depth of the last block; it rises linearly from 0 at the first.
      norm_eps: epsilon of the LayerNorms of blocks and stages.
      embed_norm_eps: epsilon of the LayerNorms after patches and before keys.
      dtype: compute dtype of matmuls; parameters, scores, softmax and logits stay float32.
      remat: what the backward pass recomputes: "none", "full", or "dots" (keeps matmul results).
      attention_kernel: "auto", "matmul" or "fused".
    """

    image_size: int = 224
    in_channels: int = 3
    num_classes: int = 1000
    embed_dim: tuple[int, ...] = (64, 128, 320, 512)
    depth: tuple[int, ...] = (3, 4, 6, 3)
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    mlp_ratios: tuple[float, ...] = (8, 8, 4, 4)
    linear: bool = False
    qkv_bias: bool = True
    drop_path_rate: float = 0.0
    norm_eps: float = 1e-6
    embed_norm_eps: float = 1e-5
    dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "auto"

    def __post_init__(self):
        check_fields(self)
        check_stages(self, "embed_dim", "depth", "num_heads", "sr_ratios", "mlp_ratios")


def adaptive_mean(x: Float[Array, "b h w d"], side: int) -> Float[Array, "b {side} {side} d"]:
    """The means of `side` x `side` bins of a map, smaller or larger, as PyTorch's adaptive pooling.

    Along an axis of n places bin i has those from `floor(i n / side)` to `ceil((i + 1) n / side)`.
    """
    for axis in (1, 2):
        n = x.shape[axis]
        ends = [(i * n // side, -(-(i + 1) * n // side)) for i in range(side)]
        bins = [jax.lax.slice_in_dim(x, *end, axis=axis).mean(axis=axis) for end in ends]
        x = jnp.stack(bins, axis=axis)
    return x


class Attention(nnx.Module):
    """Attention of all tokens to those of a smaller map."""

    def __init__(self, config: PVTv2Config, stage: int, *, rngs: nnx.Rngs):
        dim, dtype = config.embed_dim[stage], jnp.dtype(config.dtype)
        self.heads, self.kernel = config.num_heads[stage], config.attention_kernel
        self.scale = (dim // self.heads) ** -0.5
        self.linear, self.ratio = config.linear, 1 if config.linear else config.sr_ratios[stage]
        made = {"kernel_init": truncated_normal, "dtype": dtype, "rngs": rngs}
        self.q = nnx.Linear(dim, dim, use_bias=config.qkv_bias, **made)
        self.kv = nnx.Linear(dim, 2 * dim, use_bias=config.qkv_bias, **made)
        self.proj = nnx.Linear(dim, dim, **made)
        if self.linear or self.ratio > 1:
            self.sr = nnx.Conv(
                dim,
                dim,
                (self.ratio, self.ratio),
                strides=self.ratio,
                padding="VALID",
                kernel_init=he_normal,
                dtype=dtype,
                rngs=rngs,
            )
            self.norm = LayerNorm(dim, epsilon=config.embed_norm_eps, dtype=dtype, rngs=rngs)

    def _reduced(self, x: Float[Array, "b n d"], grid: tuple[int, int]) -> Float[Array, "b m d"]:
        """The tokens that keys and values are made of.

        Raises:
          UserError: the map has fewer rows or columns than a key stands for.
        """
        if not self.linear and self.ratio == 1:
            return x
        b, _, d = x.shape
        x = x.reshape(b, *grid, d)
        if self.linear:
            x = adaptive_mean(x, POOLED_SIDE)
        elif min(grid) < self.ratio:
            raise UserError(
                f"a map of {grid[0]}x{grid[1]} tokens is smaller than sr_ratios {self.ratio}: "
                "use larger images"
            )
        x = self.norm(self.sr(x)).reshape(b, -1, d)
        return gelu(x) if self.linear else x

    def __call__(self, x: Float[Array, "b n d"], tokens: TokenSet) -> Float[Array, "b n d"]:
        """Attention over the map of `tokens`."""
        k, v = jnp.split(self.kv(self._reduced(x, tokens.grid)), 2, axis=-1)
        mixed = multi_head(self.q(x), k, v, self.heads, scale=self.scale, kernel=self.kernel)
        return self.proj(mixed)


class ConvMlp(Mlp):
    """Two linear maps, between them a depthwise 3x3 convolution and GELU."""

    def __init__(self, dim: int, hidden: int, *, linear: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        super().__init__(dim, hidden, dtype=dtype, rngs=rngs)
        self.linear = linear
        self.dwconv = nnx.Conv(
            hidden,
            hidden,
            (3, 3),
            padding=1,
            feature_group_count=hidden,
            conv_general_dilated=convolve,
            kernel_init=nnx.initializers.normal((2 / 9) ** 0.5),  # 9 outputs an input
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "b n d"], tokens: TokenSet) -> Float[Array, "b n d"]:
        """The MLP over the map of `tokens`."""
        hidden = self.fc1(x)
        hidden = jax.nn.relu(hidden) if self.linear else hidden
        b, n, c = hidden.shape
        hidden = self.dwconv(hidden.reshape(b, *tokens.grid, c)).reshape(b, n, c)
        return self.fc2(gelu(hidden))


class PVTv2(Pyramid):
    """A PVT v2; its features are the last stage's tokens after the norm."""

    Config = PVTv2Config
    smoke: ClassVar = {
        "image_size": 32,
        "embed_dim": (8, 16, 24, 32),
        "depth": (1, 1, 1, 1),
        "num_heads": (1, 2, 3, 4),
    }
    needs_grid = "the convolution in each of its MLPs"

    def __init__(self, config: PVTv2Config, reduction=None, *, rngs: nnx.Rngs):
        super().__init__(config, reduction)
        self.stages = nnx.List(self._stage(stage, rngs) for stage in range(len(config.depth)))
        self.head = nnx.Linear(
            config.embed_dim[-1], config.num_classes, kernel_init=truncated_normal, rngs=rngs
        )

    def _stage(self, stage: int, rngs: nnx.Rngs) -> Stage:
        config = self.config
        made = {"dtype": jnp.dtype(config.dtype), "rngs": rngs}
        dim, first = config.embed_dim[stage], sum(config.depth[:stage])
        size, stride = (3, 2) if stage else (7, 4)
        patch_embed = OverlapPatchEmbed(
            config.embed_dim[stage - 1] if stage else config.in_channels,
            dim,
            size=size,
            stride=stride,
            padding=size // 2,
            epsilon=config.embed_norm_eps,
            kernel_init=he_normal,
            **made,
        )
        hidden = int(dim * config.mlp_ratios[stage])
        blocks = [
            Block(
                Attention(config, stage, rngs=rngs),
                ConvMlp(dim, hidden, linear=config.linear, **made),
                dim,
                number,
                drop_path_rate=config.drop_path_rate * number / max(1, sum(config.depth) - 1),
                config=config,
                rngs=rngs,
            )
            for number in range(first, first + config.depth[stage])
        ]
        norm = LayerNorm(dim, epsilon=config.norm_eps, **made)
        return Stage(patch_embed, blocks, norm=norm, rngs=rngs)

    def pool(self, tokens: TokenSet) -> tuple[Float[Array, "b d"], Float[Array, "b n d"]]:
        """The tokens' mean, and the tokens."""
        return as_float32(tokens.x).mean(axis=1), tokens.x


_TRANSFORM = EvalTransform(resize=248)
# Settings of each size, and its top-1.
_SIZES = {
    "b0": ({"embed_dim": (32, 64, 160, 256), "depth": (2, 2, 2, 2)}, 70.5),
    "b1": ({"depth": (2, 2, 2, 2)}, 78.7),
    "b2": ({}, 82.0),
    "b2_li": ({"linear": True}, 82.1),
    "b3": ({"depth": (3, 4, 18, 3)}, 83.1),
    "b4": ({"depth": (3, 8, 27, 3)}, 83.6),
    "b5": ({"depth": (3, 6, 40, 3), "mlp_ratios": (4, 4, 4, 4)}, 83.8),
}
MODELS = {
    f"pvt_v2_{size}": Entry(
        PVTv2,
        settings,
        transform=_TRANSFORM,
        top1=top1,
        weights=f"hf://timm/pvt_v2_{size}.in1k",
    )
    for size, (settings, top1) in _SIZES.items()
}
