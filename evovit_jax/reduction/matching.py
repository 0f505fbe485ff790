"""What methods that merge tokens share: candidates, similarities, edges, a plan, and pooling.

A merging method compares two sets of tokens, A and B. Every token of A has one edge, to the most
similar token of B; some edges become merges. A `Merge` says which tokens stay, in which order, and
what goes into which. What similarity, which candidates, which edges and how merged tokens are
averaged is each method's own choice of the functions below.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from evovit_jax.reduction import one_hot
from evovit_jax.reduction.tokens import (
    TokenSet,
    ascending,
    follow,
    gather,
    group_sum,
    kept_moves,
    local,
    order_by,
    scatter_set,
)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["partner", "score"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Edges:
    """The best partner in B of every token of A.

    Attributes:
      partner: int32 `[b, a]`, its number in B.
      score: float32 `[b, a]`, how similar the two are.
    """

    partner: Int[Array, "b a"]
    score: Float[Array, "b a"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["kept", "merged", "into", "moves"],
    meta_fields=["untouched"],
)
@dataclasses.dataclass(frozen=True)
class Merge:
    """Which tokens of a set stay and which merge. A token in neither list is dropped.

    Attributes:
      kept: int32 `[b, k]`, the tokens that stay, in the new order.
      merged: int32 `[b, r]`, the tokens that go into others.
      into: int32 `[b, r]`, the places in the new set of those that they go into.
      untouched: how many of the first places of the new set nothing goes into.
      moves: int32 `[b, n]`, the new place of every token, where the plan knows a way to it that
        does not lead over the lists.
    """

    kept: Int[Array, "b k"]
    merged: Int[Array, "b r"]
    into: Int[Array, "b r"]
    untouched: int = 0
    moves: Int[Array, "b n"] | None = None

    def moves_of(self, n: int, *, elsewhere: int = -1) -> Int[Array, "b {n}"]:
        """The new place of each of the n tokens, `elsewhere` where it is dropped."""
        if self.moves is not None:
            return self.moves
        moves = kept_moves(self.kept, n, elsewhere=elsewhere)
        return scatter_set(moves, self.merged, self.into)


# --- candidates ----------------------------------------------------------------------------------


def alternate(prefix: int) -> tuple[slice, slice]:
    """The tokens in even and in odd places, without the first `prefix`."""
    return slice(prefix + prefix % 2, None, 2), slice(prefix + (prefix + 1) % 2, None, 2)


def places(like: Shaped[Array, "b n *d"], which: slice = slice(None)) -> Int[Array, "b m"]:
    """The places of a set that a slice names, for every image."""
    chosen = jnp.arange(like.shape[1], dtype=jnp.int32)[which]
    return jnp.broadcast_to(chosen, (like.shape[0], chosen.shape[0]))


# --- similarities and edges ----------------------------------------------------------------------


def unit(x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
    """Vectors of length 1 in the directions of `x`, float32, without a gradient."""
    x = jax.lax.stop_gradient(x.astype(jnp.float32))
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def products(a: Float[Array, "b a c"], b: Float[Array, "b o c"]) -> Float[Array, "b a o"]:
    """The scalar product of every pair; of unit vectors the cosine."""
    return jnp.einsum("bac,boc->bao", a, b, precision="highest")


def best_edges(similarity: Float[Array, "b a o"]) -> Edges:
    """The edge of each token of A, ties to the first of B."""
    partner = similarity.argmax(axis=-1).astype(jnp.int32)
    return Edges(partner=partner, score=similarity.max(axis=-1))


# --- plans ---------------------------------------------------------------------------------------


def merge_strongest(
    edges: Edges,
    r: int,
    a: Int[Array, "b a"],
    b: Int[Array, "b o"],
    first: Int[Array, "b f"],
    *,
    rest_by_score: bool = False,
) -> Merge:
    """The r strongest edges merge; the new order is `first`, what is left of A, then B.

    What is left of A keeps its order, or is put in that of its falling scores.
    """
    order = order_by(edges.score)
    merging, rest = order[:, :r], order[:, r:]
    rest = rest if rest_by_score else ascending(rest)
    kept = jnp.concatenate([first, gather(a, rest), b], axis=1)
    untouched = kept.shape[1] - b.shape[1]
    return Merge(
        kept=kept,
        merged=gather(a, merging),
        into=untouched + gather(edges.partner, merging),
        untouched=untouched,
    )


def merge_back(
    edges: Edges, r: int, a: Int[Array, "b a"], b: Int[Array, "b o"], first: Int[Array, "b f"]
) -> Merge:
    """The r strongest edges from B to A merge; the order is `first`, A, then B by falling score."""
    order, untouched = order_by(edges.score), first.shape[1]
    merging = order[:, :r]
    return Merge(
        kept=jnp.concatenate([first, a, gather(b, order[:, r:])], axis=1),
        merged=gather(b, merging),
        into=untouched + gather(edges.partner, merging),
        untouched=untouched,
    )


def merge_tail(x: Float[Array, "b n d"], edges: Edges, untouched: int) -> Merge:
    """The last tokens of a set, of which `edges` are, merge into those before.

    Edges lead to the tokens from number `untouched` on.
    """
    count = x.shape[1] - edges.partner.shape[1]
    return Merge(
        kept=places(x, slice(0, count)),
        merged=places(x, slice(count, None)),
        into=untouched + edges.partner,
        untouched=untouched,
    )


def bipartite(
    metric: Float[Array, "b n c"], r: int, prefix: int, *, rest_by_score: bool = False
) -> Merge:
    """ToMe's plan: the r most similar of the edges from even to odd places, by cosine."""
    metric, (even, odd) = unit(metric), alternate(prefix)
    edges = best_edges(products(metric[:, even], metric[:, odd]))
    first = slice(0, prefix)
    a, b, first = (places(metric, which) for which in (even, odd, first))
    merge = merge_strongest(edges, r, a, b, first, rest_by_score=rest_by_score)
    by_ranks = functools.partial(
        one_hot.places_after_merging,
        r=r,
        prefix=prefix,
        others=b.shape[1],
        odd=odd.start < even.start,
        by_score=rest_by_score,
    )
    moves = local(
        edges,
        merge,
        tpu=lambda edges, merge: by_ranks(edges.score, edges.partner),
        default=lambda edges, merge: merge.moves_of(metric.shape[1]),
    )
    return dataclasses.replace(merge, moves=moves)


