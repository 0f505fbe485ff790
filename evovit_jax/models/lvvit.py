"""LV-ViT (Jiang et al., 2021): a ViT with a convolutional stem and labels on every patch token.

Its blocks have no query-key-value bias and divide their residual branches by `skip_lam`. An
auxiliary head classifies the patch tokens; in inference half of the largest of their logits, class
by class, is added to the class token's. DynamicViT's teacher and student on it read both.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from evovit_jax.errors import UserError
from evovit_jax.models.batch_norm import ConvNorm
from evovit_jax.models.layers import as_float32, patch_grid, truncated_normal
from evovit_jax.models.outputs import Outputs
from evovit_jax.models.registry import Entry, EvalTransform
from evovit_jax.models.vit import VisionTransformer, ViTConfig
from evovit_jax.reduction import Backbone
from evovit_jax.reduction.tokens import TokenSet

STEM_WIDTH = 64
STEM_STRIDE = 2  # of the first convolution


@dataclasses.dataclass(frozen=True)
class LVViTConfig(ViTConfig):
    """Settings of an LV-ViT; the fields are those of a ViT.

    Attributes:
      freeze_norm: the stem's batch norm uses, and keeps, its running statistics in training too.
    """

    embed_dim: int = 384
    depth: int = 16
    num_heads: int = 6
    mlp_ratio: float = 3.0
    qkv_bias: bool = False
    skip_lam: float = 2.0
    norm_eps: float = 1e-5
    freeze_norm: bool = False

    def __post_init__(self):
        super().__post_init__()
        for name, value in (("patch_size", 16), ("distilled", False), ("pool", "token")):
            if getattr(self, name) != value:
                raise UserError(f"{name} of an LV-ViT is {value!r}, got {getattr(self, name)!r}")


class Stem(nnx.Module):
    """Three convolutions, the first with stride 2, then patches of what they give."""

    def __init__(
        self,
        patch_size: int,
        channels: int,
        width: int,
        dim: int,
        *,
        dtype: jnp.dtype,
        frozen: bool,
        rngs: nnx.Rngs,
    ):
        made = {"dtype": dtype, "frozen": frozen, "rngs": rngs}
        self.patch_size = patch_size  # pixels of the image
        side = patch_size // STEM_STRIDE
        self.convs = nnx.List(
            [
                ConvNorm(channels, width, 7, stride=STEM_STRIDE, **made),
                ConvNorm(width, width, 3, **made),
                ConvNorm(width, width, 3, **made),
            ]
        )
        self.proj = nnx.Conv(
            width, dim, (side, side), strides=side, padding="VALID", dtype=dtype, rngs=rngs
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches of an image of that size."""
        return patch_grid(height, width, self.patch_size)

    def __call__(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b p d"]:
        """Patch tokens in raster order."""
        x = images
        for conv in self.convs:
            x = jax.nn.relu(conv(x, train=train))
        x = self.proj(x)
        return x.reshape(x.shape[0], -1, x.shape[-1])


class LVViT(VisionTransformer):
    """An LV-ViT with a reducer.

    A training pass returns the class token's logits; `Outputs.aux` has "class_logits" `[b, k]` and
    "patch_logits" `[b, p, k]` of the patch tokens that are left, in both modes.
    """

    Config = LVViTConfig
    smoke: ClassVar = {"image_size": 64, "embed_dim": 24, "depth": 4, "num_heads": 3}

    def __init__(self, config: LVViTConfig, reduction=None, *, rngs: nnx.Rngs):
        super().__init__(config, reduction, rngs=rngs)
        self.aux_head = nnx.Linear(
            config.embed_dim, config.num_classes, kernel_init=truncated_normal, rngs=rngs
        )

    def _patch_embed(self, rngs: nnx.Rngs) -> nnx.Module:
        c = self.config
        return Stem(
            c.patch_size,
            c.in_channels,
            STEM_WIDTH,
            c.embed_dim,
            dtype=jnp.dtype(c.dtype),
            frozen=c.freeze_norm,
            rngs=rngs,
        )

    def _backbone(self) -> Backbone:
        return dataclasses.replace(super()._backbone(), pools_patches=True)

    # The patches are classified too.
    read_tokens = None

    def classify(self, tokens: TokenSet) -> tuple[Float[Array, "b k"], Outputs]:
        """Logits, normalised features, and the logits of the class token and of the patches."""
        mask = None if tokens.mask is None else tokens.mask[:, tokens.prefix :]
        return with_patch_logits(self, self.norm(tokens.x), mask, train=tokens.train)


def with_patch_logits(
    model: nnx.Module,
    features: Float[Array, "b n d"],
    mask: Bool[Array, "b p"] | None,
    *,
    train: bool,
) -> tuple[Float[Array, "b k"], Outputs]:
    """Logits by `model.head` of the class token and by `model.aux_head` of the patches.

    Args:
      model: has both heads.
      features: after the last norm, one class token first.
      mask: which patches count; None means all.
      train: the class token's logits alone are returned.
    """
    on_class = model.head(as_float32(features[:, 0]))
    on_patches = model.aux_head(as_float32(features[:, 1:]))
    counted = on_patches
    if mask is not None:
        # Where a mask drops every patch of an image, the class token classifies alone.
        counts, none = jnp.broadcast_arrays(mask[:, :, None], ~mask.any(axis=1)[:, None, None])
        counted = jnp.where(counts, on_patches, jnp.where(none, 0.0, -jnp.inf))
    logits = on_class if train else on_class + 0.5 * counted.max(axis=1)
    aux = {"class_logits": on_class, "patch_logits": on_patches}
    return logits, Outputs(features, as_float32(features[:, 0]), aux=aux)


_WEIGHTS = "https://github.com/zihangJiang/TokenLabeling"
_TRANSFORM = EvalTransform(resize=248)

MODELS = {
    "lvvit_s": Entry(LVViT, {}, transform=_TRANSFORM, top1=83.3, weights=_WEIGHTS),
    "lvvit_m": Entry(
        LVViT,
        {"embed_dim": 512, "depth": 20, "num_heads": 8},
        transform=_TRANSFORM,
        top1=84.0,
        weights=_WEIGHTS,
    ),
}
