"""Pyramids in which every block needs the whole map: what PVT v2 and CvT share.

A stage begins with overlapping patches of the map before it. Convolutions inside the blocks see a
token's neighbours on the grid, so that no token can leave or merge.

Tested in tests/models/pvt_v2_test.py and tests/models/cvt_test.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from evovit_jax.errors import UserError
from evovit_jax.models.attention import attend
from evovit_jax.models.batch_norm import recomputed
from evovit_jax.models.layers import LayerNorm, add_branch, truncated_normal
from evovit_jax.models.outputs import Outputs, patch_map
from evovit_jax.models.unreduced import Unreduced
from evovit_jax.models.vit import ViTConfig
from evovit_jax.reduction import parse
from evovit_jax.reduction.base import NOTHING_ASKED
from evovit_jax.reduction.tokens import TokenSet, start_tokens


def sides(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of square images, or as they are given."""
    return image_size if isinstance(image_size, tuple) else (image_size, image_size)


def check_stages(config: Any, *names: str) -> None:
    """Checks that the named fields have a member for each stage, and that heads divide widths.

    Raises:
      UserError: one is longer than another, or a width does not divide into its heads.
    """
    if len({len(getattr(config, name)) for name in names}) > 1:
        raise UserError(f"{', '.join(names)} must have one member for each stage")
    for dim, heads in zip(config.embed_dim, config.num_heads, strict=True):
        if dim % heads:
            raise UserError(f"embed_dim {dim} does not divide into num_heads {heads}")


def of_blocks(config: Any, stage: int) -> ViTConfig:
    """The settings of a ViT with the blocks of a stage."""
    names = ("mlp_ratio", "qkv_bias", "drop_path_rate", "norm_eps", "dtype", "remat")
    return ViTConfig(
        embed_dim=config.embed_dim[stage],
        depth=sum(config.depth),
        num_heads=config.num_heads[stage],
        attention_kernel=config.attention_kernel,
        **{name: getattr(config, name) for name in names},
    )


def whole_patches(height: int, width: int, size: int, stride: int) -> tuple[int, int]:
    """(rows, columns) of patches without padding; what is left at an image's end is unseen.

    Raises:
      UserError: the image is smaller than a patch.
    """
    if min(height, width) < size:
        raise UserError(f"an image of {height}x{width} pixels is smaller than a patch of {size}")
    rows, columns = ((side - size) // stride + 1 for side in (height, width))
    return rows, columns


class OverlapPatchEmbed(nnx.Module):
    """Overlapping patches of a map: a convolution with stride, then LayerNorm."""

    def __init__(
        self,
        channels: int,
        dim: int,
        *,
        size: int,
        stride: int,
        padding: int,
        epsilon: float,
        dtype: jnp.dtype,
        kernel_init: nnx.Initializer,
        rngs: nnx.Rngs,
    ):
        self.proj = nnx.Conv(
            channels,
            dim,
            (size, size),
            strides=stride,
            padding=padding,
            kernel_init=kernel_init,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = LayerNorm(dim, epsilon=epsilon, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b y x d"]:
        """The smaller map.

        Raises:
          UserError: the map is smaller than a patch.
        """
        patches = self.proj(x)
        if not patches.size:
            raise UserError(f"a map of {x.shape[1]}x{x.shape[2]} is too small: use larger images")
        return self.norm(patches)


def multi_head(
    q: Float[Array, "b n d"],
    k: Float[Array, "b m d"],
    v: Float[Array, "b m d"],
    heads: int,
    *,
    scale: float,
    kernel: str,
) -> Float[Array, "b n d"]:
    """Attention of the queries `q` to other tokens, head beside head in the channels."""

    def apart(x: Float[Array, "b n d"]) -> Float[Array, "b h n c"]:
        return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)

    mixed, _ = attend(
        apart(q), apart(k), apart(v), scale=scale, request=NOTHING_ASKED, kernel=kernel
    )
    return mixed.swapaxes(1, 2).reshape(q.shape)


class Block(nnx.Module):
    """A pre-norm block; attention and MLP are given the normalised tokens, and the set's grid."""

    def __init__(
        self,
        attn: nnx.Module,
        mlp: nnx.Module,
        dim: int,
        number: int,
        *,
        drop_path_rate: float,
        config: Any,
        rngs: nnx.Rngs,
    ):
        made = {"epsilon": config.norm_eps, "dtype": jnp.dtype(config.dtype), "rngs": rngs}
        self.norm1, self.attn = LayerNorm(dim, **made), attn
        self.norm2, self.mlp = LayerNorm(dim, **made), mlp
        self.number, self.drop_path_rate, self.remat = number, drop_path_rate, config.remat

    def __call__(self, tokens: TokenSet) -> TokenSet:
        """The tokens after attention and MLP, each with its residual."""
        tokens = self._added(tokens, 2 * self.number, self.norm1, self.attn)
        return self._added(tokens, 2 * self.number + 1, self.norm2, self.mlp)

    def _added(
        self, tokens: TokenSet, number: int, norm: nnx.Module, layer: nnx.Module
    ) -> TokenSet:
        """The tokens plus residual branch number `number` of the network."""

        def branch(modules: tuple[nnx.Module, nnx.Module], x: Array) -> Array:
            norm, layer = modules
            return layer(norm(x), tokens)

        added = recomputed(branch, self.remat)((norm, layer), tokens.x)
        return add_branch(tokens, added, self.drop_path_rate, number)


class Stage(nnx.Module):
    """Patches of a map, blocks over them, and where there is one a norm at the end."""

    def __init__(
        self,
        patch_embed: OverlapPatchEmbed,
        blocks: Sequence[Block],
        *,
        norm: LayerNorm | None = None,
        class_token: bool = False,
        rngs: nnx.Rngs,
    ):
        self.patch_embed, self.blocks, self.norm = patch_embed, nnx.List(blocks), norm
        shape = (1, 1, patch_embed.proj.out_features)
        token = nnx.Param(truncated_normal(rngs.params(), shape)) if class_token else None
        self.cls_token = token

    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool, key: Key[Array, ""] | None
    ) -> TokenSet:
        """The stage's tokens, the class token first where it has one."""
        patches = self.patch_embed(x)
        b, rows, columns, d = patches.shape
        x, prefix = patches.reshape(b, rows * columns, d), 0
        if self.cls_token is not None:
            token = jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (b, 1, d))
            x, prefix = jnp.concatenate([token, x], axis=1), 1
        tokens = start_tokens(x, prefix=prefix, grid=(rows, columns), train=train, key=key)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens if self.norm is None else tokens.replace(x=self.norm(tokens.x))