# --- pooling -------------------------------------------------------------------------------------


def added(x: Float[Array, "b n d"], merge: Merge) -> Float[Array, "b k d"]:
    """The new set's tokens, each the sum of itself and of what went into it."""
    same = gather(x, merge.kept[:, : merge.untouched])
    return jnp.concatenate([same, _gained(x, merge)], axis=1)


def _gained(x: Float[Array, "b n d"], merge: Merge) -> Float[Array, "b t d"]:
    """Of the sums of `added` those that something may go into."""
    kept, into = merge.kept[:, merge.untouched :], merge.into - merge.untouched
    return gather(x, kept) + group_sum(gather(x, merge.merged), into, kept.shape[1])


def added_sizes(sizes: Float[Array, "b n"], merge: Merge) -> Float[Array, "b k"]:
    """The sizes of the new set's tokens."""
    return added(sizes[..., None], merge)[..., 0]


def pooled(
    x: Float[Array, "b n d"], weights: Float[Array, "b n"], merge: Merge
) -> tuple[Float[Array, "b k d"], Float[Array, "b k"]]:
    """Weighted means of each token and of what went into it, and the sums of the weights.

    The weights are added on their own: as one more column of the tokens they would keep all
    columns in memory for as long as they are needed, up to the next merge.
    """
    return local(x, weights, merge, tpu=_pooled_at_once, default=_pooled)


def _pooled(
    x: Float[Array, "b n d"], weights: Float[Array, "b n"], merge: Merge
) -> tuple[Float[Array, "b k d"], Float[Array, "b k"]]:
    sums = added_sizes(weights, merge)
    weighed = _gained(x.astype(jnp.float32) * weights[..., None], merge)
    mean = (weighed / sums[:, merge.untouched :, None]).astype(x.dtype)
    same = gather(x, merge.kept[:, : merge.untouched])
    return jnp.concatenate([same, mean], axis=1), sums


def _pooled_at_once(
    x: Float[Array, "b n d"], weights: Float[Array, "b n"], merge: Merge
) -> tuple[Float[Array, "b k d"], Float[Array, "b k"]]:
    return one_hot.pooled(x, weights, merge.moves_of(x.shape[1]), merge.kept.shape[1])


def pooled_map(
    weights: Float[Array, "b h n n"], by: Float[Array, "b n"], merge: Merge
) -> Float[Array, "b h k k"]:
    """An attention map of the merged tokens: columns are added, rows averaged."""
    b, h, n, _ = weights.shape
    keys = added(jnp.moveaxis(weights, 3, 1).reshape(b, n, h * n), merge)
    k = keys.shape[1]
    rows = jnp.transpose(keys.reshape(b, k, h, n), (0, 3, 2, 1)).reshape(b, n, h * k)
    rows, _ = pooled(rows, by, merge)
    return jnp.moveaxis(rows.reshape(b, k, h, k), 2, 1)


def sizes_of(tokens: TokenSet) -> Float[Array, "b n"]:
    """How many input tokens each token stands for, one where nobody counted."""
    return jnp.ones(tokens.x.shape[:2]) if tokens.sizes is None else tokens.sizes


def moved(tokens: TokenSet, merge: Merge, *, elsewhere: int = -1) -> Int[Array, "b N"]:
    """The source map after `merge`; tokens that it does not name go `elsewhere`."""
    return follow(tokens.source, merge.moves_of(tokens.x.shape[1], elsewhere=elsewhere))


def merge_by_size(tokens: TokenSet, merge: Merge) -> TokenSet:
    """The set after `merge`: means weighted by sizes."""
    x, sizes = pooled(tokens.x, sizes_of(tokens), merge)
    place = tokens.places_at(merge.kept)
    return tokens.replace(x=x, sizes=sizes, source=moved(tokens, merge), place=place)


def merge_weighted(tokens: TokenSet, merge: Merge, weights: Float[Array, "b n"]) -> TokenSet:
    """The set after `merge`: means by weights of their own, sizes added."""
    x, _ = pooled(tokens.x, weights, merge)
    sizes = added_sizes(sizes_of(tokens), merge)
    place = tokens.places_at(merge.kept)
    return tokens.replace(x=x, sizes=sizes, source=moved(tokens, merge), place=place)
