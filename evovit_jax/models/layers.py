"""What the backbones share: attention, feed-forward, residuals, patches, positions, pooling."""

import dataclasses
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
from evovit_jax.models.attention import (
    attend,
    attend_tokens_first,
    attention_weights,
    in_rows,
    rounded,
)
from evovit_jax.models.rotary import Rotation, turned
from evovit_jax.reduction.base import AttentionRequest, AttentionView
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
        self,
        x: Float[Array, "b n d"],
        request: AttentionRequest,
        rotation: Rotation | None = None,
    ) -> tuple[Float[Array, "b q d"], AttentionView]:
        """Attention over all tokens, and what `request` asks to see of it.

        Of a request that looks ahead the map alone is computed, and `x` is returned. Queries and
        keys are turned by `rotation`, where there is one.
        """
        x = x if request.edit is None else request.edit(x)
        if request.look_ahead is not None:
            q, k = (turned(a, rotation) for a in self._project(x, slice(0, 2)))
            return x, AttentionView(weights=attention_weights(q, k, self.scale, request))
        if request.weights is not None:
            (v,) = self._project(x, slice(2, 3))
            product = rounded(request.weights, v.dtype) @ v
            mixed, view = self._joined(rounded(product, v.dtype)), AttentionView()
        else:
            mixed, view = self._attend(x, request, rotation)
        if "inputs" in request.needs:
            view = dataclasses.replace(view, inputs=x)
        return mixed, view

    def _attend(
        self, x: Float[Array, "b n d"], request: AttentionRequest, rotation: Rotation | None
    ) -> tuple[Float[Array, "b q d"], AttentionView]:
        """Attention as it suits the platform that it is compiled for."""
        three, one = (
            functools.partial(way, request=request, rotation=rotation)
            for way in (self._of_three_products, self._of_one_product)
        )
        return by_platform(x, tpu=three, default=one)

    def _of_one_product(
        self, x: Float[Array, "b n d"], request: AttentionRequest, rotation: Rotation | None
    ) -> tuple[Float[Array, "b q d"], AttentionView]:
        if request.queries is None or rotation is not None:
            q, k, v = self._project(x, slice(0, 3))
        else:
            (q,) = self._project(x[:, : request.queries], slice(0, 1))
            k, v = self._project(x, slice(1, 3))
        raw = k if "raw_keys" in request.needs else None
        q, k = turned(q, rotation)[:, :, : request.queries], turned(k, rotation)
        mixed, view = attend(q, k, v, scale=self.scale, request=request, kernel=self.kernel)
        return self._joined(mixed), dataclasses.replace(view, raw_keys=raw)

    def _of_three_products(
        self, x: Float[Array, "b n d"], request: AttentionRequest, rotation: Rotation | None
    ) -> tuple[Float[Array, "b q d"], AttentionView]:
        # Where channels are fewer than tokens, as in DeiT-T, the compiler would lay them out by
        # channel, and LayerNorm's means would go across the rows.
        x = in_rows(x) if x.shape[1] > x.shape[2] else x
        q, k, v = project_heads(self.qkv, x, 3, self.heads)
        raw = jnp.swapaxes(k, 1, 2) if "raw_keys" in request.needs else None
        q, k = (turned(a, rotation, tokens_first=True) for a in (q, k))
        q = q[:, : request.queries]
        mixed, view = attend_tokens_first(q, k, v, scale=self.scale, request=request)
        wants_row = "class_row" in request.needs and request.score == "class"
        if wants_row and view.class_row is None:
            if rotation is None:
                row = class_row(self.qkv, x, self.heads, request.bias)
            else:
                row = class_row_of(q, k, self.scale, request.bias)
            view = dataclasses.replace(view, class_row=row)
        return join_heads(self.proj, mixed), dataclasses.replace(view, raw_keys=raw)

    def _joined(self, mixed: Float[Array, "b h n c"]) -> Float[Array, "b n d"]:
        """The projection of the heads of each token beside one another."""
        b, _, n, _ = mixed.shape
        return self.proj(jnp.swapaxes(mixed, 1, 2).reshape(b, n, -1))

    def _project(self, x: Float[Array, "b n d"], parts: slice) -> Float[Array, "p b h n c"]:
        """Those of queries, keys and values that `parts` names, heads apart."""
        b, n, d = x.shape
        if parts == slice(0, 3):
            mapped = self.qkv(x)
        else:
            columns = slice(parts.start * d, parts.stop * d)
            mapped = x @ self.qkv.kernel[:, columns].astype(x.dtype)
            if self.qkv.bias is not None:
                mapped = mapped + self.qkv.bias[columns].astype(x.dtype)[None, None]
        heads = mapped.reshape(b, n, parts.stop - parts.start, self.heads, d // self.heads)
        return jnp.moveaxis(heads, (2, 3), (0, 2))


def project_heads(
    linear: nnx.Linear, x: Float[Array, "b n d"], count: int, heads: int
) -> list[Float[Array, "b n h c"]]:
    """`count` projections of `x` out of one kernel that is laid out `[projection, head, channel]`.

    A product for each straight to its heads: a TPU copies nothing between layouts.
    """
    kernels, biases = split_heads(linear, count, heads)
    products = [jnp.einsum("bnd,dhc->bnhc", x.astype(linear.dtype), kernel) for kernel in kernels]
    if biases is None:
        return products
    return [product + bias[None, None] for product, bias in zip(products, biases, strict=True)]


def split_heads(
    linear: nnx.Linear, count: int, heads: int
) -> tuple[Float[Array, "{count} d {heads} c"], Float[Array, "{count} {heads} c"] | None]:
    """A kernel laid out `[projection, head, channel]` and its bias, in the compute dtype."""
    kernel = linear.kernel[...].astype(linear.dtype)
    kernels = jnp.moveaxis(kernel.reshape(kernel.shape[0], count, heads, -1), 1, 0)
    if linear.bias is None:
        return kernels, None
    return kernels, linear.bias[...].astype(linear.dtype).reshape(count, heads, -1)


def class_row(
    linear: nnx.Linear, x: Float[Array, "b n d"], heads: int, bias: Array | None
) -> Float[Array, "b {heads} n"]:
    """The class token's attention weights, float32, without the keys of the other tokens.

    `q (W_k x_m + b_k)` is `(W_k^T q) x_m` and a number that is the same for all m, which softmax
    does not see: one product with the tokens as they lie, where keys would be copied first.
    """
    (query, key, _), biases = split_heads(linear, 3, heads)
    x = x.astype(linear.dtype)
    q = jnp.einsum("bd,dhc->bhc", x[:, 0], query)
    q = (q if biases is None else q + biases[:1]) * q.shape[-1] ** -0.5
    asked = jnp.einsum("bhc,dhc->bhd", q, key)
    logits = jnp.einsum("bhd,bnd->bhn", asked, x, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + jnp.broadcast_to(bias[:, :, 0], logits.shape)
    return jax.nn.softmax(logits, axis=-1)


def class_row_of(
    q: Float[Array, "b n h c"], k: Float[Array, "b n h c"], scale: float, bias: Array | None
) -> Float[Array, "b h n"]:
    """The class token's attention weights, float32, one query against all keys."""
    logits = jnp.einsum("bhc,bnhc->bhn", q[:, 0] * scale, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + jnp.broadcast_to(bias[:, :, 0], logits.shape)
    return jax.nn.softmax(logits, axis=-1)


def join_heads(linear: nnx.Linear, x: Float[Array, "b n h c"]) -> Float[Array, "b n d"]:
    """`linear` of the heads of each token beside one another, as one product from the heads."""
    kernel = linear.kernel[...].astype(linear.dtype).reshape(*x.shape[2:], -1)
    bias = linear.bias[...].astype(linear.dtype)
    return jnp.einsum("bnhc,hcd->bnd", x.astype(linear.dtype), kernel) + bias[None, None]


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
