"""LeViT (Graham et al., 2021), and the network with class token that Evo-LeViT is.

A pyramid: four convolutions with stride 2, then stages of attention and MLP on fewer and fewer
tokens. LeViT has attention biases and no class token. Evo-LeViT (Xu et al., 2022) has a class
token, whose attention ranks the tokens, and learned positions, at the input and before each
subsampling, in the biases' place.
"""

import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.errors import UserError
from evovit_jax.models.batch_norm import ConvNorm, NormLinear
from evovit_jax.models.layers import mean_of_patches, truncated_normal
from evovit_jax.models.levit_layers import (
    PATCH_SIZE,
    STRIDE,
    Block,
    Downsample,
    LeViTConfig,
    positions_for,
)
from evovit_jax.models.outputs import Outputs
from evovit_jax.models.registry import Entry, EvalTransform
from evovit_jax.models.token_model import TokenModel
from evovit_jax.reduction import Backbone, create_reducer
from evovit_jax.reduction.tokens import TokenSet


class Stem(nnx.Module):
    """Four 3x3 convolutions with stride 2, Hardswish between them: a token for 16x16 pixels."""

    def __init__(self, config: LeViTConfig, *, rngs: nnx.Rngs):
        dim, made = config.embed_dim[0], config.layer_settings(rngs)
        widths = (config.in_channels, dim // 8, dim // 4, dim // 2, dim)
        self.convs = nnx.List(
            ConvNorm(c, out, 3, stride=2, **made) for c, out in itertools.pairwise(widths)
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of tokens of an image of that size, in pixels, rounded up."""
        return -(-height // PATCH_SIZE), -(-width // PATCH_SIZE)

    def __call__(self, images: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b p d"]:
        """Patch tokens in raster order."""
        x = images
        for i, conv in enumerate(self.convs):
            x = conv(x if i == 0 else jax.nn.hard_swish(x), train=train)
        return x.reshape(x.shape[0], -1, x.shape[-1])


class LeViT(TokenModel):
    """A LeViT with a reducer.

    A training pass returns the first head's logits; the others are in `Outputs.aux_logits`: "dist"
    for the distillation head, "cls" and "cls_dist" for the same two on Evo-LeViT's class token. It
    also updates batch norm's statistics in place.
    """

    Config = LeViTConfig
    smoke: ClassVar = {
        "image_size": 64,
        "embed_dim": (16, 24, 32),
        "depth": (2, 2, 2),
        "num_heads": (2, 2, 2),
        "key_dim": 8,
    }

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
            stride=STRIDE,
        )
        self.reducer = create_reducer(reduction, backbone, rngs=rngs)

    def embed(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b n d"]:
        """The first stage's tokens in the compute dtype.

        Raises:
          UserError: if there are attention biases and the images are of another size.
        """
        dtype = jnp.dtype(self.config.dtype)
        x = self.patch_embed(images.astype(dtype), train=train)
        grid = self.patch_embed.grid(*images.shape[1:3])
        if not self.prefix:
            if grid != self.grid:
                raise UserError(
                    f"this LeViT has attention biases for images of {self.config.image_size} "
                    f"pixels, got {images.shape[1]}x{images.shape[2]}; make it with image_size"
                )
            return x
        token = jnp.broadcast_to(self.cls_token[...], (x.shape[0], 1, x.shape[2])).astype(dtype)
        positions = positions_for(self.pos_embed[...], self.grid, grid).astype(dtype)
        return jnp.concatenate([token, x], axis=1) + positions

    def classify(self, tokens: TokenSet) -> tuple[Float[Array, "b k"], Outputs]:
        """Logits, the last tokens as they are, and in training the logits of the other heads."""
        train, pooled = tokens.train, mean_of_patches(tokens)
        logits = self.head(pooled, train=train)
        others = {}
        if self.config.distilled:
            others["dist"] = self.head_dist(pooled, train=train)
        if not train:
            logits = (logits + others["dist"]) / 2 if others else logits
            return logits, Outputs(tokens.x)
        if self.config.class_token:
            on_class = tokens.x[:, 0]
            others["cls"] = self.head_cls(on_class, train=train)
            if self.config.distilled:
                others["cls_dist"] = self.head_cls_dist(on_class, train=train)
        return logits, Outputs(tokens.x, aux_logits=others)


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
