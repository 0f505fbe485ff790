"""TPS: what is pruned is squeezed into the most similar token that is kept.

Wei et al., "Joint Token Pruning and Squeezing Towards More Aggressive Compression of Vision
Transformers", CVPR 2023 (arXiv:2304.10716), written from the paper. Each pruned token goes to its
host, the kept one of the largest cosine, and a host becomes (Section 3.3, equation 6)
`(e x + sum_j w_j x_j) / (e + sum_j w_j)`, `w_j = exp(cos_j / temperature)`; class tokens are
neither. Two networks:

- `etps` (intra-block) prunes by class attention between attention and feed-forward of a location:
  the `ceil(keep_rate * patch tokens at that block)` most attentive stay, by falling attention, as
  in EViT. Without training or with EViT's.
- `dtps` (inter-block) prunes before a location by DynamicViT's predictors, with its counts, losses
  and masked attention (see dynamic_vit.py). In training all tokens stay: hosts are those kept now,
  and the tokens dropped at this location, not before, are squeezed into them.

The authors published a network of `dtps` alone; what `etps` equals is EViT's block with the
authors' squeezing in the place of the fused token.

Published recipe: DynamicViT's 30 epochs at a learning rate of 2.5e-4.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from evovit_jax.errors import UserError
from evovit_jax.reduction.at_locations import LocatedFields, RankedFields
from evovit_jax.reduction.base import NOTHING_ASKED, AttentionRequest, AttentionView
from evovit_jax.reduction.card import NEEDED, OPTIONAL, Card
from evovit_jax.reduction.dynamic_vit import KEEP, DynamicViT, decided, patch_log_probs
from evovit_jax.reduction.in_pyramid import WithinStages
from evovit_jax.reduction.matching import best_edges, merge_tail, moved, pooled, products
from evovit_jax.reduction.tokens import TokenSet, keep, order_by


@dataclasses.dataclass(frozen=True)
class TPSFields(LocatedFields):
    """Settings of TPS beside those of `LocatedFields`.

    Attributes:
      temperature: of the weights of squeezed tokens; the lower, the more the nearest count.
    """

    temperature: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.temperature <= 0:
            raise UserError(f"tps temperature must be above 0, got {self.temperature!r}")


@dataclasses.dataclass(frozen=True)
class ETPSFields(TPSFields, RankedFields):
    """Settings of eTPS: those of TPS, and by what tokens are ranked."""


class ETPS(WithinStages):
    """Squeezing of what EViT would drop."""

    card = Card(
        title="eTPS",
        paper="2304.10716",
        summary="as EViT, but squeezes the rest into the most similar that stay",
        training=OPTIONAL,
        score="class attention",
        in_pyramids="with a class token",
        equal_to=("youweiliang/evit", "megvii-research/TPS-CVPR2023"),
        notes="Apache-2.0",
    )
    Fields = ETPSFields
    needs_class_token = True

    def count(self, location: int, tokens: TokenSet) -> int:
        """Patch tokens kept."""
        return math.ceil(self.fields.rate(location) * tokens.patches)

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """Class attention where tokens leave."""
        return self.class_row() if self.reduces(block, tokens) else NOTHING_ASKED

    def reduce(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """Keeps the attentive tokens, and squeezes the others into them."""
        order = order_by(attention.patch_scores(tokens.prefix))
        count = self.count(self.location(block), tokens)
        return squeeze(keep(tokens, order, block), count, self.fields.temperature)


class DTPS(DynamicViT):
    """Squeezing of what DynamicViT would drop."""

    card = Card(
        title="dTPS",
        paper="2304.10716",
        summary="small networks decide what is squeezed into the most similar that stay",
        training=NEEDED,
        score="learned",
        equal_to=("megvii-research/TPS-CVPR2023",),
        notes="Apache-2.0",
    )
    Fields = TPSFields

    def before_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """Decides, and squeezes."""
        location = self.location(block)
        if tokens.train:
            before = decided(tokens)
            after = super().before_block(block, tokens)
            if location is None:
                return after
            return squeeze_masked(after, decided(after), before, self.fields.temperature)
        if not self.reduces(block, tokens):
            return tokens
        log_probs = patch_log_probs(self.score_predictor[location], tokens, decided(tokens))
        ordered = keep(tokens, order_by(log_probs[:, :, KEEP]), block)
        return squeeze(ordered, self.count(location, tokens), self.fields.temperature)


def directions(x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    """The tokens over their lengths, float32."""
    x = x.astype(jnp.float32)
    lengths = jnp.sqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-30))
    return x / (lengths + 1e-6)


def squeeze(tokens: TokenSet, count: int, temperature: float) -> TokenSet:
    """The patch tokens from number `count` on go into their hosts among those before."""
    prefix = tokens.prefix
    direction = directions(tokens.x[:, prefix:])
    edges = best_edges(products(direction[:, count:], direction[:, :count]))
    own = jnp.full((tokens.x.shape[0], prefix + count), math.e)
    weights = jnp.concatenate([own, jnp.exp(edges.score / temperature)], axis=1)
    merge = merge_tail(tokens.x, edges, prefix)
    x, _ = pooled(tokens.x, weights, merge)
    place = tokens.places_at(merge.kept)
    return tokens.replace(x=x, source=moved(tokens, merge), place=place)


def squeeze_masked(
    tokens: TokenSet,
    kept: Float[Array, "b p"],
    before: Float[Array, "b p"],
    temperature: float,
) -> TokenSet:
    """The patch tokens kept `before`, and not now, go into their hosts; all stay in the set."""
    prefix = tokens.prefix
    x = tokens.x[:, prefix:].astype(jnp.float32)
    direction = directions(x)
    cosine = products(direction, direction)
    host = (kept > 0.5)[:, None, :] & ~jnp.eye(x.shape[1], dtype=bool)[None]
    edges = best_edges(jnp.where(host, cosine, -100.0))
    weights = jnp.exp(edges.score / temperature) * (1 - kept) * before
    gain = group_members(edges.partner, x.shape[1]) * weights[:, None, :]
    total = jnp.einsum("bhs,bsd->bhd", gain, x, precision="highest") + math.e * x
    squeezed = total / (gain.sum(axis=2) + math.e)[..., None]
    patches = squeezed.astype(tokens.x.dtype)
    return tokens.replace(x=jnp.concatenate([tokens.x[:, :prefix], patches], axis=1))


def group_members(group: Int[Array, "b s"], count: int) -> Float[Array, "b {count} s"]:
    """1 where a token goes into a group."""
    numbers = jnp.arange(count, dtype=group.dtype)
    return (group[:, None, :] == numbers[None, :, None]).astype(jnp.float32)
