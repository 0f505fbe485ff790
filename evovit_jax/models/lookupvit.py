"""LookupViT (Koner et al., 2024): few tokens do the work, and look things up in many.

The many (lookup) tokens are the patches, the few a bilinear down-sampling of their map. In each
block the few attend to the many, then to themselves, and pass an MLP; then the many take from the
few what the same attention logits say when they are read the other way, and pass an MLP of their
own. The mean of the few and the mean of the many are added and classified.

There is no code of the authors; this is the network as lucidrains/vit-pytorch has it, with patches
by a convolution over their neighbours, sine-cosine positions, norms without bias, and the second
softmax over the transposed logits. With `form="paper"` the block is the paper's: the many take from
the few by the transposed attention itself, whose rows do not sum to 1, and what they take is added
to them without a norm. There `patch_kernel_size=1` leaves out the neighbours, and
`lookup_mlp_ratio` is small. It has its own way to few tokens, so a reduction is refused.
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
from evovit_jax.models.config_checks import check_fields
from evovit_jax.models.layers import Mlp, as_float32, patch_grid, rematerialised, truncated_normal
from evovit_jax.models.outputs import Outputs
from evovit_jax.models.registry import Entry
from evovit_jax.models.unreduced import Unreduced
from evovit_jax.reduction.base import NOTHING_ASKED

TEMPERATURE = 10000  # of the positions' lowest frequency
NOT_REDUCED = "a LookupViT cannot be reduced: its few tokens are all that its blocks attend with"


@dataclasses.dataclass(frozen=True)
class LookupViTConfig:
    """Every setting of a LookupViT.

    Attributes:
      image_size: side of the images that it is made for, pixels; others work.
      patch_size: side of the patch of a lookup token, pixels.
      compressed_grid: rows and columns of the few tokens.
      in_channels: channels of the images.
      num_classes: size of the logits.
      embed_dim: width of all tokens; a multiple of 4.
      depth: number of blocks.
      num_heads: heads of the attention among the few.
      head_dim: width of each of them.
      cross_num_heads: heads of the attention between the few and the many.
      cross_head_dim: width of each of them.
      mlp_ratio: hidden width of the MLP of the few over `embed_dim`.
      lookup_mlp_ratio: the same of the many.
      form: of a block, "vit_pytorch" or "paper" (see the top of this file).
      patch_kernel_size: side of the convolution over patches; odd.
      norm_eps: epsilon of every norm.
      dtype: compute dtype of matmuls; parameters, scores, softmax and logits stay float32.
      remat: what the backward pass recomputes: "none", "full", or "dots" (keeps matmul results).
      attention_kernel: "auto", "matmul" or "fused", of the attention among the few.
    """

    image_size: int = 224
    patch_size: int = 16
    compressed_grid: int = 7
    in_channels: int = 3
    num_classes: int = 1000
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    head_dim: int = 64
    cross_num_heads: int = 12
    cross_head_dim: int = 64
    mlp_ratio: float = 4.0
    lookup_mlp_ratio: float = 4.0
    form: str = "vit_pytorch"
    patch_kernel_size: int = 7
    norm_eps: float = 1e-5
    dtype: str = "float32"
    remat: str = "none"
    attention_kernel: str = "auto"
    choices: ClassVar = {"form": ("vit_pytorch", "paper")}

    def __post_init__(self):
        check_fields(self)
        if self.embed_dim % 4 or self.embed_dim < 8:
            raise UserError(f"embed_dim must be a multiple of 4 from 8, got {self.embed_dim}")
        if self.patch_kernel_size % 2 == 0:
            raise UserError(f"patch_kernel_size must be odd, got {self.patch_kernel_size}")
        rows, _ = patch_grid(self.image_size, self.image_size, self.patch_size)
        if self.compressed_grid > rows:
            raise UserError(
                f"compressed_grid {self.compressed_grid} is more than the {rows} rows of patches"
            )


class Norm(nnx.Module):
    """Layer normalisation in float32, without bias; at the start `gamma` is zero, its scale one."""

    def __init__(self, config: LookupViTConfig):
        self.epsilon, self.dtype = config.norm_eps, jnp.dtype(config.dtype)
        self.gamma = nnx.Param(jnp.zeros((config.embed_dim,)))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Each token minus its mean, over its standard deviation, times `gamma + 1`."""
        x = jax.nn.standardize(x.astype(jnp.float32), axis=-1, epsilon=self.epsilon)
        scale = (self.gamma[...] + 1).reshape((1,) * (x.ndim - 1) + (-1,))
        return (x * scale).astype(self.dtype)


