"""ConViT (d'Ascoli et al., 2021): a ViT whose first blocks attend by place as well as by content.

In a block with gated positional self-attention each head mixes two maps: softmax of queries and
keys, and softmax of a linear map of the distance between two places (Section 3, equations 5 to 8).
A learned gate says how much the second one counts; at the start it is like a convolution. The
class token comes in, without a position, in front of the first plain block.

Distances belong to places of a whole grid, so tokens can be reduced in the plain blocks only: for
a reduction the first of these is block 0.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from evovit_jax.errors import UserError
from evovit_jax.models.attention import attend
from evovit_jax.models.grid_block import GridBlock, through_blocks
from evovit_jax.models.layers import LayerNorm, PatchEmbed, as_float32, truncated_normal
from evovit_jax.models.outputs import Outputs
from evovit_jax.models.registry import Entry, EvalTransform
from evovit_jax.models.token_model import TokenModel
from evovit_jax.models.vit import Block, ViTConfig
from evovit_jax.reduction import Backbone, create_reducer
from evovit_jax.reduction.base import AttentionRequest
from evovit_jax.reduction.tokens import TokenSet, start_tokens

PLAIN_BLOCKS = 2  # the last blocks of the published networks


@dataclasses.dataclass(frozen=True)
class ConViTConfig(ViTConfig):
    """Settings of a ConViT; the other fields are those of a ViT.

    Attributes:
      local_up_to_layer: how many blocks, from the first on, have gated positional attention; less
        than `depth`. By default all but the last two, as published.
      locality_strength: at the start, how narrow the window of a head is.
    """

    embed_dim: int = 192
    num_heads: int = 4
    qkv_bias: bool = False
    class_position: bool = False
    local_up_to_layer: int | None = None
    locality_strength: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        for name, value in (("distilled", False), ("pool", "token"), ("class_position", False)):
            if getattr(self, name) != value:
                raise UserError(f"{name} of a ConViT is {value!r}, got {getattr(self, name)!r}")
        if not 0 <= self.local_blocks < self.depth:
            raise UserError(
                f"local_up_to_layer must be in 0..{self.depth - 1}, got {self.local_up_to_layer}: "
                f"of the {self.depth} blocks one or more must be plain, for the class token"
            )

    @property
    def local_blocks(self) -> int:
        """How many blocks have gated positional attention."""
        given = self.local_up_to_layer
        return max(0, self.depth - PLAIN_BLOCKS) if given is None else given


def relative_places(grid: tuple[int, int]) -> Float[np.ndarray, "n n 3"]:
    """From each place (a query) to each place (a key): columns, rows, and the squared distance."""
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    right, down = columns[None] - columns[:, None], rows[None] - rows[:, None]
    return np.stack([right, down, right**2 + down**2], axis=-1).astype(np.float32)


def convolution_like(strength: float) -> nnx.Initializer:
    """Initial weights of a distance with which k * k heads look at the k x k places around one."""

    def init(key: Key[Array, ""], shape: tuple[int, ...], dtype=jnp.float32) -> Array:
        side = int(shape[1] ** 0.5)
        down, right = np.arange(side * side) % side, np.arange(side * side) // side
        centre = (side - 1) / 2
        window = np.stack([2 * (right - centre), 2 * (down - centre), -np.ones(side * side)])
        drawn = truncated_normal(key, shape, dtype)
        return strength * drawn.at[:, : side * side].set(jnp.asarray(window, dtype))

    return init


def identity(key: Key[Array, ""], shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Initial weights of a map that changes nothing."""
    del key
    return jnp.eye(*shape, dtype=dtype)


class GatedPositionalAttention(nnx.Module):
    """Self-attention over a whole grid, by content and by distance; `qk` is laid out `[q, k]`."""

    def __init__(self, config: ConViTConfig, *, rngs: nnx.Rngs):
        dim, heads, bias = config.embed_dim, config.num_heads, config.qkv_bias
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        made = {"dtype": jnp.dtype(config.dtype), "rngs": rngs}
        self.qk = nnx.Linear(dim, 2 * dim, use_bias=bias, kernel_init=truncated_normal, **made)
        self.v = nnx.Linear(dim, dim, use_bias=bias, kernel_init=identity, **made)
        self.proj = nnx.Linear(dim, dim, kernel_init=truncated_normal, **made)
        local = convolution_like(config.locality_strength)
        self.pos_proj = nnx.Linear(3, heads, kernel_init=local, precision="highest", rngs=rngs)
        self.gating_param = nnx.Param(jnp.ones((heads,)))

    def __call__(self, x: Float[Array, "b n d"], grid: tuple[int, int]) -> Float[Array, "b n d"]:
        """Attention over all places of `grid`; all weights are float32."""
        b, n, d = x.shape
        q, k = jnp.moveaxis(self.qk(x).reshape(b, n, 2, self.heads, -1), (2, 3), (0, 2))
        v = self.v(x).reshape(b, n, self.heads, -1).swapaxes(1, 2)
        by_place = jax.nn.softmax(self.pos_proj(jnp.asarray(relative_places(grid))), axis=1)
        by_place = jnp.moveaxis(by_place, 2, 0)[None]
        gate = jax.nn.sigmoid(self.gating_param[...]).reshape(1, -1, 1, 1)

        def gated(logits: Float[Array, "b h n n"]) -> Float[Array, "b h n n"]:
            weights = (1 - gate) * jax.nn.softmax(logits, axis=-1) + gate * by_place
            return weights / weights.sum(axis=-1, keepdims=True)

        request = AttentionRequest(normalise=gated)
        mixed, _ = attend(q, k, v, scale=self.scale, request=request, kernel="matmul")
        return self.proj(mixed.swapaxes(1, 2).reshape(b, n, d))


