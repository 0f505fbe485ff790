"""`softmax(q k^T * scale + bias) v`, as matmuls or as one fused kernel."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from evovit_jax.hardware import accelerators, platforms
from evovit_jax.parallel.per_device import per_device
from evovit_jax.reduction.base import AttentionRequest, AttentionView

# What cuDNN's kernel takes on every GPU that it runs on (Hopper takes heads of up to 256).
FUSED_CAPABILITY, FUSED_HEAD_DIM, FUSED_HEAD_MULTIPLE = (8, 0), 128, 8


def attend(
    q: Float[Array, "b h n c"],
    k: Float[Array, "b h m c"],
    v: Float[Array, "b h m e"],
    *,
    scale: float,
    request: AttentionRequest,
    bias: Float[Array, "#b #h #n #m"] | None = None,
    kernel: str = "auto",
) -> tuple[Float[Array, "b h n e"], AttentionView]:
    """`softmax(q k^T * scale + bias) v` with float32 softmax, and the view that was asked for.

    `bias` is the layer's own, float32, to which the request's is added.

    `kernel` is "matmul"; "fused" for one kernel in the blocks that allow it (`can_fuse`); or
    "auto": that where the hardware has such a kernel. The class row of a fused block is computed
    on its own, one query against all keys.
    """
    if bias is not None:
        asked = request.bias
        request = dataclasses.replace(request, bias=bias if asked is None else bias + asked)
    fused = can_fuse(q, v, request) and (
        kernel == "fused" or (kernel == "auto" and has_fused_kernel(q.dtype, q.shape[-1]))
    )
    keys = k if "keys" in request.needs else None
    values = v if "values" in request.needs else None
    if fused:
        row = None
        if "class_row" in request.needs:
            first = request.score == "class"
            row = _weights(q[:, :, :1], k, scale, None, None) if first else None
            row = _score_row(row, k, request)
        return _fused(q, k, v, scale), AttentionView(class_row=row, keys=keys, values=values)
    weights = _weights(q, k, scale, request.bias, request.normalise)
    view = AttentionView(
        class_row=_score_row(weights, k, request),
        weights=weights if "weights" in request.needs else None,
        keys=keys,
        values=values,
    )
    return rounded(rounded(weights, v.dtype) @ v, v.dtype), view


def rounded(x: Float[Array, "*n"], dtype: jnp.dtype) -> Float[Array, "*n"]:
    """`x` in `dtype`, rounded here in any program.

    XLA leaves the rounding to bfloat16 out where it fuses what makes a value with what reads it,
    and on CPUs that depends on the batch's size; an image's tokens must not.
    """
    kind = jnp.finfo(dtype)
    if kind.bits < 32:
        x = jax.lax.reduce_precision(x, kind.nexp, kind.nmant)
    return x.astype(dtype)


def attend_tokens_first(
    q: Float[Array, "b n h c"],
    k: Float[Array, "b m h c"],
    v: Float[Array, "b m h e"],
    *,
    scale: float,
    request: AttentionRequest,
) -> tuple[Float[Array, "b n h e"], AttentionView]:
    """What `attend` computes, of heads that lie within each token: for TPUs.

    The class row of a plain softmax is not shown: it would make the whole map be written.
    """
    keys = jnp.swapaxes(k, 1, 2) if "keys" in request.needs else None
    values = jnp.swapaxes(v, 1, 2) if "values" in request.needs else None
    if request.normalise is None and not shows_map(request):
        mixed = _softmax_product(q * scale, k, v, request.bias)
        row = None if request.score == "class" else _score_row(None, keys_first(k), request)
        return mixed, AttentionView(class_row=row, keys=keys, values=values)
    weights = (request.normalise or _softmax)(_logits(q * scale, k, request.bias))
    view = AttentionView(
        class_row=_score_row(weights, keys_first(k), request),
        weights=weights if "weights" in request.needs else None,
        keys=keys,
        values=values,
    )
    return _mixed(weights, v), view


def keys_first(k: Float[Array, "b n h c"]) -> Float[Array, "b h n c"]:
    """Heads before tokens."""
    return jnp.swapaxes(k, 1, 2)


def shows_map(request: AttentionRequest) -> bool:
    """Whether somebody looks at more of the map than the class token's row."""
    received = request.score == "received" and "class_row" in request.needs
    return received or "weights" in request.needs