class Heads(nnx.Module):
    """A linear map without bias to heads, or from them."""

    def __init__(
        self, config: LookupViTConfig, heads: int, width: int, *, back: bool, rngs: nnx.Rngs
    ):
        self.heads, dims = heads, (config.embed_dim, heads * width)
        self.linear = nnx.Linear(
            *(dims[::-1] if back else dims),
            use_bias=False,
            kernel_init=truncated_normal,
            dtype=jnp.dtype(config.dtype),
            rngs=rngs,
        )

    def split(self, x: Float[Array, "b n d"]) -> Float[Array, "b h n c"]:
        """The map of each token, heads apart."""
        return self.linear(x).reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2)

    def join(self, x: Float[Array, "b h n c"]) -> Float[Array, "b n d"]:
        """The map of the heads of each token beside one another."""
        b, _, n, _ = x.shape
        return self.linear(x.swapaxes(1, 2).reshape(b, n, -1))


class Attention(nnx.Module):
    """Attention with a norm before it; of the few among themselves, or `cross` to the many."""

    def __init__(self, config: LookupViTConfig, *, cross: bool, rngs: nnx.Rngs):
        heads, width = config.num_heads, config.head_dim
        if cross:
            heads, width = config.cross_num_heads, config.cross_head_dim
            self.norm_context = Norm(config)
        self.scale, self.kernel = width**-0.5, config.attention_kernel
        self.norm = Norm(config)
        self.to_q, self.to_k, self.to_v = (
            Heads(config, heads, width, back=False, rngs=rngs) for _ in range(3)
        )
        self.to_out = Heads(config, heads, width, back=True, rngs=rngs)

    def among(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Attention of all tokens to all."""
        x = self.norm(x)
        q, k, v = (to.split(x) for to in (self.to_q, self.to_k, self.to_v))
        given = {"scale": self.scale, "request": NOTHING_ASKED, "kernel": self.kernel}
        return self.to_out.join(attend(q, k, v, **given)[0])

    def lookup(
        self, few: Float[Array, "b m d"], many: Float[Array, "b n d"]
    ) -> tuple[Float[Array, "b m d"], Float[Array, "b h m n"]]:
        """What the few take from the many, and the float32 logits."""
        few, many = self.norm(few), self.norm_context(many)
        q, k, v = self.to_q.split(few), self.to_k.split(many), self.to_v.split(many)
        logits = jnp.einsum(
            "bhmc,bhnc->bhmn", q * self.scale, k, preferred_element_type=jnp.float32
        )
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        return self.to_out.join(weights @ v), logits


class ReusedAttention(nnx.Module):
    """What the many take from the few, by the logits with which the few looked at them."""

    def __init__(self, config: LookupViTConfig, *, rngs: nnx.Rngs):
        heads, width = config.cross_num_heads, config.cross_head_dim
        self.same_softmax = config.form == "paper"
        self.norm_context = Norm(config)
        self.to_v = Heads(config, heads, width, back=False, rngs=rngs)
        self.to_out = Heads(config, heads, width, back=True, rngs=rngs)

    def __call__(
        self, few: Float[Array, "b m d"], logits: Float[Array, "b h m n"]
    ) -> Float[Array, "b n d"]:
        """The softmax over the few of the transposed logits, times their values.

        In the paper's form it is the softmax over the many, transposed.
        """
        v = self.to_v.split(self.norm_context(few))
        weights = jax.nn.softmax(logits, axis=3 if self.same_softmax else 2).swapaxes(2, 3)
        return self.to_out.join(weights.astype(v.dtype) @ v)


class NormMlp(nnx.Module):
    """An MLP with a norm before it."""

    def __init__(self, config: LookupViTConfig, ratio: float, *, rngs: nnx.Rngs):
        dim = config.embed_dim
        self.norm = Norm(config)
        self.mlp = Mlp(dim, int(dim * ratio), dtype=jnp.dtype(config.dtype), rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """The MLP of each token on its own."""
        return self.mlp(self.norm(x))


class Block(nnx.Module):
    """The few look up, attend and pass an MLP; then the many take back and pass theirs."""

    def __init__(self, config: LookupViTConfig, *, rngs: nnx.Rngs):
        self.attn = Attention(config, cross=False, rngs=rngs)
        self.mlp = NormMlp(config, config.mlp_ratio, rngs=rngs)
        self.cross = Attention(config, cross=True, rngs=rngs)
        self.reused = ReusedAttention(config, rngs=rngs)
        self.norm = Norm(config) if config.form == "vit_pytorch" else None
        self.lookup_mlp = NormMlp(config, config.lookup_mlp_ratio, rngs=rngs)

    def __call__(
        self, few: Float[Array, "b m d"], many: Float[Array, "b n d"]
    ) -> tuple[Float[Array, "b m d"], Float[Array, "b n d"]]:
        """Both kinds of tokens after the block."""
        found, logits = self.cross.lookup(few, many)
        few = few + found
        few = few + self.attn.among(few)
        few = few + self.mlp(few)
        many = many + self.reused(few, logits)
        many = many if self.norm is None else self.norm(many)  # the norm's result goes on alone
        return few, many + self.lookup_mlp(many)


def sine_cosine_positions(grid: tuple[int, int], dim: int) -> Float[np.ndarray, "rows columns d"]:
    """Sine and cosine of columns, then of rows, at `dim / 4` frequencies each."""
    frequencies = TEMPERATURE ** -(np.arange(dim // 4) / (dim // 4 - 1))
    down, right = (np.arange(size)[:, None] * frequencies for size in grid)
    shape = (*grid, dim // 4)
    parts = [np.broadcast_to(f(right)[None], shape) for f in (np.sin, np.cos)]
    parts += [np.broadcast_to(f(down)[:, None], shape) for f in (np.sin, np.cos)]
    return np.concatenate(parts, axis=-1).astype(np.float32)


class LookupViT(Unreduced):
    """A LookupViT; its only reduction is "none".

    `model(images)` returns float32 logits `[batch, num_classes]` and `Outputs`. Its features are
    the few tokens; `aux` has the many, "lookup_tokens" `[b, n, d]`, both after their last norms.
    """

    Config = LookupViTConfig
    smoke: ClassVar = {
        "image_size": 32,
        "patch_size": 4,
        "compressed_grid": 4,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 3,
    }

    def __init__(self, config: LookupViTConfig, reduction=None, *, rngs: nnx.Rngs):
        if reduction not in (None, "", "none", {"name": "none"}):
            raise UserError(f"{NOT_REDUCED} (reduction={reduction!r})")
        self.config = config
        size, kernel = config.patch_size, config.patch_kernel_size
        self.patch_embed = nnx.Conv(
            size * size * config.in_channels,
            config.embed_dim,
            (kernel, kernel),
            padding=kernel // 2,
            dtype=jnp.dtype(config.dtype),
            rngs=rngs,
        )
        self.patch_norm = Norm(config)
        self.blocks = nnx.List(Block(config, rngs=rngs) for _ in range(config.depth))
        self.norm, self.lookup_norm = Norm(config), Norm(config)
        made = {"use_bias": False, "kernel_init": truncated_normal, "rngs": rngs}
        self.head = nnx.Linear(config.embed_dim, config.num_classes, **made)

    def embed(
        self, images: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b m d"], Float[Array, "b n d"]]:
        """The few tokens and the many, with positions, in the compute dtype.

        Raises:
          UserError: the images do not divide into patches, or into fewer than the few.
        """
        config, (b, height, width, c) = self.config, images.shape
        size, few = config.patch_size, config.compressed_grid
        rows, columns = patch_grid(height, width, size)
        if few > min(rows, columns):
            raise UserError(
                f"an image of {height}x{width} pixels has {rows}x{columns} patches, fewer than "
                f"the {few}x{few} tokens that are made of them"
            )
        patches = images.reshape(b, rows, size, columns, size, c).swapaxes(2, 3)
        x = patches.reshape(b, rows, columns, -1).astype(jnp.dtype(config.dtype))
        x = self.patch_norm(self.patch_embed(x))
        positions = sine_cosine_positions((rows, columns), config.embed_dim)
        x = x + jnp.asarray(positions, x.dtype)[None]
        compressed = jax.image.resize(
            x, (b, few, few, x.shape[-1]), method="bilinear", antialias=False
        )
        return compressed.reshape(b, few * few, -1), x.reshape(b, rows * columns, -1)

    def refusal(self, fields: list[str]) -> str:
        """The line that says why `fields` of a reduction cannot be set."""
        return f"{NOT_REDUCED} (got {', '.join(fields)})"

    def forward(
        self, images: Float[Array, "b h w c"], *, train: bool, key: Key[Array, ""] | None
    ) -> tuple[Float[Array, "b k"], Outputs]:
        """Logits and features of one pass."""
        del train, key
        few, many = self.embed(images)
        for block in self.blocks:
            few, many = rematerialised(block, self.config.remat)(few, many)
        few, many = self.norm(few), self.lookup_norm(many)
        pooled = as_float32(few).mean(axis=1) + as_float32(many).mean(axis=1)
        return self.head(pooled), Outputs(few, aux={"lookup_tokens": many})


MODELS = {"lookupvit_base_patch16_224": Entry(LookupViT, {})}
