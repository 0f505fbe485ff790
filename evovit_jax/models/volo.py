"""VOLO (Yuan et al., 2021): outlook attention on a fine map, then a transformer, then class tokens.

An outlooker makes, from the mean of 2x2 places alone, the weights with which the 3x3 values around
each of them are mixed, nine sums over nine values, which are added where they came from (Section
3.1). After 2x2 places become one, positions are added, and plain blocks follow. The class token
comes in last: two blocks in which it alone attends and changes. As in LV-ViT, half of the largest
of the patches' logits is added to the class token's in inference.

Outlookers need every place of the map, so tokens can be reduced in the plain blocks only: for a
reduction the first of these is block 0. There is no class token in them.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from evovit_jax.errors import UserError
from evovit_jax.models.class_attention import ClassAttention
from evovit_jax.models.config_checks import check_fields
from evovit_jax.models.grid_block import GridBlock, through_blocks
from evovit_jax.models.layers import LayerNorm, Mlp, PatchEmbed, rematerialised, truncated_normal
from evovit_jax.models.lvvit import STEM_STRIDE, Stem, with_patch_logits
from evovit_jax.models.outputs import Outputs
from evovit_jax.models.positions import resize_positions
from evovit_jax.models.registry import Entry, EvalTransform
from evovit_jax.models.token_model import TokenModel
from evovit_jax.models.vit import Block, ViTConfig
from evovit_jax.reduction import Backbone, create_reducer
from evovit_jax.reduction.tokens import TokenSet, start_tokens

WINDOW, STRIDE = 3, 2  # of outlook attention, in places of the map
POOLING = 2  # rows and columns that become one after the outlookers
CLASS_BLOCKS = 2


@dataclasses.dataclass(frozen=True)
class VOLOConfig:
    """Every setting of a VOLO.

    Attributes:
      image_size: side of the images that the positions are for, pixels; others are interpolated.
      patch_size: side of a place of the outlookers' map, pixels; even.
      in_channels: channels of the images.
      num_classes: size of the logits.
      layers: blocks of each stage; those of the first are outlookers.
      embed_dims: width of the tokens in each stage, the same from the second on.
      num_heads: attention heads in each stage; the class token's blocks have those of the last.
      stem_hidden_dim: width of the stem's three convolutions.
      mlp_ratio: hidden width of the MLPs over the tokens'.
      qkv_bias: whether queries, keys and values have biases.
      drop_path_rate: stochastic depth of the last plain block; it rises linearly from 0 at the
        first block. Outlookers and the class token's blocks have none, as in the official code.
      norm_eps: epsilon of every LayerNorm.
      freeze_norm: the stem's batch norm uses, and keeps, its running statistics in training too.
      dtype: compute dtype of matmuls; parameters, scores, softmax and logits stay float32.
      remat: what the backward pass recomputes: "none", "full", or "dots" (keeps matmul results).
      attention_kernel: "auto", "matmul" or "fused", of the plain blocks.
    """

    image_size: int = 224
    patch_size: int = 8
    in_channels: int = 3
    num_classes: int = 1000
    layers: tuple[int, ...] = (4, 4, 8, 2)
    embed_dims: tuple[int, ...] = (192, 384, 384, 384)
    num_heads: tuple[int, ...] = (6, 12, 12, 12)
    stem_hidden_dim: int = 64
    mlp_ratio: float = 3.0
    qkv_bias: bool = False
    drop_path_rate: float = 0.0
    norm_eps: float = 1e-5
    freeze_norm: bool = False
    dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "auto"

    def __post_init__(self):
        check_fields(self)
        if not 2 <= len(self.layers) == len(self.embed_dims) == len(self.num_heads):
            raise UserError(
                "layers, embed_dims and num_heads must have one number for each stage, two or more"
            )
        if len(set(self.embed_dims[1:])) > 1:
            raise UserError(
                f"embed_dims must be the same from the second stage on, got {self.embed_dims}"
            )
        if self.patch_size % STEM_STRIDE:
            raise UserError(f"patch_size of a VOLO must be even, got {self.patch_size}")
        for stage in range(len(self.layers)):
            self.of_stage(stage)

    def of_stage(self, stage: int) -> ViTConfig:
        """The settings of a ViT with the blocks of a stage; its depth is that of all stages."""
        return ViTConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            embed_dim=self.embed_dims[stage],
            depth=sum(self.layers),
            num_heads=self.num_heads[stage],
            mlp_ratio=self.mlp_ratio,
            qkv_bias=self.qkv_bias,
            drop_path_rate=self.drop_path_rate if stage else 0.0,
            norm_eps=self.norm_eps,
            dtype=self.dtype,
            remat=self.remat,
            attention_kernel=self.attention_kernel,
        )


def mean_of_cells(x: Float[Array, "b h w d"]) -> Float[Array, "b y x d"]:
    """The mean of each `STRIDE` x `STRIDE` cell; at odd ends, of what a cell has."""
    b, rows, columns, d = x.shape
    y, z = -(-rows // STRIDE), -(-columns // STRIDE)
    x = jnp.pad(x, ((0, 0), (0, y * STRIDE - rows), (0, z * STRIDE - columns), (0, 0)))
    sums = x.reshape(b, y, STRIDE, z, STRIDE, d).sum(axis=(2, 4))
    tall, wide = (
        np.minimum(STRIDE, size - STRIDE * np.arange(cells))
        for size, cells in ((rows, y), (columns, z))
    )
    return sums / jnp.asarray(tall[:, None] * wide, x.dtype)[None, :, :, None]


class OutlookAttention(nnx.Module):
    """Mixes the values of every second 3x3 window by weights made at its centre."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        dim, self.heads = config.embed_dim, config.num_heads
        self.scale = (dim // self.heads) ** -0.5
        made = {"kernel_init": truncated_normal, "dtype": jnp.dtype(config.dtype), "rngs": rngs}
        self.v = nnx.Linear(dim, dim, use_bias=config.qkv_bias, **made)
        self.attn = nnx.Linear(dim, self.heads * WINDOW**4, **made)
        self.proj = nnx.Linear(dim, dim, **made)

    def __call__(self, x: Float[Array, "b n d"], grid: tuple[int, int]) -> Float[Array, "b n d"]:
        """The sum, for each place, of what the windows that it is in give it."""
        b, n, d = x.shape
        x = x.reshape(b, *grid, d)
        logits = self.attn(mean_of_cells(x)).astype(jnp.float32) * self.scale
        y, z = logits.shape[1:3]
        logits = logits.reshape(b, y, z, self.heads, WINDOW**2, WINDOW**2)
        weights = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
        margin = WINDOW // 2
        # Of each axis: how long it is with its margins, and how far the first places reach.
        full = [size + 2 * margin for size in grid]
        reach = [STRIDE * (cells - 1) + 1 for cells in (y, z)]
        values = jnp.pad(self.v(x), ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        offsets = list(itertools.product(range(WINDOW), repeat=2))
        windows = jnp.stack(
            [values[:, i : i + reach[0] : STRIDE, j : j + reach[1] : STRIDE] for i, j in offsets],
            axis=3,
        ).reshape(b, y, z, WINDOW**2, self.heads, -1)
        mixed = jnp.einsum("byzhqk,byzkhc->byzqhc", weights, windows)
        mixed = mixed.reshape(b, y, z, WINDOW**2, d)
        none, zero = (0, 0, 0), jnp.zeros((), x.dtype)
        folded = sum(
            jax.lax.pad(
                mixed[:, :, :, place],
                zero,
                (
                    none,
                    (i, full[0] - reach[0] - i, STRIDE - 1),
                    (j, full[1] - reach[1] - j, STRIDE - 1),
                    none,
                ),
            )
            for place, (i, j) in enumerate(offsets)
        )
        folded = folded[:, margin:-margin, margin:-margin]
        return self.proj(folded.reshape(b, n, d))


class ClassBlock(nnx.Module):
    """A pre-norm block that changes the class token alone."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        dim, dtype = config.embed_dim, jnp.dtype(config.dtype)
        self.remat = config.remat
        self.norm1 = LayerNorm(dim, epsilon=config.norm_eps, dtype=dtype, rngs=rngs)
        self.attn = ClassAttention(
            dim, config.num_heads, qkv_bias=config.qkv_bias, dtype=dtype, rngs=rngs
        )
        self.norm2 = LayerNorm(dim, epsilon=config.norm_eps, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], bias: Float[Array, "b 1 1 n"] | None
    ) -> Float[Array, "b n d"]:
        """All tokens, the class token first; `bias` is added to its attention logits."""

        def changed(x: Float[Array, "b n d"]) -> Float[Array, "b 1 d"]:
            token = x[:, :1] + self.attn(self.norm1(x), bias)
            return token + self.mlp(self.norm2(token))

        return jnp.concatenate([rematerialised(changed, self.remat)(x), x[:, 1:]], axis=1)


class VOLO(TokenModel):
    """A VOLO with a reducer in its plain blocks.

    A training pass returns the class token's logits and updates the stem's statistics in place.
    `Outputs.aux` has "class_logits" `[b, k]` and "patch_logits" `[b, p, k]` of the patches that are
    left, and "stage0" `[b, h, w, d]`, the map after the outlookers, in both modes. The attention of
    the class token counts merged patches by their sizes, masked ones not at all.
    """

    Config = VOLOConfig
    prefix = 0
    smoke: ClassVar = {
        "image_size": 64,
        "layers": (1, 2),
        "embed_dims": (12, 24),
        "num_heads": (2, 3),
        "stem_hidden_dim": 8,
    }

    def __init__(self, config: VOLOConfig, reduction=None, *, rngs: nnx.Rngs):
        self.config = config
        dtype = jnp.dtype(config.dtype)
        stages = [config.of_stage(stage) for stage in range(len(config.layers))]
        first, dim = config.embed_dims[0], config.embed_dims[-1]
        side = config.image_size // config.patch_size // POOLING
        self.grid = (side, side)
        self.patch_embed = Stem(
            config.patch_size,
            config.in_channels,
            config.stem_hidden_dim,
            first,
            dtype=dtype,
            frozen=config.freeze_norm,
            rngs=rngs,
        )
        self.outlookers = nnx.List(
            GridBlock(stages[0], i, OutlookAttention(stages[0], rngs=rngs), rngs=rngs)
            for i in range(config.layers[0])
        )
        self.downsample = PatchEmbed(POOLING, first, dim, dtype=dtype, rngs=rngs)
        self.pos_embed = nnx.Param(truncated_normal(rngs.params(), (1, *self.grid, dim)))
        plain = [stages[i] for i, count in enumerate(config.layers) if i for _ in range(count)]
        self.blocks = nnx.List(
            Block(stage, number, rngs=rngs) for number, stage in enumerate(plain, config.layers[0])
        )
        self.cls_token = nnx.Param(truncated_normal(rngs.params(), (1, 1, dim)))
        self.post_network = nnx.List(ClassBlock(stages[-1], rngs=rngs) for _ in range(CLASS_BLOCKS))
        self.norm = LayerNorm(dim, epsilon=config.norm_eps, dtype=dtype, rngs=rngs)
        made = {"kernel_init": truncated_normal, "rngs": rngs}
        self.head = nnx.Linear(dim, config.num_classes, **made)
        self.aux_head = nnx.Linear(dim, config.num_classes, **made)
        backbone = Backbone(
            depth=len(plain),
            dim=(dim,),
            heads=(config.num_heads[1],),
            grid=self.grid,
            prefix=self.prefix,
            stage_depths=(len(plain),),
            classes=config.num_classes,
        )
        self.reducer = create_reducer(reduction, backbone, rngs=rngs)

    @property
    def stages(self) -> list[Sequence[Block]]:
        """The plain blocks, as one stage."""
        return [self.blocks]

    def start(
        self, images: Float[Array, "b h w c"], *, train: bool, key: Key[Array, ""] | None
    ) -> TokenSet:
        """The tokens in front of the first plain block, with their positions."""
        dtype, given = jnp.dtype(self.config.dtype), {"train": train, "key": key}
        fine = self.patch_embed.grid(*images.shape[1:3])
        x = self.patch_embed(images.astype(dtype), train=train)
        tokens = start_tokens(x, prefix=0, grid=fine, **given)
        tokens = through_blocks(self.outlookers, tokens, first=len(self.blocks))
        shown = tokens.x.reshape(x.shape[0], *fine, -1)
        rows, columns = (size // POOLING for size in fine)
        # A last odd row or column is lost, as in a convolution.
        x = self.downsample(shown[:, : rows * POOLING, : columns * POOLING])
        positions = self.pos_embed[...].reshape(1, -1, x.shape[-1])
        x = x + resize_positions(positions, self.grid, (rows, columns)).astype(dtype)
        return start_tokens(x, prefix=0, grid=(rows, columns), **given).put_aside(stage0=shown)

    def classify(self, tokens: TokenSet) -> tuple[Float[Array, "b k"], Outputs]:
        """Logits, normalised features with the class token first, and what `aux` has to show."""
        x = tokens.x
        token = jnp.broadcast_to(self.cls_token[...], (x.shape[0], 1, x.shape[2])).astype(x.dtype)
        x, bias = jnp.concatenate([token, x], axis=1), class_bias(tokens)
        for block in self.post_network:
            x = block(x, bias)
        logits, out = with_patch_logits(self, self.norm(x), tokens.mask, train=tokens.train)
        shown = {"stage0": tokens.aside["stage0"]}
        return logits, dataclasses.replace(out, aux={**out.aux, **shown})


def class_bias(tokens: TokenSet) -> Float[Array, "b 1 1 n"] | None:
    """The bias of a class token's attention to itself and `tokens`: log sizes, -inf where masked.

    None where all tokens count alike.
    """
    if tokens.sizes is None and tokens.mask is None:
        return None
    bias = jnp.zeros(tokens.x.shape[:2]) if tokens.sizes is None else jnp.log(tokens.sizes)
    if tokens.mask is not None:
        bias = jnp.where(tokens.mask, bias, -jnp.inf)
    return jnp.pad(bias, ((0, 0), (1, 0)))[:, None, None]


MODELS = {
    "volo_d1_224": Entry(
        VOLO,
        {},
        transform=EvalTransform(resize=233),  # timm's crop fraction, 0.96
        top1=84.2,
        weights="hf://timm/volo_d1_224.sail_in1k",
    ),
    "volo_d1_384": Entry(
        VOLO,
        {"image_size": 384},
        transform=EvalTransform(image_size=384, resize=384),
        top1=85.2,
        weights="hf://timm/volo_d1_384.sail_in1k",
    ),
}
