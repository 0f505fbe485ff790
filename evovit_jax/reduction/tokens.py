"""The token set and the primitives that move tokens: select, gather, scatter, follow.

All counts are Python integers at trace time. Everything here is local to an image, so under a
mesh it runs in `jax.shard_map`: left to itself the partitioner may gather a whole sharded batch
to sort it or to index into it.

Tested in tests/reduction/methods_test.py.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from evovit_jax.hardware import platforms
from evovit_jax.parallel.per_device import per_device
from evovit_jax.reduction import one_hot


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["x", "source", "scores", "sizes", "mask", "place", "aside", "key"],
    meta_fields=["prefix", "grid", "train"],
)
@dataclasses.dataclass(frozen=True)
class TokenSet:
    """The tokens of a batch of images between two blocks.

    Attributes:
      x: `[b, n, d]`, the class tokens first, then the patch tokens.
      source: int32 `[b, N]`, where each of the N input tokens (class tokens included) is now: the
        index of the token of `x` that holds it, or `-(i + 1)` when it left the set at block `i`.
      scores: float32 importance of tokens; which tokens, the reducer says. None until it scores.
      sizes: float32 `[b, n]`, how many input tokens each token stands for; None means one each.
      mask: bool `[b, n]`, which tokens count; None means all.
      place: int32 `[b, n]`, the input token whose position each token has, -1 for none; kept in
        networks whose attention asks for it at every block (rotary positions), else None.
      aside: what the reducer keeps for itself, by name: arrays, or pytrees of them.
      key: the PRNG key of this pass, None when nothing is random.
      prefix: how many class tokens and registers come first; no reducer touches them.
      grid: (rows, columns) of the patch tokens that came in.
      train: whether this is a training pass.
    """

    x: Float[Array, "b n d"]
    source: Int[Array, "b N"]
    scores: Float[Array, "b s"] | None = None
    sizes: Float[Array, "b n"] | None = None
    mask: Bool[Array, "b n"] | None = None
    place: Int[Array, "b n"] | None = None
    aside: dict[str, Any] = dataclasses.field(default_factory=dict)
    key: jax.Array | None = None
    prefix: int = 1
    grid: tuple[int, int] = (1, 1)
    train: bool = False

    def replace(self, **changes: Any) -> "TokenSet":
        """A copy with `changes`."""
        return dataclasses.replace(self, **changes)

    def first(self, count: int | None) -> "TokenSet":
        """The set with `x`, and what belongs to its tokens, cut to the first `count`; None: all."""
        if count is None:
            return self
        cut = {
            name: None if array is None else array[:, :count]
            for name, array in (("sizes", self.sizes), ("mask", self.mask), ("place", self.place))
        }
        return self.replace(x=self.x[:, :count], **cut)

    def put_aside(self, **entries: Any) -> "TokenSet":
        """A copy with `entries` added to what is kept aside; an entry of None is taken out."""
        aside = {**self.aside, **entries}
        return self.replace(aside={name: x for name, x in aside.items() if x is not None})

    def places_at(self, index: Int[Array, "b k"], new: int = 0) -> Int[Array, "b k+{new}"] | None:
        """`place` of the tokens at `index`, and of `new` more that have none; None without."""
        if self.place is None:
            return None
        return jnp.pad(gather(self.place, index), ((0, 0), (0, new)), constant_values=-1)

    @property
    def patches(self) -> int:
        """How many tokens of `x` are not class tokens."""
        return self.x.shape[1] - self.prefix


def start_tokens(
    x: Float[Array, "b n d"],
    *,
    prefix: int,
    grid: tuple[int, int],
    train: bool = False,
    key: jax.Array | None = None,
    places: bool = False,
) -> TokenSet:
    """The set of all input tokens, each in its own place; `places` keeps track of these."""
    b, n, _ = x.shape
    source = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), (b, n))
    place = source if places else None
    return TokenSet(x=x, source=source, place=place, prefix=prefix, grid=grid, train=train, key=key)


def check_tokens(tokens: TokenSet, *, dim: int, inputs: int) -> TokenSet:
    """`tokens`, after asserting the shapes and dtypes that backbones and reducers rely on.

    Costs nothing at run time: shapes are known while tracing.

    Raises:
      AssertionError: names the array whose shape or dtype is off.
    """
    batch, n, _ = tokens.x.shape
    chex.assert_shape(tokens.x, (batch, n, dim), custom_message="tokens.x")
    chex.assert_shape(tokens.source, (batch, inputs), custom_message="tokens.source")
    chex.assert_type(tokens.source, jnp.int32)
    if tokens.sizes is not None:
        chex.assert_shape(tokens.sizes, (batch, n), custom_message="tokens.sizes")
        chex.assert_type(tokens.sizes, jnp.float32)
    if tokens.place is not None:
        chex.assert_shape(tokens.place, (batch, n), custom_message="tokens.place")
        chex.assert_type(tokens.place, jnp.int32)
    if tokens.mask is not None:
        chex.assert_shape(tokens.mask, (batch, n), custom_message="tokens.mask")
        chex.assert_type(tokens.mask, bool)
    if tokens.scores is not None:
        chex.assert_type(tokens.scores, jnp.float32)
    return tokens


def top_k(scores: Float[Array, "b n"], k: int) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
    """The k largest scores and their indices, largest first, ties by the smaller index."""
    return local(
        scores,
        tpu=lambda scores: one_hot.top_k(scores, k),
        default=lambda scores: tuple(jax.lax.top_k(scores, k)),
    )


def local(*arrays: Any, tpu: Callable, default: Callable) -> Any:
    """A function of a batch of images, of each device's own: `tpu` on TPUs, `default` elsewhere.

    A program for another library has `tpu` too: matrix products and comparisons are everywhere.
    """
    if platforms.known_platform() == platforms.OTHER:
        return tpu(*arrays)
    counts = (n for x in jax.tree.leaves(arrays) for n in x.shape[1:2])
    if all(n <= one_hot.MOST_TOKENS for n in counts):
        default = functools.partial(platforms.by_platform, tpu=tpu, default=default)
    return per_device(default, *arrays)


def gather(x: Array, index: Int[Array, "b k"]) -> Array:
    """`x[b, index[b, j]]` for `x` `[b, n]` or `[b, n, d]`; indices are in range by construction."""
    return local(x, index, tpu=one_hot.gather, default=_take)


def _take(x: Array, index: Int[Array, "b k"]) -> Array:
    index = index if x.ndim == 2 else index[:, :, None]
    # Without the clip XLA fills out-of-range rows with NaN, a second pass over the result.
    return jnp.take_along_axis(x, index, axis=1, mode="clip")


def gather_and_sum(
    x: Float[Array, "b n d"], index: Int[Array, "b k"], weights: Float[Array, "b p"]
) -> Float[Array, "b k+1 d"]:
    """`gather(x, index)`, and after it the sum of the last p tokens of `x` times their weights."""
    return local(x, index, weights, tpu=one_hot.gather_and_sum, default=_take_and_sum)


def _take_and_sum(
    x: Float[Array, "b n d"], index: Int[Array, "b k"], weights: Float[Array, "b p"]
) -> Float[Array, "b k+1 d"]:
    last = x[:, x.shape[1] - weights.shape[1] :]
    precision = None if x.dtype == jnp.bfloat16 else "highest"
    total = jnp.einsum("bp,bpd->bd", weights.astype(x.dtype), last, precision=precision)
    return jnp.concatenate([_take(x, index), total[:, None]], axis=1)


def _rows(index: Int[Array, "b k"]) -> Int[Array, "b 1"]:
    return jnp.arange(index.shape[0], dtype=index.dtype)[:, None]


def scatter_add(x: Array, index: Int[Array, "b k"], updates: Array) -> Array:
    """`x` with `updates[b, j]` added at `index[b, j]`; an image's indices may repeat."""
    return per_device(
        lambda x, index, updates: x.at[_rows(index), index].add(updates, mode="promise_in_bounds"),
        x,
        index,
        updates,
    )