class ConViT(TokenModel):
    """A ConViT with a reducer in its plain blocks.

    `Outputs.aux` has "last_local" `[b, p, d]`, the patches before the class token comes in, where
    there are blocks before it.
    """

    Config = ConViTConfig
    smoke: ClassVar = {
        "image_size": 32,
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 4,
        "num_heads": 4,
    }

    def __init__(self, config: ConViTConfig, reduction=None, *, rngs: nnx.Rngs):
        self.config = config
        dim, dtype = config.embed_dim, jnp.dtype(config.dtype)
        side = config.image_size // config.patch_size
        self.prefix, self.grid = 1, (side, side)
        self.patch_embed = PatchEmbed(
            config.patch_size, config.in_channels, dim, dtype=dtype, rngs=rngs
        )
        self.cls_token = nnx.Param(truncated_normal(rngs.params(), (1, 1, dim)))
        self.pos_embed = nnx.Param(truncated_normal(rngs.params(), (1, side * side, dim)))
        self.blocks = nnx.List(
            GridBlock(config, i, GatedPositionalAttention(config, rngs=rngs), rngs=rngs)
            if i < config.local_blocks
            else Block(config, i, rngs=rngs)
            for i in range(config.depth)
        )
        self.norm = LayerNorm(dim, epsilon=config.norm_eps, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(dim, config.num_classes, kernel_init=truncated_normal, rngs=rngs)
        plain = config.depth - config.local_blocks
        backbone = Backbone(
            depth=plain,
            dim=(dim,),
            heads=(config.num_heads,),
            grid=self.grid,
            prefix=self.prefix,
            stage_depths=(plain,),
            classes=config.num_classes,
        )
        self.reducer = create_reducer(reduction, backbone, rngs=rngs)

    @property
    def stages(self) -> list[list[Block]]:
        """The plain blocks, as one stage."""
        return [list(self.blocks)[self.config.local_blocks :]]

    def embed(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b p d"]:
        """Patch tokens with their positions, in the compute dtype."""
        return self.placed_patches(images, self.pos_embed[...], train=train)

    def start(
        self, images: Float[Array, "b h w c"], *, train: bool, key: Key[Array, ""] | None
    ) -> TokenSet:
        """The tokens in front of the first plain block."""
        made = {"grid": self.patch_embed.grid(*images.shape[1:3]), "train": train, "key": key}
        patches = start_tokens(self.embed(images, train=train), prefix=0, **made)
        local = list(self.blocks)[: self.config.local_blocks]
        x = through_blocks(local, patches, first=self.reducer.backbone.depth).x
        token = jnp.broadcast_to(self.cls_token[...], (x.shape[0], 1, x.shape[2])).astype(x.dtype)
        tokens = start_tokens(jnp.concatenate([token, x], axis=1), prefix=self.prefix, **made)
        return tokens.put_aside(last_local=x) if local else tokens

    def classify(self, tokens: TokenSet) -> tuple[Float[Array, "b k"], Outputs]:
        """Logits of the class token, and all tokens after the last norm."""
        features = self.norm(tokens.x)
        shown = {name: x for name, x in tokens.aside.items() if name == "last_local"}
        return self.head(as_float32(features[:, 0])), Outputs(features, aux=shown)


def _entry(dim_of_head: int, heads: int, size: str, top1: float) -> Entry:
    return Entry(
        ConViT,
        {"embed_dim": dim_of_head * heads, "num_heads": heads},
        transform=EvalTransform(),
        top1=top1,
        weights=f"hf://timm/convit_{size}.fb_in1k",
    )


MODELS = {
    "convit_tiny": _entry(48, 4, "tiny", 73.1),
    "convit_small": _entry(48, 9, "small", 81.3),
    "convit_base": _entry(48, 16, "base", 82.4),
}
