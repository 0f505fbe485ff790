"""Ranking, gathering and scattering as comparisons and matrix products, for TPUs.

A TPU sorts and indexes one row after another, while a comparison of all pairs of a few hundred
tokens takes its vector unit no time. Every sum here has one term that is not zero, so that floats
come through as they are; `evovit_jax.reduction.tokens` has the same functions for other hardware.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

# Up to so many tokens all pairs are compared; sorting is left to XLA where there are more.
MOST_TOKENS = 640


def one_hot(index: Int[Array, "b k"], n: int) -> Bool[Array, "b k {n}"]:
    """Whether `index[b, j]` is i, for i in 0..n-1."""
    return index[:, :, None] == jnp.arange(n, dtype=index.dtype)[None, None]


def ranks(scores: Shaped[Array, "b n"]) -> Int[Array, "b n"]:
    """The place of each score among its row, 0 the largest, ties by the smaller index."""
    n = scores.shape[1]
    places = jnp.arange(n, dtype=jnp.int32)
    own, other = scores[:, :, None], scores[:, None, :]
    earlier = (places[None, :] < places[:, None])[None]
    return ((other > own) | ((other == own) & earlier)).sum(axis=2, dtype=jnp.int32)


def top_k(scores: Shaped[Array, "b n"], k: int) -> tuple[Array, Int[Array, "b {k}"]]:
    """The k largest scores and their indices, largest first, ties by the smaller index."""
    at = ranks(scores)[:, None, :] == jnp.arange(k, dtype=jnp.int32)[None, :, None]
    places = jnp.arange(scores.shape[1], dtype=jnp.int32)[None, None]
    index = jnp.where(at, places, 0).sum(axis=2, dtype=jnp.int32)
    return _selected(at, scores[:, None, :], axis=2), index


def gather(x: Shaped[Array, "b n ..."], index: Int[Array, "b k"]) -> Shaped[Array, "b k ..."]:
    """`x[b, index[b, j]]` for `x` `[b, n]` or `[b, n, d]`."""
    hot = one_hot(index, x.shape[1])
    if x.ndim == 2:
        return _selected(hot, x[:, None, :], axis=2)
    return _product("bkn,bnd->bkd", hot, x)


def gather_and_sum(
    x: Float[Array, "b n d"], index: Int[Array, "b k"], weights: Float[Array, "b p"]
) -> Float[Array, "b k+1 d"]:
    """`gather(x, index)`, then the sum of the last p tokens times their weights: one product."""
    others = jnp.pad(weights, ((0, 0), (x.shape[1] - weights.shape[1], 0)))[:, None]
    hot = one_hot(index, x.shape[1]).astype(x.dtype)
    return _product("bkn,bnd->bkd", jnp.concatenate([hot, others.astype(x.dtype)], axis=1), x)


def scatter_set(
    x: Shaped[Array, "b n ..."], index: Int[Array, "b k"], values: Shaped[Array, "b k ..."]
) -> Shaped[Array, "b n ..."]:
    """`x` with `values[b, j]` at `index[b, j]`; an image's indices are distinct."""
    hot = one_hot(index, x.shape[1])
    replaced = hot.any(axis=1)
    if x.ndim == 2:
        return jnp.where(replaced, _selected(hot, values[:, :, None], axis=1), x)
    return jnp.where(replaced[:, :, None], _product("bkn,bkd->bnd", hot, values), x)


def membership(index: Int[Array, "b k"], n: int) -> Bool[Array, "b {n}"]:
    """Which of n positions `index` names, once or more."""
    return one_hot(index, n).any(axis=1)


def places_after_merging(
    scores: Float[Array, "b a"],
    partner: Int[Array, "b a"],
    *,
    r: int,
    prefix: int,
    others: int,
    odd: bool,
    by_score: bool,
) -> Int[Array, "b {prefix}+a+{others}"]:
    """Where each token is once the r best of every second one went into their partners.

    Class tokens stay first, then what is left of these in its order or in that of its scores, then
    the `others` in between, numbers `partner`. `odd` says that an other one comes first.
    """
    b, count = scores.shape
    rank = ranks(scores)
    left = rank - r
    if not by_score:
        at = jnp.arange(count, dtype=jnp.int32)
        earlier = (at[None, :] < at[:, None])[None] & (left >= 0)[:, None, :]
        left = earlier.sum(axis=2, dtype=jnp.int32)
    untouched = prefix + count - r
    these = jnp.where(rank < r, untouched + partner, prefix + left)
    those = jnp.broadcast_to(untouched + jnp.arange(others, dtype=jnp.int32), (b, others))
    longest = max(count, others)
    pairs = [jnp.pad(x, ((0, 0), (0, longest - x.shape[1]))) for x in (these, those)]
    pairs = jnp.stack(pairs[::-1] if odd else pairs, axis=2).reshape(b, 2 * longest)
    first = jnp.broadcast_to(jnp.arange(prefix, dtype=jnp.int32), (b, prefix))
    return jnp.concatenate([first, pairs[:, : count + others]], axis=1)


def pooled(
    x: Float[Array, "b n d"], weights: Float[Array, "b n"], moves: Int[Array, "b n"], count: int
) -> tuple[Float[Array, "b {count} d"], Float[Array, "b {count}"]]:
    """Means of the tokens that go to each of `count` places, and the sums of their weights.

    The weights of bfloat16 tokens are rounded likewise: one product in the matrix unit, where the
    float32 products of gathering and adding take six passes each. Counts up to 256 stay exact.
    """
    goes = jnp.arange(count, dtype=jnp.int32)[None, :, None] == moves[:, None, :]
    rounded = weights.astype(x.dtype)
    shares = jnp.where(goes, rounded[:, None, :], jnp.zeros((), x.dtype))
    total = jnp.einsum(
        "bkn,bnd->bkd",
        shares,
        x,
        precision=None if x.dtype == jnp.bfloat16 else "highest",
        preferred_element_type=jnp.float32,
    )
    by = _selected(goes, rounded.astype(jnp.float32)[:, None, :], axis=2)
    mean = (total / by[:, :, None]).astype(x.dtype)
    return mean, _selected(goes, weights[:, None, :], axis=2)


def columns(x: Float[Array, "b n m"], index: Int[Array, "b k"]) -> Float[Array, "b n k"]:
    """`x[b, i, index[b, j]]`."""
    return _product("bkm,bnm->bnk", one_hot(index, x.shape[2]), x)


def _selected(hot: Bool[Array, "b k n"], x: Array, *, axis: int) -> Array:
    """The one value along `axis` where `hot` holds; zero where it holds nowhere."""
    return jnp.where(hot, x, jnp.zeros((), x.dtype)).sum(axis=axis, dtype=x.dtype)


def _product(equation: str, hot: Shaped[Array, "b k n"], x: Array) -> Array:
    # A TPU multiplies float32 in bfloat16 passes: all of them, or values come through rounded.
    precision = None if x.dtype == jnp.bfloat16 else "highest"
    return jnp.einsum(equation, hot.astype(x.dtype), x, precision=precision)