def scatter_set(x: Array, index: Int[Array, "b k"], values: Array) -> Array:
    """`x` with `values[b, j]` at `index[b, j]`; an image's indices are distinct."""
    return local(x, index, values, tpu=one_hot.scatter_set, default=_put)


def _put(x: Array, index: Int[Array, "b k"], values: Array) -> Array:
    rows = x.at[_rows(index), index]
    return rows.set(values, mode="promise_in_bounds", unique_indices=True)


def membership(index: Int[Array, "b k"], n: int) -> Bool[Array, "b n"]:
    """Which of n positions `index` names, once or more."""
    mark, compare = (functools.partial(way, n=n) for way in (_mark, one_hot.membership))
    return local(index, tpu=compare, default=mark)


def _mark(index: Int[Array, "b k"], n: int) -> Bool[Array, "b {n}"]:
    none = jnp.zeros((index.shape[0], n), bool)
    return none.at[_rows(index), index].set(True, mode="promise_in_bounds")


def among_top(scores: Float[Array, "b n"], index: Int[Array, "b k"]) -> Bool[Array, "b n"]:
    """Which positions `index` names, the indices that `top_k(scores, k)` gave."""
    return local(
        scores,
        index,
        tpu=lambda scores, index: one_hot.ranks(scores) < index.shape[1],
        default=lambda scores, index: _mark(index, scores.shape[1]),
    )


