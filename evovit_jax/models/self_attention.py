"""Multi-head self-attention with its projections, in one product or three.

The golden files of whole networks test it too.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.hardware.platforms import by_platform
from evovit_jax.models.attention import (
    attend,
    attend_tokens_first,
    attention_weights,
    in_rows,
    rounded,
)
from evovit_jax.models.layers import LayerNorm, truncated_normal
from evovit_jax.models.rotary import Rotation, turned
from evovit_jax.reduction.base import AttentionRequest, AttentionView


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
        norm: LayerNorm | None = None,
    ) -> tuple[Float[Array, "b q d"], AttentionView]:
        """Attention over all tokens, and what `request` asks to see of it.

        `x` goes through `norm` first, where there is one. Of a request that looks ahead the map
        alone is computed, and the tokens that have gone through it are returned. Queries and keys
        are turned by `rotation`, where there is one.
        """
        nobody_looks = request.edit is None and "inputs" not in request.needs
        if nobody_looks and request.look_ahead is None and request.weights is None:
            return self._attend(x, norm, request, rotation)
        x = x if norm is None else norm(x)
        x = x if request.edit is None else request.edit(x)
        if request.look_ahead is not None:
            q, k = (turned(a, rotation) for a in self._project(x, slice(0, 2)))
            return x, AttentionView(weights=attention_weights(q, k, self.scale, request))
        if request.weights is not None:
            (v,) = self._project(x, slice(2, 3))
            product = rounded(request.weights, v.dtype) @ v
            mixed, view = self._joined(rounded(product, v.dtype)), AttentionView()
        else:
            mixed, view = self._attend(x, None, request, rotation)
        if "inputs" in request.needs:
            view = dataclasses.replace(view, inputs=x)
        return mixed, view

    def _attend(
        self,
        x: Float[Array, "b n d"],
        norm: LayerNorm | None,
        request: AttentionRequest,
        rotation: Rotation | None,
    ) -> tuple[Float[Array, "b q d"], AttentionView]:
        """Attention as it suits the platform that it is compiled for."""
        three, one = (
            functools.partial(way, norm=norm, request=request, rotation=rotation)
            for way in (self._of_three_products, self._of_one_product)
        )
        # Where tokens come out of a product by channel, XLA for GPUs would leave them so, and then
        # find no tiles for the next product, which turns them.
        return by_platform(x, tpu=three, gpu=lambda x: one(in_rows(x)), default=one)

    def _of_one_product(
        self,
        x: Float[Array, "b n d"],
        norm: LayerNorm | None,
        request: AttentionRequest,
        rotation: Rotation | None,
    ) -> tuple[Float[Array, "b q d"], AttentionView]:
        x = x if norm is None else norm(x)
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
        self,
        x: Float[Array, "b n d"],
        norm: LayerNorm | None,
        request: AttentionRequest,
        rotation: Rotation | None,
    ) -> tuple[Float[Array, "b q d"], AttentionView]:
        wants_row = "class_row" in request.needs and request.score == "class"
        # Where channels are fewer than tokens, as in DeiT-T, the compiler would lay them out by
        # channel, and LayerNorm's means would go across the rows. Where the class token is taken
        # out it would lay images side by side, and copy all that is made of them.
        x = in_rows(x) if wants_row or x.shape[1] > x.shape[2] else x
        made = x if norm is None else norm(x)
        q, k, v = project_heads(self.qkv, made, 3, self.heads)
        raw = jnp.swapaxes(k, 1, 2) if "raw_keys" in request.needs else None
        q, k = (turned(a, rotation, tokens_first=True) for a in (q, k))
        q = q[:, : request.queries]
        mixed, view = attend_tokens_first(q, k, v, scale=self.scale, request=request)
        if wants_row and view.class_row is None:
            if rotation is None:
                row = class_row(self.qkv, x, norm, self.heads, request.bias)
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
    linear: nnx.Linear,
    x: Float[Array, "b n d"],
    norm: LayerNorm | None,
    heads: int,
    bias: Array | None,
) -> Float[Array, "b {heads} n"]:
    """The class token's attention weights, float32, without the keys of the other tokens.

    `q (W_k x_m + b_k)` is `(W_k^T q) x_m` and a number that is the same for all m, which softmax
    does not see: one product with the tokens as they lie, where keys would be copied first.
    `norm` scales that product token by token, so that what it makes of them need not be written.
    """
    (query, key, _), biases = split_heads(linear, 3, heads)
    first = x[:, 0] if norm is None else norm(x[:, 0])
    q = jnp.einsum("bd,dhc->bhc", first.astype(linear.dtype), query)
    q = (q if biases is None else q + biases[:1]) * q.shape[-1] ** -0.5
    asked = jnp.einsum("bhc,dhc->bhd", q, key)
    if norm is not None:
        asked = asked * norm.scale[None, None].astype(asked.dtype)
    tokens = x.astype(linear.dtype)
    logits = jnp.einsum("bhd,bnd->bhn", asked, tokens, preferred_element_type=jnp.float32)
    if norm is not None:
        mean, inverse = norm.statistics(x)
        off = asked.sum(axis=-1, keepdims=True, dtype=jnp.float32) * mean[:, None]
        logits = (logits - off) * inverse[:, None]
    return class_weights(logits, bias)


def class_weights(logits: Float[Array, "b h n"], bias: Array | None) -> Float[Array, "b h n"]:
    """The class token's weights from its logits and its row of the map's `bias`."""
    if bias is not None:
        logits = logits + jnp.broadcast_to(bias[:, :, 0], logits.shape)
    return jax.nn.softmax(logits, axis=-1)


def class_row_of(
    q: Float[Array, "b n h c"], k: Float[Array, "b n h c"], scale: float, bias: Array | None
) -> Float[Array, "b h n"]:
    """The class token's attention weights, float32, one query against all keys."""
    logits = jnp.einsum("bhc,bnhc->bhn", q[:, 0] * scale, k, preferred_element_type=jnp.float32)
    return class_weights(logits, bias)


def join_heads(linear: nnx.Linear, x: Float[Array, "b n h c"]) -> Float[Array, "b n d"]:
    """`linear` of the heads of each token beside one another, as one product from the heads."""
    kernel = linear.kernel[...].astype(linear.dtype).reshape(*x.shape[2:], -1)
    bias = linear.bias[...].astype(linear.dtype)
    return jnp.einsum("bnhc,hcd->bnd", x.astype(linear.dtype), kernel) + bias[None, None]
