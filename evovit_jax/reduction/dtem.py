"""DTEM: ToMe by an embedding that is learned for merging, and not by the keys.

Lee and Hong, "Learning to Merge Tokens via Decoupled Embedding for Efficient Vision Transformers",
NeurIPS 2024 (arXiv:2412.10569). Inference equals the authors' code; how it is trained follows the
paper's description and was compared with no code. Beside queries, keys and values every block has
one more linear map of its normalised input, of the width of a head (twice that where tokens have
1024 channels or more). The r pairs of tokens whose embeddings are most similar merge, as ToMe
merges those of similar keys (see tome.py), which goes for the settings, too.

Training makes the choice differentiable (Section 3.2). Each token of A goes to the 3 most similar
tokens of B by a softmax of their cosines over `TEMPERATURE`; how much of it goes is its part in a
relaxed choice of r of A: r rounds of a softmax of the best cosines over the same temperature, each
with `log(1 - share)` of the last one added (Xie and Ermon, 2019). Sizes follow what moved; then
the r tokens of A that kept least of themselves leave. Which these are among equals is arbitrary,
so that training has nothing to be equal to; at temperature 0 it is inference. The embedding learns
from the loss of the network alone; the rest of the block does not feel it.

Published recipe: 30 epochs in which the embeddings alone learn, or all of the network.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.reduction.base import AttentionRequest, AttentionView, Backbone
from evovit_jax.reduction.card import NEEDED, Card
from evovit_jax.reduction.matching import (
    alternate,
    bipartite,
    merge_by_size,
    places,
    products,
    sizes_of,
)
from evovit_jax.reduction.tokens import (
    TokenSet,
    ascending,
    follow,
    gather,
    kept_moves,
    nearest_distances,
    order_by,
)
from evovit_jax.reduction.tome import ToMe, ToMeFields

TEMPERATURE = 0.1
NEAREST = 3  # partners that a token of A is shared among in training
WIDE = 1024  # from this width on, embeddings are two heads wide
LEAST = 1e-3  # of a token's size is left in training, so that its logarithm is finite


class DTEM(ToMe):
    """Merging by learned embeddings."""

    card = Card(
        title="DTEM",
        paper="2412.10569",
        summary="ToMe by an embedding learned for it",
        training=NEEDED,
        score="similar learned embeddings",
        fused_attention="until sizes count",
        equal_to=("movinghoon/DTEM",),
        notes="no licence",
    )
    not_in_pyramids = "its embeddings belong to the blocks of a flat network"

    def __init__(self, backbone: Backbone, fields: ToMeFields, *, rngs: nnx.Rngs):
        super().__init__(backbone, fields, rngs=rngs)
        dim, width = backbone.dim[0], backbone.key_dims[0] * (1 + (backbone.dim[0] >= WIDE))
        init = nnx.initializers.truncated_normal(stddev=0.02)
        self.metric_layer = nnx.List(
            nnx.Linear(dim, width, kernel_init=init, rngs=rngs) for _ in range(backbone.depth)
        )

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """The block's input where tokens merge; attention in proportion to sizes once they have."""
        request = super().attention_request(block, tokens)
        needs = frozenset({"inputs"} if request.needs else ())
        return AttentionRequest(needs=needs, bias=request.bias)

    def reduce(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """Merges the most similar tokens; softly in training."""
        inputs = jax.lax.stop_gradient(attention.inputs.astype(jnp.float32))
        metric, r = self.metric_layer[block](inputs), self.merged(block, tokens)
        if tokens.train:
            return merge_softly(tokens, metric, r)
        return merge_by_size(tokens, bipartite(metric, r, tokens.prefix))


def relaxed_choice(scores: Float[Array, "b a"], r: int) -> Float[Array, "b a"]:
    """The share of each in a choice of r of the largest scores; the sum over all is r."""

    def draw(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        logits, chosen = carry
        share = jax.nn.softmax(logits / TEMPERATURE, axis=-1)
        left = jnp.log1p(-jnp.minimum(share, 1 - 1e-6))
        return (logits + left, chosen + share), None

    (_, chosen), _ = jax.lax.scan(draw, (scores, jnp.zeros_like(scores)), length=r)
    return jnp.minimum(chosen, 1.0)


def merge_softly(tokens: TokenSet, metric: Float[Array, "b n c"], r: int) -> TokenSet:
    """Tokens of A give shares of themselves to B; the r that keep least leave."""
    even, odd = alternate(tokens.prefix)
    length = jnp.sqrt(jnp.maximum(jnp.square(metric).sum(axis=-1, keepdims=True), 1e-12))
    metric = metric / length
    similarity = products(metric[:, even], metric[:, odd])
    nearest = min(NEAREST, similarity.shape[-1])
    least = -nearest_distances(jax.lax.stop_gradient(-similarity), nearest)[..., -1:]
    among = jnp.where(similarity >= least, similarity / TEMPERATURE, -jnp.inf)
    chosen = relaxed_choice(similarity.max(axis=-1), r)
    given = chosen[..., None] * jax.nn.softmax(among, axis=-1)

    x, sizes = tokens.x.astype(jnp.float32), sizes_of(tokens)
    moved = given * sizes[:, even, None]
    gain = jnp.einsum("bao,bad->bod", moved, x[:, even], precision="highest")
    grown = sizes[:, odd] + moved.sum(axis=1)
    merged = (x[:, odd] * sizes[:, odd, None] + gain) / grown[..., None]
    shrunk = sizes[:, even] * jnp.maximum(1 - given.sum(axis=2), LEAST)

    rest = ascending(order_by(shrunk)[:, : shrunk.shape[1] - r])
    prefix = slice(0, tokens.prefix)
    kept = jnp.concatenate([gather(places(x, even), rest), places(x, odd)], axis=1)
    kept = jnp.concatenate([places(x, prefix), kept], axis=1)
    values = [x[:, prefix], gather(x[:, even], rest), merged]
    sizes = [sizes[:, prefix], gather(shrunk, rest), grown]
    # The best partner holds what leaves.
    first = kept.shape[1] - merged.shape[1]
    moves = kept_moves(kept, x.shape[1], elsewhere=-1)
    best = first + similarity.argmax(axis=-1).astype(jnp.int32)
    moves = moves.at[:, even].set(jnp.where(moves[:, even] < 0, best, moves[:, even]))
    return tokens.replace(
        x=jnp.concatenate(values, axis=1).astype(tokens.x.dtype),
        sizes=jnp.concatenate(sizes, axis=1),
        source=follow(tokens.source, moves),
        place=tokens.places_at(kept),
    )
