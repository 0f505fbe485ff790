"""K-medoids: clusters, each represented by one of its own tokens.

As in Haurum et al., "Which Tokens to Use? Investigating Token Reduction in Vision Transformers",
ICCVW 2023 (arXiv:2308.04657), after Marin et al., "Token Pooling in Vision Transformers" (2021).
Before a location, with `w_j` the attention that patch token j received in the block before, summed
over heads and queries, and d the Euclidean distance:

- the `int(patches * keep_rate**k)` tokens of the largest w are the first medoids;
- `iterations` times (3), every token goes to the nearest medoid, the first on ties, and of each
  cluster the token of the smallest `w_j * sum of d_jl over all tokens l` becomes the medoid. This
  is the study's rule: the sum runs over all tokens, where a textbook's runs over the cluster's;
- the medoids, as they are, go on in place of all tokens.

With `equal_weight`, all w are 1, and the first medoids are spread evenly over the tokens (the
study's are drawn at random). A location before which no block ran has equal weights as well.
In the source map a token is where the medoid of its cluster is. Class tokens go round it.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from evovit_jax.errors import UserError
from evovit_jax.reduction.at_locations import Located, LocatedFields
from evovit_jax.reduction.base import (
    NOTHING_ASKED,
    AttentionRequest,
    AttentionView,
)
from evovit_jax.reduction.card import OPTIONAL, Card
from evovit_jax.reduction.tokens import (
    TokenSet,
    columns,
    gather,
    pairwise_distances,
    regroup,
    top_k,
    with_prefix,
)


@dataclasses.dataclass(frozen=True)
class KMedoidsFields(LocatedFields):
    """Settings of K-medoids beside those of `LocatedFields`.

    Attributes:
      iterations: rounds of assignment and update.
      equal_weight: whether all tokens count alike, instead of by the attention that they received.
    """

    iterations: int = 3
    equal_weight: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.iterations < 0:
            raise UserError(f"kmedoids iterations must not be negative, got {self.iterations}")


class KMedoids(Located):
    """Clustering by medoids, seeded by attention."""

    card = Card(
        title="K-medoids",
        paper="2308.04657",
        summary="clusters, each one of its own tokens",
        training=OPTIONAL,
        score="distances of tokens, attention received",
        fused_attention="but for the blocks before a location",
        equal_to=("JoakimHaurum/TokenReduction",),
        notes="MIT",
    )
    Fields = KMedoidsFields

    def _weighted(self, block: int, tokens: TokenSet) -> bool:
        """Whether the clusters before `block` are weighted by attention."""
        return self.reduces(block, tokens) and block > 0 and not self.fields.equal_weight

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """The whole map, in the block before a location."""
        if self._weighted(block + 1, tokens):
            return AttentionRequest(needs=frozenset({"weights"}))
        return NOTHING_ASKED

    def after_attention(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """The scores become the attention that the patch tokens received."""
        del block
        if attention.weights is None:
            return tokens
        return tokens.replace(scores=attention.weights.sum(axis=(1, 2))[:, tokens.prefix :])

    def before_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """The medoids stand for all patch tokens."""
        if not self.reduces(block, tokens):
            return tokens
        count = self.count(self.location(block), tokens)
        patches = tokens.x[:, tokens.prefix :]
        if self._weighted(block, tokens):
            weights = tokens.scores
            _, first = top_k(weights, count)
        else:
            weights = jnp.ones(patches.shape[:2])
            spread = jnp.arange(count, dtype=jnp.int32) * tokens.patches // count
            first = jnp.broadcast_to(spread, (patches.shape[0], count))
        medoids, group = fit(patches.astype(jnp.float32), weights, first, self.fields.iterations)
        place = tokens.places_at(with_prefix(medoids, tokens.prefix))
        return regroup(tokens, gather(patches, medoids), group, place).replace(scores=None)


def fit(
    x: Float[Array, "b p d"],
    weights: Float[Array, "b p"],
    medoids: Int[Array, "b k"],
    iterations: int,
) -> tuple[Int[Array, "b k"], Int[Array, "b p"]]:
    """The medoids that `iterations` rounds lead to, and the cluster of each token."""
    distance = jax.lax.stop_gradient(pairwise_distances(x))
    cost = jax.lax.stop_gradient(weights) * distance.sum(axis=2)
    numbers = jnp.arange(medoids.shape[1], dtype=jnp.int32)[None, :, None]

    def assign(medoids: Int[Array, "b k"]) -> Int[Array, "b p"]:
        return columns(distance, medoids).argmin(axis=2).astype(jnp.int32)

    for _ in range(iterations):
        member = assign(medoids)[:, None, :] == numbers
        # A cluster that equal tokens have left without members falls back to the first token.
        medoids = jnp.where(member, cost[:, None, :], jnp.inf).argmin(axis=2).astype(jnp.int32)
    return medoids, assign(medoids)