def order_by(scores: Float[Array, "b n"]) -> Int[Array, "b n"]:
    """All indices, largest score first, ties by the smaller index."""
    order = local(
        scores,
        tpu=lambda scores: one_hot.top_k(scores, scores.shape[1])[1],
        default=functools.partial(jnp.argsort, axis=-1, descending=True, stable=True),
    )
    return order.astype(jnp.int32)


def ascending(index: Int[Array, "b k"]) -> Int[Array, "b k"]:
    """Indices in increasing order."""
    return local(
        index,
        tpu=lambda index: -one_hot.top_k(-index, index.shape[1])[0],
        default=functools.partial(jnp.sort, axis=1),
    )


def group_sum(
    x: Float[Array, "b m d"], group: Int[Array, "b m"], count: int
) -> Float[Array, "b {count} d"]:
    """The sum of the members of each of `count` groups, `group[b, j]` being the group of j.

    A matmul with a 0/1 matrix: the same from run to run, where a scatter on a GPU is not.
    """
    member = group[:, None, :] == jnp.arange(count, dtype=group.dtype)[None, :, None]
    return jnp.einsum("bgm,bmd->bgd", member.astype(x.dtype), x, precision="highest")


def nearest_distances(distance: Float[Array, "b n m"], k: int) -> Float[Array, "b n {k}"]:
    """The k smallest distances of each token."""
    return -per_device(lambda near: jax.lax.top_k(near, k)[0], -distance)


def columns(x: Float[Array, "b n m"], index: Int[Array, "b k"]) -> Float[Array, "b n k"]:
    """`x[b, i, index[b, j]]`."""
    return local(
        x,
        index,
        tpu=one_hot.columns,
        default=lambda x, index: jnp.take_along_axis(x, index[:, None], axis=2, mode="clip"),
    )


def pairwise_distances(x: Float[Array, "b n d"]) -> Float[Array, "b n n"]:
    """Euclidean distances, float32, as a matmul of the tokens less their mean.

    What all tokens have in common would cost most of the precision.
    """
    x = x.astype(jnp.float32)
    x = x - x.mean(axis=1, keepdims=True)
    squares = jnp.square(x).sum(axis=2)
    products = jnp.einsum("bnd,bmd->bnm", x, x, precision="highest")
    squared = squares[:, :, None] + squares[:, None, :] - 2 * products
    apart = ~jnp.eye(x.shape[1], dtype=bool)[None] & (squared > 0)
    # The gradient of a root has no value at 0.
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)


