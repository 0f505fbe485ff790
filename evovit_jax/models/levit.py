"""LeViT (Graham et al., 2021), and the network with class token that Evo-LeViT is.

A pyramid: four convolutions with stride 2, then stages of attention and MLP on fewer and fewer
tokens. LeViT has attention biases and no class token. Evo-LeViT (Xu et al., 2022) has a class
token, whose attention ranks the tokens, and learned positions, at the input and before each
subsampling, in the biases' place.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from evovit_jax.errors import UserError
from evovit_jax.models.batch_norm import ConvNorm, NormLinear
from evovit_jax.models.layers import truncated_normal
from evovit_jax.models.levit_layers import (
    STRIDE,
    Block,
    LeViTConfig,
    Mlp,
    SubsampleAttention,
    add_branch,
    positions_for,
    recomputed,
)
from evovit_jax.models.outputs import Outputs
from evovit_jax.models.registry import Entry, EvalTransform
from evovit_jax.models.vit import mean_of_patches
from evovit_jax.reduction import Backbone, create_reducer
from evovit_jax.reduction.base import Reducer
from evovit_jax.reduction.tokens import TokenSet, check_tokens, follow, start_tokens


class Stem(nnx.Module):
    """Four 3x3 convolutions with stride 2, Hardswish between them: a token for 16x16 pixels."""

    def __init__(self, config: LeViTConfig, *, rngs: nnx.Rngs):
        dim, made = config.embed_dim[0], config.layer_settings(rngs)
        widths = (config.in_channels, dim // 8, dim // 4, dim // 2, dim)
        self.convs = nnx.List(
            ConvNorm(c, out, 3, stride=2, **made) for c, out in itertools.pairwise(widths)
        )

    def __call__(
        self, images: Float[Array, "b h w c"], *, train: bool
    ) -> tuple[Float[Array, "b p d"], tuple[int, int]]:
        """Patch tokens in raster order, and their grid."""
        x = images
        for i, conv in enumerate(self.convs):
            x = conv(x if i == 0 else jax.nn.hard_swish(x), train=train)
        b, rows, columns, d = x.shape
        return x.reshape(b, rows * columns, d), (rows, columns)


class Downsample(nnx.Module):
    """What lies between two stages: subsampling attention, then an MLP with its residual."""

    def __init__(self, config: LeViTConfig, stage: int, *, rngs: nnx.Rngs):
        self.stage = stage
        self.attn = SubsampleAttention(config, stage, rngs=rngs)
        self.mlp = Mlp(config, stage + 1, rngs=rngs)
        self.drop_path_rate, self.remat = config.drop_path_rate, config.remat

    def __call__(self, tokens: TokenSet, reducer: Reducer, branch: int) -> TokenSet:
        """The next stage's tokens; `branch` numbers the residual branch for drop path."""
        request = reducer.subsample_request(self.stage, tokens)

        def attention(attn: SubsampleAttention, x: Array):
            return attn(x, tokens.grid, request, train=tokens.train)

        x, view = recomputed(attention, self.remat)(self.attn, tokens.x)
        tokens = reducer.subsample(tokens, view, STRIDE, stage=self.stage)
        tokens = subsampled(tokens, x)

        def feed_forward(mlp: Mlp, x: Array) -> Array:
            return mlp(x, train=tokens.train)

        added = recomputed(feed_forward, self.remat)(self.mlp, tokens.x)
        return add_branch(tokens, added, self.drop_path_rate, branch)


