"""CvT (Wu et al., 2021, arXiv:2103.15808): queries, keys and values from convolutions.

Each of the three has a depthwise convolution with batch norm before its linear map, with stride 2
for keys and values. There are no positions, and a class token in the last stage only; it goes
around the convolutions. Attention logits are divided by the root of the stage's width, not of a
head's, as in the official code.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.errors import UserError
from evovit_jax.models.batch_norm import ConvNorm, torch_uniform
from evovit_jax.models.config_checks import check_fields
from evovit_jax.models.layers import LayerNorm, Mlp, as_float32, truncated_normal
from evovit_jax.models.outputs import patch_map
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


@dataclasses.dataclass(frozen=True)
class CvTConfig:
    """Every setting of a CvT.

    Attributes:
      image_size: side of the images that it was made for, pixels; others work.
      in_channels: channels of the images.
      num_classes: size of the logits.
      patch_size: side of the patches that each stage begins with, in places of the map before.
      patch_stride: places from one patch to the next, in each stage.
      patch_padding: zeros around that map, in each stage.
      embed_dim: width of the tokens in each stage.
      depth: blocks of each stage.
      num_heads: attention heads in each stage.
      class_token: whether a stage has a class token; the head reads the last stage's, or without
        one the mean of its patches.
      mlp_ratio: hidden width of the MLP over the tokens'.
      qkv_bias: whether the linear maps to queries, keys and values have biases.
      qkv_kernel: side of the convolutions before those maps, odd.
      kv_stride: stride of those before keys and values.
      drop_path_rate: stochastic depth of the last block; it rises linearly from 0 at the last
        stage's first, and the other stages have none.
      freeze_norm: batch norm uses, and keeps, its running statistics in training too.
      norm_eps: epsilon of every LayerNorm.
      dtype: compute dtype of matmuls; parameters, statistics, scores and logits stay float32.
      remat: what the backward pass recomputes: "none", "full", or "dots" (keeps matmul results).
      attention_kernel: "auto", "matmul" or "fused".
    """

    image_size: int = 224
    in_channels: int = 3
    num_classes: int = 1000
    patch_size: tuple[int, ...] = (7, 3, 3)
    patch_stride: tuple[int, ...] = (4, 2, 2)
    patch_padding: tuple[int, ...] = (2, 1, 1)
    embed_dim: tuple[int, ...] = (64, 192, 384)
    depth: tuple[int, ...] = (1, 2, 10)
    num_heads: tuple[int, ...] = (1, 3, 6)
    class_token: tuple[bool, ...] = (False, False, True)
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    qkv_kernel: int = 3
    kv_stride: int = 2
    drop_path_rate: float = 0.0
    freeze_norm: bool = False
    norm_eps: float = 1e-5
    dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "auto"

    def __post_init__(self):
        check_fields(self)
        patches = ("patch_size", "patch_stride", "patch_padding")
        check_stages(self, *patches, "embed_dim", "depth", "num_heads", "class_token")
        if self.qkv_kernel % 2 == 0:
            raise UserError(f"qkv_kernel must be odd, got {self.qkv_kernel}")


class Attention(nnx.Module):
    """Attention whose queries, keys and values come from convolutions of the map."""

    def __init__(self, config: CvTConfig, stage: int, *, rngs: nnx.Rngs):
        dim, dtype = config.embed_dim[stage], jnp.dtype(config.dtype)
        self.heads, self.kernel = config.num_heads[stage], config.attention_kernel
        self.scale = dim**-0.5

        def conv(stride: int) -> ConvNorm:
            return ConvNorm(
                dim,
                dim,
                config.qkv_kernel,
                stride=stride,
                groups=dim,
                dtype=dtype,
                frozen=config.freeze_norm,
                rngs=rngs,
            )

        def linear(bias: bool) -> nnx.Linear:
            made = {"kernel_init": truncated_normal, "dtype": dtype, "rngs": rngs}
            return nnx.Linear(dim, dim, use_bias=bias, **made)

        self.conv_proj_q, self.proj_q = conv(1), linear(config.qkv_bias)
        self.conv_proj_k, self.proj_k = conv(config.kv_stride), linear(config.qkv_bias)
        self.conv_proj_v, self.proj_v = conv(config.kv_stride), linear(config.qkv_bias)
        self.proj = linear(True)

    def __call__(self, x: Float[Array, "b n d"], tokens: TokenSet) -> Float[Array, "b n d"]:
        """Attention over the map of `tokens`, and their class token."""
        b, _, d = x.shape
        places = patch_map(tokens.replace(x=x))

        def projected(conv: ConvNorm, linear: nnx.Linear) -> Float[Array, "b m d"]:
            patches = conv(places, train=tokens.train).reshape(b, -1, d)
            return linear(jnp.concatenate([x[:, : tokens.prefix], patches], axis=1))

        q = projected(self.conv_proj_q, self.proj_q)
        k = projected(self.conv_proj_k, self.proj_k)
        v = projected(self.conv_proj_v, self.proj_v)
        return self.proj(multi_head(q, k, v, self.heads, scale=self.scale, kernel=self.kernel))


class QuickMlp(Mlp):
    """Two linear maps with `x sigmoid(1.702 x)` between them (QuickGELU)."""

    def __call__(self, x: Float[Array, "b n d"], tokens: TokenSet) -> Float[Array, "b n d"]:
        """The MLP of each token on its own."""
        del tokens
        hidden = self.fc1(x)
        return self.fc2(hidden * jax.nn.sigmoid(1.702 * hidden))


class CvT(Pyramid):
    """A CvT; its features are the last stage's tokens after the norm, the class token first.

    A training pass updates batch norm's statistics in place.
    """

    Config = CvTConfig
    smoke: ClassVar = {
        "image_size": 32,
        "embed_dim": (8, 16, 24),
        "depth": (1, 1, 1),
        "num_heads": (1, 2, 3),
    }
    needs_grid = "the convolution before each of its queries, keys and values"

    def __init__(self, config: CvTConfig, reduction=None, *, rngs: nnx.Rngs):
        super().__init__(config, reduction)
        dim, dtype = config.embed_dim[-1], jnp.dtype(config.dtype)
        self.stages = nnx.List(self._stage(stage, rngs) for stage in range(len(config.depth)))
        self.norm = LayerNorm(dim, epsilon=config.norm_eps, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(dim, config.num_classes, kernel_init=truncated_normal, rngs=rngs)

    def _stage(self, stage: int, rngs: nnx.Rngs) -> Stage:
        config, last = self.config, stage == len(self.config.depth) - 1
        made = {"dtype": jnp.dtype(config.dtype), "rngs": rngs}
        dim, depth = config.embed_dim[stage], config.depth[stage]
        patch_embed = OverlapPatchEmbed(
            config.embed_dim[stage - 1] if stage else config.in_channels,
            dim,
            size=config.patch_size[stage],
            stride=config.patch_stride[stage],
            padding=config.patch_padding[stage],
            epsilon=config.norm_eps,
            kernel_init=torch_uniform,
            **made,
        )
        rate, first = config.drop_path_rate if last else 0.0, sum(config.depth[:stage])
        blocks = [
            Block(
                Attention(config, stage, rngs=rngs),
                QuickMlp(dim, int(dim * config.mlp_ratio), **made),
                dim,
                first + i,
                drop_path_rate=rate * i / max(1, depth - 1),
                config=config,
                rngs=rngs,
            )
            for i in range(depth)
        ]
        return Stage(patch_embed, blocks, class_token=config.class_token[stage], rngs=rngs)

    def pool(self, tokens: TokenSet) -> tuple[Float[Array, "b d"], Float[Array, "b n d"]]:
        """The class token, or the patches' mean, and all tokens, normalised."""
        features = self.norm(tokens.x)
        wide = as_float32(features)
        return wide[:, 0] if tokens.prefix else wide.mean(axis=1), features


_TRANSFORM = EvalTransform()
# The authors squeeze whole images into 384x384; here the shorter side is resized to 384.
_AT_384 = EvalTransform(image_size=384, resize=384)
_DEEPER = {"depth": (1, 4, 16)}
MODELS = {
    f"cvt_{name}": Entry(
        CvT,
        settings | {"image_size": transform.image_size},
        transform=transform,
        top1=top1,
        weights=f"hf://microsoft/cvt-{name.replace('_', '-')}",
    )
    for name, settings, transform, top1 in (
        ("13", {}, _TRANSFORM, 81.6),
        ("13_384", {}, _AT_384, 83.0),
        ("21", _DEEPER, _TRANSFORM, 82.5),
        ("21_384", _DEEPER, _AT_384, 83.3),
    )
}