def follow(source: Int[Array, "b N"], moves: Int[Array, "b n"]) -> Int[Array, "b N"]:
    """The source map after the token at j went to `moves[b, j]` (or was dropped: negative).

    Tokens that had left the set before stay as they are.
    """
    moved = gather(moves, jnp.maximum(source, 0))
    return jnp.where(source >= 0, moved, source)


def dropped_at(block: int) -> int:
    """How a source map says that a token left the set at `block`."""
    return -(block + 1)


def kept_moves(index: Int[Array, "b k"], n: int, *, elsewhere: int) -> Int[Array, "b n"]:
    """Moves for `follow` when the tokens at `index` go to 0..k-1 and all others to `elsewhere`."""
    b, k = index.shape
    moves = jnp.full((b, n), elsewhere, jnp.int32)
    places = jnp.broadcast_to(jnp.arange(k, dtype=jnp.int32), (b, k))
    return scatter_set(moves, index, places)


def with_prefix(index: Int[Array, "b k"], prefix: int) -> Int[Array, "b {prefix}+k"]:
    """Indices of the whole set for `index` among its patch tokens, the class tokens first."""
    head = jnp.broadcast_to(jnp.arange(prefix, dtype=index.dtype), (index.shape[0], prefix))
    return jnp.concatenate([head, index + prefix], axis=1)


def keep(tokens: TokenSet, index: Int[Array, "b k"], block: int) -> TokenSet:
    """Keeps the class tokens and the patch tokens at `index`; the others are dropped for good."""
    whole = with_prefix(index, tokens.prefix)
    moves = kept_moves(whole, tokens.x.shape[1], elsewhere=dropped_at(block))
    return tokens.replace(
        x=gather(tokens.x, whole),
        source=follow(tokens.source, moves),
        sizes=None if tokens.sizes is None else gather(tokens.sizes, whole),
        mask=None if tokens.mask is None else gather(tokens.mask, whole),
        place=tokens.places_at(whole),
    )


def regroup(
    tokens: TokenSet,
    x: Float[Array, "b k d"],
    group: Int[Array, "b p"],
    place: Int[Array, "b m"] | None = None,
) -> TokenSet:
    """The patch tokens become those of `x`, patch token j having gone into `group[b, j]`.

    `place` is that of all new tokens, for methods that keep places.
    """
    prefix = tokens.prefix
    patches = jnp.concatenate([tokens.x[:, :prefix], x.astype(tokens.x.dtype)], axis=1)
    return tokens.replace(
        x=patches,
        source=follow(tokens.source, with_prefix(group.astype(jnp.int32), prefix)),
        place=place,
    )


def mask_out(tokens: TokenSet, valid: Bool[Array, "b n"], block: int) -> TokenSet:
    """Tokens that are not `valid` count no more from `block` on; they keep their places."""
    places = jnp.arange(valid.shape[1], dtype=jnp.int32)[None]
    moves = jnp.where(valid, places, jnp.int32(dropped_at(block)))
    mask = valid if tokens.mask is None else tokens.mask & valid
    return tokens.replace(mask=mask, source=follow(tokens.source, moves))


def spread(x: Float[Array, "b n d"], source: Int[Array, "b N"]) -> Float[Array, "b N d"]:
    """For every input token the value of the token that holds it, zero where it was dropped."""
    held = gather(x, jnp.maximum(source, 0))
    return jnp.where((source >= 0)[..., None], held, jnp.zeros_like(held))


def group_sizes(source: Int[Array, "b N"], n: int) -> Int[Array, "b n"]:
    """How many input tokens each of the n tokens of the set holds, by the source map."""
    held = jnp.where(source >= 0, source, n)
    counts = jnp.zeros((source.shape[0], n + 1), jnp.int32)
    return scatter_add(counts, held, jnp.ones_like(held))[:, :n]
