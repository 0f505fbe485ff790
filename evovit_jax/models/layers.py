"""What the backbones share: normalisation, feed-forward, residuals, patches, positions, pooling."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.errors import UserError
from evovit_jax.hardware import platforms
from evovit_jax.hardware.platforms import by_platform
from evovit_jax.models.activations import ACTIVATIONS
from evovit_jax.reduction.stochastic_depth import dropped_branch
from evovit_jax.reduction.tokens import TokenSet

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
truncated_normal = nnx.initializers.truncated_normal(stddev=0.02)


def add_branch(tokens: TokenSet, branch: Array, rate: float, number: int) -> TokenSet:
    """Adds residual branch number `number` of the network, dropped at `rate` in training."""
    return tokens.replace(x=tokens.x + dropped_branch(tokens, branch, rate, number))


class LayerNorm(nnx.LayerNorm):
    """Layer normalisation in float32, its result in the compute dtype."""

    def __init__(self, dim: int, *, epsilon: float, dtype: jnp.dtype, rngs: nnx.Rngs):
        super().__init__(dim, epsilon=epsilon, dtype=jnp.float32, rngs=rngs)
        self.out_dtype = dtype

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Each token minus its mean, over its standard deviation, scaled and shifted."""
        x = x.astype(jnp.float32)
        if platforms.known_platform() == platforms.OTHER:
            settings = (self.scale[...], self.bias[...], jnp.float32(self.epsilon))
            return platforms.as_one(layer_norm, x, *settings).astype(self.out_dtype)
        return super().__call__(x).astype(self.out_dtype)

    def statistics(self, x: Float[Array, "*b d"]) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
        """Each token's mean, and one over its standard deviation, in float32.

        As flax computes them, so that the compiler finds both once.
        """
        x = x.astype(jnp.float32)
        mean, square = x.mean(axis=-1), jax.lax.square(x).mean(axis=-1)
        variance = jnp.maximum(0.0, square - jax.lax.square(mean))
        return mean, jax.lax.rsqrt(variance + self.epsilon)


def layer_norm(
    x: Float[Array, "*b d"],
    scale: Float[Array, "d"],
    bias: Float[Array, "d"],
    epsilon: Float[Array, ""],
) -> Float[Array, "*b d"]:
    """Layer normalisation as one function of all that it depends on."""
    shape = (1,) * (x.ndim - 1) + (-1,)
    x = x - x.mean(axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + epsilon)
    return x * scale.reshape(shape) + bias.reshape(shape)


class Mlp(nnx.Module):
    """Two linear layers with an activation between them, GELU by default."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        dtype: jnp.dtype,
        activation: str = "gelu",
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        settings = {"kernel_init": truncated_normal, "dtype": dtype, "rngs": rngs}
        self.fc1 = nnx.Linear(dim, hidden, **settings)
        self.fc2 = nnx.Linear(hidden, dim, **settings)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """The MLP of each token on its own."""
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


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


LAYOUT = ("NHWC", "HWIO", "NHWC")  # of images, kernels and results of a convolution


class PatchEmbed(nnx.Module):
    """Non-overlapping patches through one linear map, a convolution whose stride is its kernel."""

    def __init__(
        self,
        patch_size: int,
        channels: int,
        dim: int,
        *,
        bias: bool = True,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.patch_size = patch_size
        self.proj = nnx.Linear(
            patch_size * patch_size * channels,
            dim,
            use_bias=bias,
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
        return by_platform(images, tpu=self._as_convolution, default=self._as_product)

    def _as_product(self, images: Float[Array, "b h w c"]) -> Float[Array, "b p d"]:
        (b, height, width, c), p = images.shape, self.patch_size
        rows, columns = self.grid(height, width)
        patches = images.reshape(b, rows, p, columns, p, c).swapaxes(2, 3)
        return self.proj(patches.reshape(b, rows * columns, p * p * c))

    def _as_convolution(self, images: Float[Array, "b h w c"]) -> Float[Array, "b p d"]:
        dtype, p = self.proj.dtype, self.patch_size
        kernel = self.proj.kernel[...].astype(dtype).reshape(p, p, images.shape[3], -1)
        convolution = functools.partial(
            jax.lax.conv_general_dilated,
            window_strides=(p, p),
            padding="VALID",
            dimension_numbers=LAYOUT,
        )
        # The copy of the images that the convolution makes takes two and a half times their memory:
        # the backward pass makes it again.
        x = jax.checkpoint(convolution)(images.astype(dtype), kernel)
        x = x.reshape(x.shape[0], -1, x.shape[3])
        if self.proj.bias is None:
            return x
        return x + self.proj.bias[...].astype(dtype)[None, None]


def as_float32(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Logits and losses are float32 whatever the compute dtype."""
    return x.astype(jnp.float32)


def mean_of_patches(tokens: TokenSet) -> Float[Array, "b d"]:
    """The mean over the input's patches: merged tokens count by size, masked ones not at all."""
    if tokens.sizes is None and tokens.mask is None:
        ways = (_mean_of_marked_rows, _mean_of_last_rows)
        marked, last = (functools.partial(way, first=tokens.prefix) for way in ways)
        return by_platform(tokens.x, tpu=marked, default=last)
    x = tokens.x[:, tokens.prefix :]
    weights = jnp.ones(tokens.x.shape[:2]) if tokens.sizes is None else tokens.sizes
    if tokens.mask is not None:
        weights = jnp.where(tokens.mask, weights, 0.0)
    weights = weights[:, tokens.prefix :]
    # Where a mask drops every patch of an image, its mean is zero.
    weights = weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1.0)
    return jnp.einsum("bp,bpd->bd", weights.astype(x.dtype), x)


def _mean_of_last_rows(x: Float[Array, "b n d"], *, first: int) -> Float[Array, "b d"]:
    """The mean over tokens `first` to n - 1."""
    return x[:, first:].mean(axis=1)


def _mean_of_marked_rows(x: Float[Array, "b n d"], *, first: int) -> Float[Array, "b d"]:
    """The same, in place: a TPU moves every token to cut off one that fills no whole tile."""
    is_patch = (jnp.arange(x.shape[1]) >= first)[None, :, None]
    total = jnp.where(is_patch, x, jnp.zeros((), x.dtype)).sum(axis=1, dtype=jnp.float32)
    return (total / (x.shape[1] - first)).astype(x.dtype)