class Pyramid(Unreduced):
    """Stages over smaller and smaller maps; its only reduction is "none".

    `model(images)` returns float32 logits `[batch, num_classes]` and `Outputs`, whose `aux` has the
    patches at the end of each stage as `stage0`, `stage1`, ... `[batch, rows, columns, width]`.
    Subclasses have `pool`, and the attributes below.

    Attributes:
      Config: the dataclass of the settings.
      smoke: settings of the smallest sensible network, to try things out.
      needs_grid: what in its blocks needs every token in its place.
      config: the settings.
      stages: one after another.
      head: from what is pooled to logits.
    """

    Config: type
    smoke: ClassVar[Mapping[str, Any]]
    needs_grid: ClassVar[str]
    config: Any
    stages: Sequence[Stage]
    head: nnx.Linear

    def __init__(self, config: Any, reduction: str | Mapping[str, Any] | None):
        name, _ = parse(reduction)
        if name != "none":
            raise UserError(
                f"reduction {name!r} does not run in a {type(self).__name__}: {self.needs_grid} "
                "needs a token in every place of the grid"
            )
        self.config = config

    def pool(self, tokens: TokenSet) -> tuple[Float[Array, "b d"], Float[Array, "b n d"]]:
        """What the head classifies, float32, and the features, of the last stage's tokens."""
        raise NotImplementedError

    def refusal(self, fields: list[str]) -> str:
        """The line that says why `fields` of a reduction cannot be set."""
        return f"a {type(self).__name__} reduces nothing, got {fields}"

    def forward(
        self, images: Float[Array, "b h w c"], *, train: bool, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, "b k"], Outputs]:
        """Logits, features and maps of one pass."""
        x, maps = images.astype(jnp.dtype(self.config.dtype)), {}
        for i, stage in enumerate(self.stages):
            tokens = stage(x, train=train, key=key)
            x = maps[f"stage{i}"] = patch_map(tokens)
        pooled, features = self.pool(tokens)
        return self.head(pooled), Outputs(features, pooled, aux=maps)
