"""PiToMe: merges where tokens are many of a kind, and protects those that stand alone.

Tran et al., "Accelerating Transformers with Spectrum-Preserving Token Merging", NeurIPS 2024
(arXiv:2405.16148), written from the paper. Between attention and feed-forward of each block
`r = floor(T - T * keep_rate)` of T patch tokens merge into others, at most half:

1. The energy of a patch is the mean, over all patches, of `ELU(cos - margin)`, cos between keys
   (the mean over heads); the margin of block l of L is `0.75 * (1 - l / L)` (Section 3.2,
   equation 4). Patches that resemble many others have much of it.
2. In the later half of the blocks the 2r patches of the highest energy, in falling order, alternate
   between A and B, and each of A merges into the most similar of B; the others are protected.
   In the first `ceil(L / 2)` blocks all patches alternate so, and the r best edges merge.
3. Means are weighted by how many patches a token stands for; class tokens take no part.

The order afterwards: class tokens, what is left of A by falling similarity (or what was protected,
by falling energy), then B. `proportional_attention` counts sizes in attention as ToMe does; the
authors' code for image classification does not. In a pyramid tokens unmerge at the end of each
stage.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from evovit_jax.reduction.base import AttentionView
from evovit_jax.reduction.card import NOT_NEEDED, Card
from evovit_jax.reduction.matching import (
    Merge,
    best_edges,
    merge_by_size,
    merge_strongest,
    places,
    products,
    unit,
)
from evovit_jax.reduction.merging import EveryBlockFields, Merging, mean_keys
from evovit_jax.reduction.tokens import TokenSet, gather, order_by

MARGIN = 0.75


@dataclasses.dataclass(frozen=True)
class PiToMeFields(EveryBlockFields):
    """Settings of PiToMe beside `keep_rate` (0.9) and `locations` (every block).

    Attributes:
      proportional_attention: whether attention counts a token by its size.
    """

    proportional_attention: bool = False


class PiToMe(Merging):
    """Merging of high-energy tokens."""

    card = Card(
        title="PiToMe",
        paper="2405.16148",
        summary="merges tokens that resemble many, protects those that stand alone",
        training=NOT_NEEDED,
        score="energy: keys that resemble many",
        in_pyramids="without attention biases",
        equal_to=("hchautran/PiToMe",),
        notes="CC-BY-NC",
    )
    Fields = PiToMeFields

    def count(self, location: int, tokens: TokenSet) -> int:
        """Patch tokens left; at most half of them leave."""
        leaving = math.floor(tokens.patches - tokens.patches * self.fields.rate(location))
        return tokens.patches - min(leaving, tokens.patches // 2)

    def reduce(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """Merges tokens of much energy."""
        r, depth = tokens.patches - self.count(self.location(block), tokens), self.backbone.depth
        metric = unit(mean_keys(attention))
        energies = energy(metric[:, tokens.prefix :], MARGIN * (1 - block / depth))
        order = order_by(energies) + tokens.prefix
        protects = block >= math.ceil(depth / 2)
        return merge_by_size(tokens, plan(metric, order, r, tokens.prefix, protects=protects))


def energy(metric: Float[Array, "b p c"], margin: float) -> Float[Array, "b p"]:
    """How much each token resembles all: the mean of ELU(cos - margin), itself included."""
    return jax.nn.elu(products(metric, metric) - margin).mean(axis=-1)


def plan(
    metric: Float[Array, "b n c"], order: Array, r: int, prefix: int, *, protects: bool
) -> Merge:
    """Which of the patches at `order`, highest energy first, merge: r of them."""
    candidates = order[:, : 2 * r] if protects else order
    a, b = candidates[:, 0::2], candidates[:, 1::2]
    first = places(metric, slice(0, prefix))
    if protects:
        first = jnp.concatenate([first, order[:, 2 * r :]], axis=1)
    edges = best_edges(products(gather(metric, a), gather(metric, b)))
    return merge_strongest(edges, r, a, b, first, rest_by_score=True)