def _score_row(
    weights: Float[Array, "b h n m"] | None, k: Float[Array, "b h m c"], request: AttentionRequest
) -> Float[Array, "b h m"] | None:
    """The scores that were asked for; None where nobody did, or attention does not know them."""
    if "class_row" not in request.needs:
        return None
    if request.score == "class":
        return weights[:, :, 0]
    if request.score == "received":
        return weights.mean(axis=2)
    if request.score == "key_norm":
        return shares(jnp.linalg.norm(k.astype(jnp.float32), axis=-1))
    return None


def shares(x: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
    """Each of numbers that are not negative over their sum."""
    return x / jnp.maximum(x.sum(axis=-1, keepdims=True), 1e-30)


def in_rows(x: Float[Array, "b *n"]) -> Float[Array, "b *n"]:
    """`x`, bound to lie in memory as its shape says, with the last dimension innermost.

    In a program for several platforms it is free: what is exported may not bind a layout.
    """
    if platforms.known_platform() == platforms.SEVERAL:
        return x
    rows = Layout(major_to_minor=tuple(range(x.ndim)))
    # On each device on its own: what is bound to a layout would be gathered from all first.
    return per_device(lambda x: with_layout_constraint(x, rows), x)


def _softmax(logits: Float[Array, "b h n m"]) -> Float[Array, "b h n m"]:
    return jax.nn.softmax(logits, axis=-1)


def _logits(q: Array, k: Array, bias: Array | None) -> Float[Array, "b h n m"]:
    logits = jnp.einsum("bnhc,bmhc->bhnm", q, k, preferred_element_type=jnp.float32)
    return logits if bias is None else logits + jnp.broadcast_to(bias, logits.shape)


def _mixed(weights: Array, v: Array) -> Float[Array, "b n h e"]:
    return jnp.einsum("bhnm,bmhe->bnhe", weights.astype(v.dtype), v)


@jax.custom_vjp
def _softmax_product(q: Array, k: Array, v: Array, bias: Array | None) -> Float[Array, "b n h e"]:
    """`softmax(q k^T + bias) v`, for whose backward pass no normalised map is written.

    What is kept are the exponentials as they multiplied the values, in bfloat16 half of a float32
    map, and their sums; all divisions are of rows, after or before a product. Every map lies as
    the products make it: by itself the compiler copies each one to another layout and back.
    """
    return _mixed(_softmax(_logits(q, k, bias)), v)


def _forward(q: Array, k: Array, v: Array, bias: Array | None) -> tuple[Array, tuple]:
    logits = in_rows(_logits(q, k, bias))
    raised = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    shares = 1 / jnp.swapaxes(raised.sum(axis=-1), 1, 2)[..., None]  # [b, n, h, 1]
    narrow = in_rows(raised.astype(v.dtype))
    mixed = jnp.einsum("bhnm,bmhe->bnhe", narrow, v, preferred_element_type=jnp.float32)
    # Without the barrier the float32 product is what is kept, and rounded again where it is read.
    mixed = jax.lax.optimization_barrier((mixed * shares).astype(v.dtype))
    return mixed, (q, k, v, bias, narrow, shares, mixed)


def _backward(kept: tuple, grad: Float[Array, "b n h e"]) -> tuple:
    q, k, v, bias, raised, shares, mixed = kept
    scaled = (grad.astype(jnp.float32) * shares).astype(grad.dtype)
    grad_weights = jnp.einsum("bnhe,bmhe->bhnm", scaled, v, preferred_element_type=jnp.float32)
    # What the softmax takes off a row, the sum of its weights times their gradients.
    off = jnp.einsum("bnhe,bnhe->bhn", scaled, mixed, preferred_element_type=jnp.float32)
    grad_logits = raised.astype(jnp.float32) * (grad_weights - off[..., None])
    narrow = in_rows(grad_logits.astype(q.dtype))
    # Channels before tokens: rows of 197 tokens fill a TPU's lanes, 64 channels half of them.
    grads = (
        jnp.einsum("bmhc,bhnm->bhcn", k, narrow),
        jnp.einsum("bnhc,bhnm->bhcm", q, narrow),
        jnp.einsum("bnhe,bhnm->bhem", scaled, raised),
    )
    grads = tuple(jnp.moveaxis(x, 3, 1) for x in grads)
    if bias is None:
        return *grads, None
    alike = [axis for axis, size in enumerate(bias.shape) if size == 1]
    return *grads, grad_logits.sum(axis=alike, keepdims=True).astype(bias.dtype)


_softmax_product.defvjp(_forward, _backward)


def _weights(
    q: Array, k: Array, scale: float, bias: Array | None, normalise: Callable | None
) -> Float[Array, "b h n m"]:
    logits = jnp.einsum("bhnc,bhmc->bhnm", q * scale, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + jnp.broadcast_to(bias, logits.shape)
    return platforms.as_one(jax.nn.softmax, logits) if normalise is None else normalise(logits)


def attention_weights(
    q: Float[Array, "b h n c"],
    k: Float[Array, "b h m c"],
    scale: float,
    request: AttentionRequest,
) -> Float[Array, "b h n m"]:
    """The map alone, float32, with the bias that was asked for."""
    return _weights(q, k, scale, request.bias, request.normalise)


def can_fuse(
    q: Float[Array, "b h n c"], v: Float[Array, "b h m e"], request: AttentionRequest
) -> bool:
    """Whether one kernel computes a block: plain softmax, nobody sees the map, heads of one size.

    Biases are left to matmuls: in training cuDNN's kernel refuses them at odd numbers of tokens,
    and gives them gradients only in batches of one image.
    """
    unseen = not shows_map(request)
    plain = request.bias is None and request.normalise is None
    return unseen and plain and q.shape[-1] == v.shape[-1]


def has_fused_kernel(dtype: jnp.dtype, head_dim: int) -> bool:
    """Whether the GPU compiled for has cuDNN's attention for heads of `head_dim` in `dtype`."""
    fits = head_dim <= FUSED_HEAD_DIM and head_dim % FUSED_HEAD_MULTIPLE == 0
    return jnp.dtype(dtype).itemsize == 2 and fits and gpu_capability() >= FUSED_CAPABILITY


def gpu_capability() -> tuple[int, ...]:
    """The compute capability of the NVIDIA GPU compiled for, (8, 0) for an A100.

    () in a program that is compiled for another platform, and for a GPU that is not known.
    """
    if platforms.platform() != "gpu":
        return ()
    here = jax.local_devices()[0]
    kind = platforms.named_device() or here.device_kind
    known = accelerators.find(kind)
    if known is not None:
        return known.capability
    found = str(getattr(here, "compute_capability", "")) if here.device_kind == kind else ""
    parts = found.split(".")
    return tuple(map(int, parts)) if all(part.isdigit() for part in parts) else ()


def _fused(q: Array, k: Array, v: Array, scale: float) -> Float[Array, "b h n c"]:
    odd = q.shape[2] % 2 or k.shape[2] % 2
    implementation = "cudnn" if has_fused_kernel(q.dtype, q.shape[-1]) else "xla"
    kernel = functools.partial(_kernel, scale=scale, implementation=implementation)
    # On each device on its own: the lengths belong to the images that it holds.
    return per_device(_evened_in_training(kernel) if odd else kernel, q, k, v)


def _kernel(
    q: Array, k: Array, v: Array, scale: float, implementation: str, even: bool = False
) -> Float[Array, "b h n c"]:
    """JAX's attention; `even` adds a token that nobody attends to where their number is odd."""
    n, m = q.shape[2], k.shape[2]
    q, k, v = (jnp.swapaxes(a, 1, 2) for a in (q, k, v))
    lengths = {}
    if even:
        q, k, v = map(_even, (q, k, v))
        full = jnp.ones(len(q), jnp.int32)
        lengths = {"query_seq_lengths": n * full, "key_value_seq_lengths": m * full}
    mixed = jax.nn.dot_product_attention(
        q, k, v, scale=scale, implementation=implementation, **lengths
    )
    return jnp.swapaxes(mixed[:, :n], 1, 2)


def _evened_in_training(kernel: Callable[..., Array]) -> Callable[..., Array]:
    """`kernel`, with `even` where it is differentiated: inference need not copy every token."""
    attention = jax.custom_vjp(kernel)
    attention.defvjp(
        lambda *arrays: jax.vjp(functools.partial(kernel, even=True), *arrays),
        lambda backward, gradient: backward(gradient),
    )
    return attention


def _even(x: Float[Array, "b n h c"]) -> Float[Array, "b m h c"]:
    """One token more where their number is odd: JAX refuses to train cuDNN's kernel on those."""
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))
