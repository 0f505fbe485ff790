"""ToFu: drops similar tokens in the first half of the network, and merges them in the second.

Kim et al., "Token Fusion: Bridging the Gap between Token Pruning and Token Merging", WACV 2024
(arXiv:2312.01026), written from the paper. Between attention and feed-forward of each block,
`floor(T - T * keep_rate)` of T tokens, class tokens counted, are matched as ToMe does (keys, the
mean over heads; even places into odd ones; see tome.py). In blocks 0 to depth // 2 the matched
tokens of A leave, and those of B stay as they are: there the network is far from linear, and a
mean of two tokens is like neither. In later blocks each token of B becomes the mean of itself and
of what goes into it, times the largest norm among them over the norm that it had (the paper's
MLERP as the port that these outputs equal computes it). Sizes are not counted, hence attention is
not in proportion to them. In a pyramid tokens unmerge at the end of each stage.

There is no code by the authors; the port is hchautran/PiToMe's.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from evovit_jax.reduction.base import AttentionView
from evovit_jax.reduction.card import NOT_NEEDED, Card
from evovit_jax.reduction.matching import Merge, bipartite, moved, pooled
from evovit_jax.reduction.merging import EveryBlockFields, Merging, mean_keys
from evovit_jax.reduction.tokens import TokenSet, gather


@dataclasses.dataclass(frozen=True)
class ToFuFields(EveryBlockFields):
    """Settings of ToFu: `keep_rate` (0.9) and `locations` (every block)."""


class ToFu(Merging):
    """Pruning, then norm-preserving merging, of ToMe's matches."""

    card = Card(
        title="ToFu",
        paper="2312.01026",
        summary="drops what ToMe would merge in the first half, merges it in the second",
        training=NOT_NEEDED,
        score="similar keys",
        in_pyramids="without attention biases",
        equal_to=("hchautran/PiToMe",),
        notes="CC-BY-NC",
    )
    Fields = ToFuFields

    def count(self, location: int, tokens: TokenSet) -> int:
        """Patch tokens left; at most half of them leave."""
        n = tokens.x.shape[1]
        leaving = math.floor(n - n * self.fields.rate(location))
        return tokens.patches - min(leaving, tokens.patches // 2)

    def reduce(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """Drops the sources of the matches, or merges them."""
        r = tokens.patches - self.count(self.location(block), tokens)
        plan = bipartite(mean_keys(attention), r, tokens.prefix)
        drops = block <= self.backbone.depth // 2
        x = gather(tokens.x, plan.kept) if drops else fused(tokens.x, plan)
        place = tokens.places_at(plan.kept)
        return tokens.replace(x=x, source=moved(tokens, plan), place=place)


def fused(x: Float[Array, "b n d"], merge: Merge) -> Float[Array, "b k d"]:
    """Plain means, lengthened by the largest norm of those that meet over that of the one kept."""
    means, _ = pooled(x, jnp.ones(x.shape[:2]), merge)
    norms = jnp.linalg.norm(x.astype(jnp.float32), axis=-1)
    own, coming = gather(norms, merge.kept), gather(norms, merge.merged)
    place = jnp.arange(own.shape[1], dtype=jnp.int32)
    goes = merge.into[:, None, :] == place[None, :, None]
    largest = jnp.maximum(own, jnp.where(goes, coming[:, None], 0.0).max(axis=-1))
    factor = largest / jnp.maximum(own, 1e-12)
    return (means.astype(jnp.float32) * factor[..., None]).astype(x.dtype)