def subsampled(tokens: TokenSet, x: Float[Array, "b n d"]) -> TokenSet:
    """The set with the tokens `x` of the next grid.

    For the source map a token stands for the STRIDE x STRIDE cell that it is the corner of.
    """
    rows, columns = tokens.grid
    grid = (-(-rows // STRIDE), -(-columns // STRIDE))
    places = jnp.arange(rows * columns, dtype=jnp.int32)
    y, x_ = jnp.divmod(places, columns)
    cells = (y // STRIDE) * grid[1] + x_ // STRIDE + tokens.prefix
    moves = jnp.concatenate([jnp.arange(tokens.prefix, dtype=jnp.int32), cells])
    moves = jnp.broadcast_to(moves, (len(x), len(moves)))
    return tokens.replace(x=x, grid=grid, source=follow(tokens.source, moves))


class LeViT(nnx.Module):
    """A LeViT with a reducer.

    `model(images)` returns float32 logits `[batch, num_classes]` and `Outputs`. A training pass
    returns the first head's; the others are in `Outputs.aux_logits`: "dist" for the distillation
    head, "cls" and "cls_dist" for the same two on Evo-LeViT's class token. It also updates batch
    norm's statistics in place.
    """

    Config = LeViTConfig

    def __init__(self, config: LeViTConfig, reduction=None, *, rngs: nnx.Rngs):
        self.config = config
        self.prefix = 1 if config.class_token else 0
        self.grid = config.grids()[0]
        dim, stages = config.embed_dim, range(len(config.depth))

        def head() -> NormLinear:
            return NormLinear(dim[-1], config.num_classes, frozen=config.freeze_norm, rngs=rngs)

        self.patch_embed = Stem(config, rngs=rngs)
        if config.class_token:
            self.cls_token = nnx.Param(truncated_normal(rngs.params(), (1, 1, dim[0])))
            shape = (1, 1 + self.grid[0] * self.grid[1], dim[0])
            self.pos_embed = nnx.Param(truncated_normal(rngs.params(), shape))
        self.stages = nnx.List(
            nnx.List(Block(config, stage, rngs=rngs) for _ in range(config.depth[stage]))
            for stage in stages
        )
        self.downsamples = nnx.List(Downsample(config, s, rngs=rngs) for s in stages[:-1])
        self.head = head()
        if config.distilled:
            self.head_dist = head()
        if config.class_token:
            self.head_cls = head()
            if config.distilled:
                self.head_cls_dist = head()
        backbone = Backbone(
            depth=sum(config.depth),
            dim=dim,
            heads=config.num_heads,
            grid=self.grid,
            prefix=self.prefix,
            stage_depths=config.depth,
            key_dim=config.key_dim,
        )
        self.reducer = create_reducer(reduction, backbone, rngs=rngs)

    def embed(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Float[Array, "b n d"], tuple[int, int]]:
        """The first stage's tokens in the compute dtype, and their grid.

        Raises:
          UserError: if there are attention biases and the images are of another size.
        """
        dtype = jnp.dtype(self.config.dtype)
        x, grid = self.patch_embed(images.astype(dtype), train=train)
        if not self.prefix:
            if grid != self.grid:
                raise UserError(
                    f"this LeViT has attention biases for images of {self.config.image_size} "
                    f"pixels, got {images.shape[1]}x{images.shape[2]}; make it with image_size"
                )
            return x, grid
        token = jnp.broadcast_to(self.cls_token[...], (len(x), 1, x.shape[2])).astype(dtype)
        positions = positions_for(self.pos_embed[...], self.grid, grid).astype(dtype)
        return jnp.concatenate([token, x], axis=1) + positions, grid

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
          train: a training pass: batch statistics, stochastic depth, auxiliary heads, losses.
          key: where everything random of the pass comes from; None switches it off.
          reduction: settings of the reducer for this pass, by field.
        """
        reducer = self.reducer.override(**(reduction or {}))
        x, grid = self.embed(images, train=train)
        tokens = start_tokens(x, prefix=self.prefix, grid=grid, train=train, key=key)
        dims = self.config.embed_dim
        check = functools.partial(check_tokens, inputs=tokens.x.shape[1])
        tokens = check(reducer.start(tokens), dim=dims[0])
        maps, number = [], itertools.count()
        depth = sum(self.config.depth)
        for stage, blocks in enumerate(self.stages):
            check = functools.partial(check, dim=dims[stage])
            if stage:
                branch = 2 * depth + stage
                tokens = self.downsamples[stage - 1](tokens, reducer, branch)
            for block, i in zip(blocks, number, strict=False):
                tokens = check(reducer.before_block(i, tokens))
                tokens, attention = block.attend(i, tokens, reducer)
                tokens = check(reducer.after_attention(i, tokens, attention))
                maps.append(tokens.source)
                tokens = block.feed_forward(i, tokens)
                tokens = check(reducer.after_block(i, tokens))
        tokens = check(reducer.finish(tokens))
        logits, aux_logits = self._classify(tokens)
        return logits, Outputs(
            features=tokens.x,
            token_maps=(*maps, tokens.source),
            aux_logits=aux_logits,
            losses=reducer.losses(tokens) if train else {},
            aux=reducer.aux(tokens),
        )

    def _classify(self, tokens: TokenSet) -> tuple[Array, dict[str, Array]]:
        """Logits `[b, k]`, and in training those of the other heads by name."""
        train, pooled = tokens.train, mean_of_patches(tokens)
        logits = self.head(pooled, train=train)
        others = {}
        if self.config.distilled:
            others["dist"] = self.head_dist(pooled, train=train)
        if not train:
            return (logits + others["dist"]) / 2 if others else logits, {}
        if self.config.class_token:
            on_class = tokens.x[:, 0]
            others["cls"] = self.head_cls(on_class, train=train)
            if self.config.distilled:
                others["cls_dist"] = self.head_cls_dist(on_class, train=train)
        return logits, others


SIZES = {
    "128s": {
        "embed_dim": (128, 256, 384),
        "key_dim": 16,
        "num_heads": (4, 6, 8),
        "depth": (2, 3, 4),
    },
    "128": {
        "embed_dim": (128, 256, 384),
        "key_dim": 16,
        "num_heads": (4, 8, 12),
        "depth": (4, 4, 4),
    },
    "192": {
        "embed_dim": (192, 288, 384),
        "key_dim": 32,
        "num_heads": (3, 5, 6),
        "depth": (4, 4, 4),
    },
    "256": {
        "embed_dim": (256, 384, 512),
        "key_dim": 32,
        "num_heads": (4, 6, 8),
        "depth": (4, 4, 4),
    },
    "384": {
        "embed_dim": (384, 512, 768),
        "key_dim": 32,
        "num_heads": (6, 9, 12),
        "depth": (4, 4, 4),
        "drop_path_rate": 0.1,
    },
}
_FILES = "https://dl.fbaipublicfiles.com/LeViT/LeViT-"
_OFFICIAL = "https://github.com/YifanXu74/Evo-ViT"
# Top-1 and the file of the published weights; Evo-LeViT's top-1 at 224 and 384 pixels.
_PUBLISHED = {
    "128s": (76.6, "128S-96703c44.pth"),
    "128": (78.6, "128-b88c2750.pth"),
    "192": (80.0, "192-92712e41.pth"),
    "256": (81.6, "256-13b5763e.pth"),
    "384": (82.6, "384-9bdaf2e2.pth"),
}
_EVO_TOP1 = {
    224: {"128s": 73.0, "128": 74.4, "192": 76.8, "256": 78.8, "384": 80.7},
    384: {"256": 81.1, "384": 82.2},
}

MODELS = {
    f"levit_{size}": Entry(LeViT, SIZES[size], top1=top1, weights=_FILES + file)
    for size, (top1, file) in _PUBLISHED.items()
}


def _evo(size: str, image_size: int) -> Entry:
    top1 = _EVO_TOP1[image_size].get(size)
    return Entry(
        LeViT,
        SIZES[size] | {"image_size": image_size, "class_token": True},
        reduction="evo",
        transform=EvalTransform().at(image_size),
        top1=top1,
        weights=_OFFICIAL if top1 else "",
    )


MODELS |= {f"evo_levit_{size}": _evo(size, 224) for size in SIZES}
MODELS |= {f"evo_levit_{size}_384": _evo(size, 384) for size in SIZES}
