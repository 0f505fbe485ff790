"""PPT: drops tokens of images whose scores differ much, merges those of the others.

Wu et al., "PPT: Token Pruning and Pooling for Efficient Vision Transformers", 2023
(arXiv:2310.01812), written from the paper. Between attention and feed-forward of a location:

1. The score of a patch is the class token's attention to it times the length of its value, over
   the sum of all patches' (as in ATS): `sum_h a_hj * ||v_j||`, v_j the values of all heads.
2. An image whose scores have an (unbiased) variance of `threshold` or more drops the r patches of
   the lowest; the others stay by falling score, and keep their sizes (Section 3.3).
3. In any other image the r most similar pairs merge as in ToMe (keys, the mean over heads; means
   weighted by sizes), where there is nothing that stands out.

Either way r tokens leave, at most half of the patches, so both are computed, and each image takes
its own. Attention is in proportion to sizes from the first location on; without
`proportional_attention` sizes begin anew at each location.

Published, without training: DeiT-S at r = 50 and blocks 3, 6 and 9 79.50 at 2.94 GMACs.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from evovit_jax.errors import UserError
from evovit_jax.reduction import base
from evovit_jax.reduction.at_locations import Located, LocatedFields
from evovit_jax.reduction.base import AttentionRequest, AttentionView, Backbone, check_score
from evovit_jax.reduction.card import NOT_NEEDED, Card
from evovit_jax.reduction.knob import Knob, numbers_leaving
from evovit_jax.reduction.matching import bipartite, merge_by_size, sizes_of
from evovit_jax.reduction.merging import log_sizes, mean_keys
from evovit_jax.reduction.tokens import TokenSet, keep, top_k

# By default a location drops or merges this share of the input's patches: 50 of 196.
DEFAULT_LEAVING = 50 / 196
NEEDS = frozenset({"class_row", "keys", "values"})


@dataclasses.dataclass(frozen=True)
class PPTFields(base.Fields):
    """Settings of PPT.

    Attributes:
      r: tokens that leave at a location; one number, or one a location. By default 50 of 196.
      locations: the blocks that reduce; by default those after a quarter, a half and three
        quarters of the depth.
      threshold: the variance of scores from which an image's tokens are dropped and not merged.
      proportional_attention: whether attention counts a token by its size.
      score: what tokens are ranked by (`AttentionRequest.score`); by default the network's first.
    """

    r: int | tuple[int, ...] | None = None
    locations: int | tuple[int, ...] | None = None
    threshold: float = 7e-5
    proportional_attention: bool = True
    score: str | None = None

    def __post_init__(self):
        numbers = self.r if isinstance(self.r, tuple) else (self.r or 0,)
        if min(numbers, default=-1) < 0:
            raise UserError(f"ppt r must be whole numbers of tokens, got {self.r!r}")
        if self.threshold < 0:
            raise UserError(f"ppt threshold must not be negative, got {self.threshold!r}")

    def blocks(self, backbone: Backbone) -> tuple[int, ...]:
        """The blocks that reduce.

        Raises:
          UserError: if the locations do not fit the network, or the numbers r the locations.
        """
        blocks = LocatedFields(locations=self.locations).blocks(backbone)
        if isinstance(self.r, tuple) and len(self.r) != len(blocks):
            raise UserError(f"ppt r has {len(self.r)} members for {len(blocks)} locations")
        return blocks

    def check(self, backbone: Backbone) -> None:
        """Refuses locations, numbers r and a score that do not fit the network."""
        self.blocks(backbone)
        check_score(self.score, backbone)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["variances", "pooled"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Choices:
    """What each image did at the locations so far.

    Attributes:
      variances: float32 `[b]` of each location, of the patches' scores.
      pooled: bool `[b]` of each location, whether tokens merged.
    """

    variances: tuple[Float[Array, " b"], ...] = ()
    pooled: tuple[Bool[Array, " b"], ...] = ()


class PPT(Located):
    """Pruning or pooling, as each image's scores suggest."""

    card = Card(
        title="PPT",
        paper="2310.01812",
        summary="drops or merges, as each image's scores suggest",
        training=NOT_NEEDED,
        score="class attention times length of the values",
        fused_attention="until sizes count",
        equal_to=("xjwu1024/PPT",),
        notes="Apache-2.0; files with ToMe's header (CC-BY-NC)",
    )
    knob = Knob("r", numbers_leaving)
    Fields = PPTFields
    needs_class_token = True

    def count(self, location: int, tokens: TokenSet) -> int:
        """Patch tokens left; at most half of them leave."""
        r = self.fields.r
        if r is None:
            r = round(DEFAULT_LEAVING * tokens.grid[0] * tokens.grid[1])
        leaving = r[location] if isinstance(r, tuple) else r
        return tokens.patches - min(leaving, tokens.patches // 2)

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """Class attention, keys and values where tokens leave."""
        needs = NEEDS if self.reduces(block, tokens) else frozenset()
        bias = log_sizes(tokens) if self.fields.proportional_attention else None
        return dataclasses.replace(self.class_row(), needs=needs, bias=bias)

    def after_attention(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """Drops or merges."""
        if not self.reduces(block, tokens):
            return tokens
        count = self.count(self.location(block), tokens)
        if not self.fields.proportional_attention:
            tokens = tokens.replace(sizes=None)
        tokens = tokens.replace(sizes=sizes_of(tokens))
        scores = value_scores(attention, tokens.prefix)
        variance = jnp.var(scores, axis=1, ddof=1)
        pools = variance < self.fields.threshold
        pruned = keep(tokens, top_k(scores, count)[1], block)
        plan = bipartite(mean_keys(attention), tokens.patches - count, tokens.prefix)
        merged = merge_by_size(tokens, plan)
        before = tokens.aside.get("choices", Choices())
        choices = Choices((*before.variances, variance), (*before.pooled, pools))
        return tokens.replace(
            x=jnp.where(pools[:, None, None], merged.x, pruned.x),
            sizes=jnp.where(pools[:, None], merged.sizes, pruned.sizes),
            source=jnp.where(pools[:, None], merged.source, pruned.source),
            place=(
                None
                if tokens.place is None
                else jnp.where(pools[:, None], merged.place, pruned.place)
            ),
        ).put_aside(choices=choices)

    def aux(self, tokens: TokenSet) -> dict[str, Array]:
        """`sizes`, and of each location `variance` and `pooled` `[b, locations]`."""
        if "choices" not in tokens.aside:
            return {}
        choices = tokens.aside["choices"]
        return super().aux(tokens) | {
            "variance": jnp.stack(choices.variances, axis=1),
            "pooled": jnp.stack(choices.pooled, axis=1),
        }


def value_scores(attention: AttentionView, prefix: int) -> Float[Array, "b p"]:
    """Class attention times the length of the value, in shares of the patches' sum."""
    values = attention.values.astype(jnp.float32)
    lengths = jnp.sqrt(jnp.square(values).sum(axis=(1, 3)))
    scores = (attention.class_row.sum(axis=1) * lengths)[:, prefix:]
    return scores / scores.sum(axis=1, keepdims=True)
