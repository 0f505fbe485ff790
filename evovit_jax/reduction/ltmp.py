"""LTMP: each block learns above which similarity tokens merge, and below which attention they go.

Bonnaerens and Dambre, "Learned Thresholds Token Merging and Pruning for Vision Transformers", TMLR
2023 (arXiv:2307.10780). Between attention and feed-forward of every block, in this order:

- Merging: each token in an even place whose keys, the mean over heads, have a cosine above the
  block's threshold to those of the most similar token in an odd place goes into that one, a mean
  weighted by sizes. Attention is in proportion to sizes, as in ToMe. Then the tokens in even places
  stand before those in odd places, which decides about the pairs of the next block.
- Pruning: a token leaves that receives no more attention than the block's other threshold, the mean
  over heads and queries; for a token that others went into, the largest of theirs.

How many tokens go depends on the image, so here they are masked, in their places, and nothing gets
faster: nothing attends to them, and they go into nothing. This equals the authors' masked network
(Mxbonn/ltmp at 1a9c055) in training and in evaluation. Their other one, which removes the tokens of
one image, is another function of the same weights: its pairs are made of what is left, and its
means are not taken over queries that are masked.

Training: a mask is 1 or 0, with the gradient of `sigmoid((score - threshold) / tau)`; attention
looks at masks as DynamicViT's does, eps 1e-5. The loss `budget` is `(share - target)**2`. The share
is that of the network's multiply-adds which would be left if masked tokens were not there, by the
shares m of tokens that count, means over a batch:

    mean over blocks i of (2 m_i n d^2 + m_i^2 n^2 d + 4 m_(i+1) n d^2) / (6 n d^2 + n^2 d)

The authors clip thresholds to [0, 1] after every step. Here they are clipped where they are used,
and the gradient passes. Under "prune_merge" the authors' pruning has a tau of 0.5 whatever is asked
for, here it has `tau`. They train nothing else, for one epoch, weight of `budget` 10.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from evovit_jax.errors import UserError
from evovit_jax.reduction import base
from evovit_jax.reduction.attention_request import key_mask, softmax_among
from evovit_jax.reduction.base import AttentionRequest, AttentionView, Backbone, Reducer
from evovit_jax.reduction.card import NEEDED, Card
from evovit_jax.reduction.matching import alternate, best_edges, products, sizes_of
from evovit_jax.reduction.merging import log_sizes, mean_keys
from evovit_jax.reduction.tokens import TokenSet, follow, group_sum, mask_out

EPS = 1e-5
# The steps of each order, and the threshold at which merging begins to learn.
ORDERS = {
    "merge_prune": (("merge", "prune"), 0.9),
    "prune_merge": (("prune", "merge"), 1.0),
    "merge": (("merge",), 1.0),
    "prune": (("prune",), 1.0),
}


@dataclasses.dataclass(frozen=True)
class LTMPFields(base.Fields):
    """Settings of LTMP.

    Attributes:
      order: what a block does, and what first: "merge_prune", "prune_merge", "merge" or "prune".
      tau: temperature of the sigmoid whose gradient the thresholds learn by.
      target: share of the dense network's multiply-adds that the loss `budget` asks for.
      merge_threshold: where the thresholds of merging begin; by default at 0.9 for "merge_prune"
        and at 1, which merges nothing, for the other orders.
      prune_threshold: where those of pruning begin.
    """

    order: str = "merge_prune"
    tau: float = 0.1
    target: float = 0.75
    merge_threshold: float | None = None
    prune_threshold: float = 0.0

    def __post_init__(self):
        base.check_choice("ltmp order", self.order, tuple(ORDERS))
        base.check_rate("ltmp target", self.target)
        if self.tau <= 0:
            raise UserError(f"ltmp tau must be above 0, got {self.tau!r}")
        for name in ("merge_threshold", "prune_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"ltmp {name} must be in [0, 1], got {value!r}")

    @property
    def steps(self) -> tuple[str, ...]:
        """What a block does, in its order."""
        return ORDERS[self.order][0]


class Masker(nnx.Module):
    """A threshold that learns, float32."""

    def __init__(self, threshold: float):
        self.threshold = nnx.Param(jnp.full((1,), threshold))

    def __call__(self, scores: Float[Array, "b n"], tau: float) -> Float[Array, "b n"]:
        """1 where a score is above the threshold, else 0, with the gradient of a sigmoid."""
        threshold = self.threshold[...]
        clipped = threshold + jax.lax.stop_gradient(jnp.clip(threshold, 0.0, 1.0) - threshold)
        soft = jax.nn.sigmoid((scores - clipped[None]) / tau)
        hard = (soft > 0.5).astype(jnp.float32)
        return hard + (soft - jax.lax.stop_gradient(soft))


class LTMP(Reducer):
    """Merging and pruning by learned thresholds, masked."""

    card = Card(
        title="LTMP",
        paper="2307.10780",
        summary="merges and prunes by thresholds that each block learns; masked, so nothing gets "
        "faster",
        training=NEEDED,
        score="similar keys, attention received",
        fused_attention="no",
        equal_to=("Mxbonn/ltmp",),
        notes="no licence",
    )
    Fields = LTMPFields
    loss_names = ("budget",)
    fixed_fields = ("order", "merge_threshold", "prune_threshold")
    trained_settings = ("order",)
    torch_names = ((r"(merge|prune)_masker\.(\d+)\.(.*)", r"blocks.\2.\1_masker.\3"),)

    def __init__(self, backbone: Backbone, fields: LTMPFields, *, rngs: nnx.Rngs):
        super().__init__(backbone, fields, rngs=rngs)
        merging, pruning = fields.merge_threshold, fields.prune_threshold
        if "merge" in fields.steps:
            first = ORDERS[fields.order][1] if merging is None else merging
            self.merge_masker = nnx.List(Masker(first) for _ in range(backbone.depth))
        if "prune" in fields.steps:
            self.prune_masker = nnx.List(Masker(pruning) for _ in range(backbone.depth))

    def start(self, tokens: TokenSet) -> TokenSet:
        """All tokens count."""
        return tokens.put_aside(counts=jnp.ones(tokens.x.shape[:2]), shares=())

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """What the steps look at; attention in proportion to sizes, to the tokens that count."""
        looks_at = {"merge": "keys", "prune": "weights"}
        needs = frozenset(looks_at[step] for step in self.fields.steps)
        bias = log_sizes(tokens)
        if tokens.train:
            allowed = tokens.aside["counts"][:, None, None]
            normalise = functools.partial(softmax_among, allowed=allowed, eps=EPS)
            return AttentionRequest(needs=needs, bias=bias, normalise=normalise)
        if block:
            bias = key_mask(tokens.aside["counts"] > 0) + (0.0 if bias is None else bias)
        return AttentionRequest(needs=needs, bias=bias)

    def after_attention(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """Merges and prunes."""
        steps = self.fields.steps
        received = attention.weights.mean(axis=(1, 2)) if "prune" in steps else None
        for step in steps:
            if step == "prune":
                tokens = self.prune(block, tokens, received)
            else:
                tokens, received = self.merge(block, tokens, attention, received)
        share = tokens.aside["counts"].mean(axis=1)
        return tokens.put_aside(shares=(*tokens.aside["shares"], share))

    def prune(self, block: int, tokens: TokenSet, received: Float[Array, "b n"]) -> TokenSet:
        """Tokens that receive little attention count no more; class tokens always do."""
        above = self.prune_masker[block](received, self.fields.tau)
        above = jnp.where(jnp.arange(above.shape[1])[None] < tokens.prefix, 1.0, above)
        counts = tokens.aside["counts"]
        counts = jnp.where(counts > 0, above, counts)
        return mask_out(tokens, counts > 0, block).put_aside(counts=counts)

    def merge(
        self,
        block: int,
        tokens: TokenSet,
        attention: AttentionView,
        received: Float[Array, "b n"] | None,
    ) -> tuple[TokenSet, Float[Array, "b n"] | None]:
        """The set after merging, even places before odd ones, and the attention received of it."""
        even, odd = alternate(tokens.prefix)
        if tokens.x[:, even].shape[1] == 0 or tokens.x[:, odd].shape[1] == 0:
            return tokens, received
        counts, sizes = tokens.aside["counts"], sizes_of(tokens)
        keys = unit(mean_keys(attention))
        keys = keys * jax.lax.stop_gradient(counts)[..., None]
        edges = best_edges(products(keys[:, even], keys[:, odd]))
        above = self.merge_masker[block](edges.score, self.fields.tau)
        goes = jax.lax.stop_gradient(above)

        x, number = tokens.x.astype(jnp.float32), sizes[:, odd].shape[1]
        moved = group_sum(x[:, even] * (sizes[:, even] * goes)[..., None], edges.partner, number)
        gained = group_sum((sizes[:, even] * goes)[..., None], edges.partner, number)
        grown = sizes[:, odd, None] + gained
        into = (x[:, odd] * sizes[:, odd, None] + moved) / grown
        if received is not None:
            group = edges.partner[:, None] == jnp.arange(number, dtype=jnp.int32)[None, :, None]
            largest = jnp.where(group, (received[:, even] * goes)[:, None], 0.0).max(axis=-1)
            received = evens_first(received, jnp.maximum(received[:, odd], largest), tokens.prefix)
        left = jnp.where(counts[:, even] > 0, 1 - above, counts[:, even])
        counts = jnp.concatenate([counts[:, : tokens.prefix], left, counts[:, odd]], axis=1)
        tokens = tokens.replace(
            x=evens_first(tokens.x, into.astype(tokens.x.dtype), tokens.prefix),
            sizes=evens_first(sizes, grown[..., 0], tokens.prefix),
            source=self.followed(tokens, goes, edges.partner),
            place=None if tokens.place is None else evens_first(tokens.place, None, tokens.prefix),
            mask=counts > 0,
        )
        return tokens.put_aside(counts=counts), received

    def followed(
        self, tokens: TokenSet, goes: Float[Array, "b a"], partner: Int[Array, "b a"]
    ) -> Int[Array, "b N"]:
        """The source map after the even places were put first, and what `goes` went into them."""
        places, prefix = np.arange(tokens.x.shape[1], dtype=np.int32), tokens.prefix
        even, odd = (places[which] for which in alternate(prefix))
        turned = np.argsort(np.concatenate([places[:prefix], even, odd])).astype(np.int32)
        turned, places = (jnp.broadcast_to(each, tokens.x.shape[:2]) for each in (turned, places))
        first = prefix + len(even)
        moves = jnp.where(goes > 0, first + partner, places[:, prefix:first])
        moves = jnp.concatenate([places[:, :prefix], moves, places[:, first:]], axis=1)
        return follow(follow(tokens.source, turned), moves)

    def losses(self, tokens: TokenSet) -> dict[str, Float[Array, ""]]:
        """`budget`: how far the share of multiply-adds is from what is wanted."""
        shares = [share.mean() for share in tokens.aside["shares"]]
        left = multiply_adds(shares, tokens.x.shape[1], self.backbone.dim[0])
        return {"budget": jnp.square(left - self.fields.target)}

    def aux(self, tokens: TokenSet) -> dict[str, Array]:
        """`mask`, which tokens count in the end, their `sizes`, and each image's `flops_share`."""
        shares, (_, n, dim) = tokens.aside["shares"], tokens.x.shape
        made = {"mask": tokens.aside["counts"] > 0, "flops_share": multiply_adds(shares, n, dim)}
        return made | super().aux(tokens)


def unit(x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
    """Vectors of length 1, with their gradient."""
    squares = jnp.square(x).sum(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))


def evens_first(x: Array, odds: Array | None, prefix: int) -> Array:
    """`x` `[b, n, ...]` with the tokens in even places before those in odd places.

    The first `prefix` stay; `odds` are to stand in the place of those in odd places, None for them.
    """
    even, odd = alternate(prefix)
    return jnp.concatenate([x[:, :prefix], x[:, even], x[:, odd] if odds is None else odds], axis=1)


def multiply_adds(shares: list[Array] | tuple[Array, ...], n: int, dim: int) -> Array:
    """The share of multiply-adds of n tokens that is left, by the shares left after each block."""
    left = 0.0
    for before, after in zip((1.0, *shares[:-1]), shares, strict=True):
        left += 2 * before * n * dim**2 + (before * n) ** 2 * dim + 4 * after * n * dim**2
    return left / (6 * n * dim**2 + n**2 * dim) / len(shares)
