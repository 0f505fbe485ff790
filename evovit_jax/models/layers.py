"""What the backbones share: attention, feed-forward, residuals, patches, positions, pooling."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from evovit_jax.errors import UserError
from evovit_jax.models.attention import attend
from evovit_jax.reduction.base import AttentionRequest, AttentionView
from evovit_jax.reduction.tokens import TokenSet

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
truncated_normal = nnx.initializers.truncated_normal(stddev=0.02)


@jax.checkpoint
def gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The exact (erf) GELU, as in every published ViT.

    The backward pass keeps `x` alone: what else it needs is cheaper computed than stored.
    """
    return jax.nn.gelu(x, approximate=False)


def drop_path(
    x: Float[Array, "b n d"], rate: float, key: Key[Array, ""] | None
) -> Float[Array, "b n d"]:
    """Stochastic depth: a residual branch is zero for an image with probability `rate`.

    The branches that stay are divided by `1 - rate` (Huang et al., 2016; timm). Without a key, as
    in inference, `x` is returned as it is.
    """
    if key is None or rate == 0:
        return x
    stay = jax.random.bernoulli(key, 1 - rate, (x.shape[0], 1, 1))
    return x * (stay.astype(x.dtype) / (1 - rate))


def add_branch(tokens: TokenSet, branch: Array, rate: float, number: int) -> TokenSet:
    """Adds residual branch number `number` of the network, dropped at `rate` in training."""
    key = tokens.key if tokens.train else None
    key = None if key is None else jax.random.fold_in(key, number)
    return tokens.replace(x=tokens.x + drop_path(branch, rate, key))


class LayerNorm(nnx.LayerNorm):
    """Layer normalisation in float32, its result in the compute dtype."""

    def __init__(self, dim: int, *, epsilon: float, dtype: jnp.dtype, rngs: nnx.Rngs):
        super().__init__(dim, epsilon=epsilon, dtype=jnp.float32, rngs=rngs)
        self.out_dtype = dtype

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Each token minus its mean, over its standard deviation, scaled and shifted."""
        return super().__call__(x.astype(jnp.float32)).astype(self.out_dtype)


class Attention(nnx.Module):
    """Multi-head self-attention as `(batch, heads, tokens, dim)` matmuls.

    The fused query-key-value projection is laid out `[q, k, v]`, each `heads * dim`, as in timm.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        qkv_bias: bool = True,
        dtype: jnp.dtype = jnp.float32,
        kernel: str = "auto",
        rngs: nnx.Rngs,
    ):
        self.heads, self.kernel = heads, kernel
        self.scale = (dim // heads) ** -0.5
        settings = {"kernel_init": truncated_normal, "dtype": dtype, "rngs": rngs}
        self.qkv = nnx.Linear(dim, 3 * dim, use_bias=qkv_bias, **settings)
        self.proj = nnx.Linear(dim, dim, **settings)

    def __call__(
        self, x: Float[Array, "b n d"], request: AttentionRequest
    ) -> tuple[Float[Array, "b n d"], AttentionView]:
        """Attention over all tokens, and what `request` asks to see of it."""
        b, n, d = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads)
        q, k, v = jnp.moveaxis(qkv, (2, 3), (0, 2))
        mixed, view = attend(q, k, v, scale=self.scale, request=request, kernel=self.kernel)
        return self.proj(jnp.swapaxes(mixed, 1, 2).reshape(b, n, d)), view


class Mlp(nnx.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, hidden: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        settings = {"kernel_init": truncated_normal, "dtype": dtype, "rngs": rngs}
        self.fc1 = nnx.Linear(dim, hidden, **settings)
        self.fc2 = nnx.Linear(hidden, dim, **settings)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """The MLP of each token on its own."""
        return self.fc2(gelu(self.fc1(x)))


class LayerScale(nnx.Module):
    """One learned factor a channel on a residual branch (CaiT, DeiT-III)."""

    def __init__(self, dim: int, init: float, *, dtype: jnp.dtype):
        self.gamma = nnx.Param(jnp.full((dim,), init))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """`gamma * x`."""
        gamma = self.gamma[...].astype(self.dtype)
        return x * gamma.reshape((1,) * (x.ndim - 1) + (-1,))


def rematerialised(function: Callable, remat: str) -> Callable:
    """`function`, its intermediates recomputed in the backward pass as `remat` says.

    Only what is inside a block's halves is ever recomputed; selection is outside of them.
    """
    policy = REMAT_POLICIES[remat]
    return function if policy is None else jax.checkpoint(function, policy=policy)


def patch_grid(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """(rows, columns) of patches of an image of that size, all in pixels.

    Raises:
      UserError: if the patch size does not divide it.
    """
    if height % patch_size or width % patch_size:
        raise UserError(
            f"an image of {height}x{width} pixels does not divide into patches of "
            f"{patch_size}; resize it to a multiple"
        )
    return height // patch_size, width // patch_size


class PatchEmbed(nnx.Module):
    """Non-overlapping patches through one linear map, a convolution whose stride is its kernel."""

    def __init__(
        self, patch_size: int, channels: int, dim: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.patch_size = patch_size
        self.proj = nnx.Linear(
            patch_size * patch_size * channels,
            dim,
            kernel_init=nnx.initializers.lecun_normal(),
            dtype=dtype,
            rngs=rngs,
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches of an image of that size."""
        return patch_grid(height, width, self.patch_size)

    def __call__(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b p d"]:
        """Patch tokens in raster order; the same in training."""
        del train
        b, height, width, c = images.shape
        rows, columns = self.grid(height, width)
        p = self.patch_size
        patches = images.reshape(b, rows, p, columns, p, c).swapaxes(2, 3)
        return self.proj(patches.reshape(b, rows * columns, p * p * c))


def resize_positions(
    positions: Float[Array, "1 n d"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Array, "1 m d"]:
    """Learned positions of a grid, bicubically interpolated to another grid."""
    if old == new:
        return positions
    grid = positions.reshape(1, *old, -1)
    grid = jax.image.resize(grid, (1, *new, grid.shape[-1]), "bicubic", antialias=True)
    return grid.reshape(1, new[0] * new[1], -1)


def as_float32(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Logits and losses are float32 whatever the compute dtype."""
    return x.astype(jnp.float32)


def mean_of_patches(tokens: TokenSet) -> Float[Array, "b d"]:
    """The mean over the input's patches: merged tokens count by size, masked ones not at all."""
    x = tokens.x[:, tokens.prefix :]
    if tokens.sizes is None and tokens.mask is None:
        return x.mean(axis=1)
    weights = jnp.ones(tokens.x.shape[:2]) if tokens.sizes is None else tokens.sizes
    if tokens.mask is not None:
        weights = jnp.where(tokens.mask, weights, 0.0)
    weights = weights[:, tokens.prefix :]
    # Where a mask drops every patch of an image, its mean is zero.
    weights = weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1.0)
    return jnp.einsum("bp,bpd->bd", weights.astype(x.dtype), x)
