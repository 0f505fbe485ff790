"""ATC: at a few blocks clusters the tokens from the bottom up, and each cluster becomes its mean.

Haurum et al., "Agglomerative Token Clustering", ECCV 2024 (arXiv:2409.11923), written from the
paper and the behaviour of the authors' code. Between attention and feed-forward of a location:

1. The distance of two patch tokens is one minus the cosine of their keys, the mean over heads.
2. Every token begins as a cluster. The two nearest clusters become one, again and again, until
   `int(patches * keep_rate**(i + 1))` are left after location i. How far two clusters are apart is
   the `linkage`: "single", their nearest tokens; "complete", their farthest; "average", the mean
   over all pairs.
3. A cluster becomes the mean of its tokens, weighted by how many patches each stands for, and
   attention counts it by that number (proportional attention, as in ToMe).

How many times two clusters become one is known beforehand, so this is a loop of known length over
one matrix of distances. Clusters are in the order of their first tokens, class tokens first; the
authors' are in another order, which no result depends on. Equal distances: the first pair in
raster order. Without proportional attention sizes begin anew at each location.

In a pyramid tokens unmerge at the end of each stage: a subsampling needs the whole grid.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from evovit_jax.parallel.per_device import per_device
from evovit_jax.reduction.at_locations import LocatedFields
from evovit_jax.reduction.base import AttentionView, check_choice
from evovit_jax.reduction.card import OPTIONAL, Card
from evovit_jax.reduction.matching import Merge, merge_by_size, places, products, unit
from evovit_jax.reduction.merging import Merging, mean_keys
from evovit_jax.reduction.tokens import TokenSet, gather, top_k, with_prefix

LINKAGES = ("average", "complete", "single")


@dataclasses.dataclass(frozen=True)
class ATCFields(LocatedFields):
    """Settings beside `keep_rate` and `locations`.

    Attributes:
      linkage: how far two clusters are apart: "average", "complete" or "single".
      proportional_attention: whether attention counts a token by its size.
    """

    linkage: str = "average"
    proportional_attention: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_choice("atc linkage", self.linkage, LINKAGES)


class ATC(Merging):
    """Agglomerative clustering of keys, and size-weighted means."""

    card = Card(
        title="ATC",
        paper="2409.11923",
        summary="clusters similar tokens from the bottom up at a few blocks",
        training=OPTIONAL,
        score="similar keys",
        fused_attention="until sizes count",
        in_pyramids="without attention biases",
        notes="the authors' code is MIT",
    )
    Fields = ATCFields

    def reduce(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """The clusters in place of the tokens."""
        if not self.fields.proportional_attention:
            tokens = tokens.replace(sizes=None)
        keys = unit(mean_keys(attention)[:, tokens.prefix :])
        merges = tokens.patches - self.count(self.location(block), tokens)
        first = clusters(1 - products(keys, keys), merges, self.fields.linkage)
        return merge_by_size(tokens, as_merge(first, merges, tokens.prefix))


def clusters(distance: Float[Array, "b p p"], merges: int, linkage: str) -> Int[Array, "b p"]:
    """The first token of the cluster that each token is in, after so many merges."""

    def of_image(
        distance: Float[Array, "p p"], sizes: Float[Array, " p"], number: Int[Array, " p"]
    ) -> Int[Array, " p"]:
        apart = jnp.where(jnp.eye(len(sizes), dtype=bool), jnp.inf, distance)
        start = (apart, sizes, number)
        return jax.lax.fori_loop(0, merges, lambda _, state: joined(*state, linkage), start)[2]

    # All that the loop carries comes in by the image: a mesh's devices have their own of it.
    alone = jnp.ones(distance.shape[:2])
    return per_device(jax.vmap(of_image), distance, alone, places(distance))


def joined(
    distance: Float[Array, "p p"], sizes: Float[Array, " p"], first: Int[Array, " p"], linkage: str
) -> tuple[Float[Array, "p p"], Float[Array, " p"], Int[Array, " p"]]:
    """The state after the two nearest clusters became one, under the smaller of their numbers.

    Args:
      distance: of all pairs of clusters; infinite on the diagonal and where there is no cluster.
      sizes: how many tokens each has.
      first: the cluster, named after its first token, that each token is in.
      linkage: one of `LINKAGES`.
    """
    p = len(sizes)
    number = jnp.arange(p)
    pair = jnp.divmod(distance.argmin(), p)
    a, b = jnp.minimum(*pair), jnp.maximum(*pair)  # products may be asymmetric in the last bit
    far = {
        "single": jnp.minimum(distance[a], distance[b]),
        "complete": jnp.maximum(distance[a], distance[b]),
        "average": (sizes[a] * distance[a] + sizes[b] * distance[b]) / (sizes[a] + sizes[b]),
    }[linkage]
    is_a, is_b = number == a, number == b
    far = jnp.where(is_a | is_b, jnp.inf, far)
    distance = jnp.where(is_a[:, None], far[None], jnp.where(is_a[None], far[:, None], distance))
    distance = jnp.where(is_b[:, None] | is_b[None], jnp.inf, distance)
    sizes = jnp.where(is_a, sizes[a] + sizes[b], sizes)
    return distance, sizes, jnp.where(first == b, a, first)


def as_merge(first: Int[Array, "b p"], merges: int, prefix: int) -> Merge:
    """The first tokens of the clusters stay, and the others go into them."""
    stays = first == places(first)
    # Of equal scores the first in order comes first.
    kept = top_k(stays.astype(jnp.float32), first.shape[1] - merges)[1]
    merged = top_k((~stays).astype(jnp.float32), merges)[1]
    cluster = jnp.cumsum(stays, axis=1) - 1
    into = gather(cluster, gather(first, merged)).astype(jnp.int32)
    return Merge(
        kept=with_prefix(kept, prefix),
        merged=prefix + merged,
        into=prefix + into,
        untouched=prefix,
    )
