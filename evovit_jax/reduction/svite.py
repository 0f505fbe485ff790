"""SViTE's selection of data: a linear score of the embedded tokens, of which the k best go on.

Chen et al., "Chasing Sparsity in Vision Transformers: An End-to-End Exploration", NeurIPS 2021
(arXiv:2106.04533), Section 3.3, written from the paper; the rest of it is sparsity of weights. A
linear map scores all tokens after the embedding, class token included; the k of the largest
log-softmax stay, and class tokens stay anyway, so that k or k + 1 do. In inference the others leave
before the first block.

`masked=true` is what the official code does, in training and out of it: tokens are multiplied by
0 or 1, nothing leaves, and every block does so again, by a score of its own, with the normalised
tokens of which it makes queries, keys and values. Training is always so: Gumbel noise is added to
the scores, and the gradient is that of their softmax. (The official code has the noise in
evaluation, too, which makes it random; here there is none without a key.)

Published: SViTE+ on DeiT-S 0.28 points over dense at 49 % of the FLOPs, 4 % of the time saved.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.errors import UserError
from evovit_jax.reduction import base
from evovit_jax.reduction.base import AttentionRequest, Backbone, Reducer
from evovit_jax.reduction.card import NEEDED, Card
from evovit_jax.reduction.knob import Knob, keep_rates
from evovit_jax.reduction.tokens import (
    TokenSet,
    ascending,
    keep,
    mask_out,
    membership,
    top_k,
)


@dataclasses.dataclass(frozen=True)
class SViTEFields(base.Fields):
    """Settings of SViTE's data selection.

    Attributes:
      keep_rate: share of all tokens that goes on, rounded down.
      kept: instead: their number, the class token counted.
      masked: whether inference masks, as the official code does, and keeps all places.
    """

    keep_rate: float = 0.9
    kept: int | None = None
    masked: bool = False

    def __post_init__(self):
        base.check_rate("svite keep_rate", self.keep_rate)
        if self.kept is not None and self.kept < 1:
            raise UserError(f"svite kept must be 1 or more, got {self.kept!r}")

    def count(self, n: int) -> int:
        """How many of n tokens go on."""
        return max(1, min(self.kept or int(n * self.keep_rate), n))


class SViTE(Reducer):
    """Selection of tokens by linear scores."""

    card = Card(
        title="SViTE",
        paper="2106.04533",
        summary="keeps the best of the embedded tokens, before the first block",
        training=NEEDED,
        score="learned",
        equal_to=("VITA-Group/SViTE",),
    )
    knob = Knob("keep_rate", keep_rates)
    Fields = SViTEFields
    torch_names = (
        (r"embed_score\.(.*)", r"gumbel.\1"),
        (r"block_scores\.(\d+)\.(.*)", r"blocks.\1.attn.gumbel.\2"),
    )

    def __init__(self, backbone: Backbone, fields: SViTEFields, *, rngs: nnx.Rngs):
        super().__init__(backbone, fields, rngs=rngs)

        def score() -> nnx.Linear:
            init = nnx.initializers.truncated_normal(stddev=0.02)
            return nnx.Linear(backbone.dim[0], 1, kernel_init=init, rngs=rngs)

        self.embed_score = score()
        self.block_scores = nnx.List(score() for _ in range(backbone.depth))

    def start(self, tokens: TokenSet) -> TokenSet:
        """Selects; the others leave, or are masked."""
        if tokens.train or self.fields.masked:
            mask = self.mask(self.embed_score, tokens.x, tokens, 0)
            tokens = mask_out(tokens, mask > 0.5, 0)
            x = tokens.x * mask[..., None].astype(tokens.x.dtype)
            return tokens.replace(x=x, mask=None).put_aside(selected=mask)
        scores = self.embed_score(tokens.x.astype(jnp.float32))[..., 0]
        prefix, count = tokens.prefix, self.fields.count(tokens.x.shape[1])
        # The best k of all tokens; with a class token among them one patch less than k.
        _, index = top_k(scores[:, prefix:], max(1, min(count - prefix, tokens.patches)))
        return keep(tokens, ascending(index), 0)

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """The block's own mask on its input, where tokens are masked."""
        if "selected" not in tokens.aside:
            return AttentionRequest()

        def masked(x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
            mask = self.mask(self.block_scores[block], x, tokens, 1 + block)
            return x * mask[..., None].astype(x.dtype)

        return AttentionRequest(edit=masked)

    def mask(
        self, score: nnx.Linear, x: Float[Array, "b n d"], tokens: TokenSet, number: int
    ) -> Float[Array, "b n"]:
        """1 for the k best and the class tokens, 0 for the others; draw number `number`."""
        scores = jax.nn.log_softmax(score(x.astype(jnp.float32))[..., 0], axis=-1)
        if tokens.train and tokens.key is not None:
            # Blocks take the numbers up to twice the depth for stochastic depth.
            key = jax.random.fold_in(tokens.key, 2 * self.backbone.depth + number)
            scores = scores + jax.random.gumbel(key, scores.shape)
        n = scores.shape[1]
        _, index = top_k(jax.lax.stop_gradient(scores), self.fields.count(n))
        forced = membership(index, n) | (jnp.arange(n) < tokens.prefix)[None]
        soft = jax.nn.softmax(scores, axis=-1) if tokens.train else jnp.zeros_like(scores)
        return forced.astype(jnp.float32) + (soft - jax.lax.stop_gradient(soft))

    def aux(self, tokens: TokenSet) -> dict[str, Array]:
        """`mask`, float32 `[b, n]`, where tokens are masked."""
        return {"mask": tokens.aside["selected"]} if "selected" in tokens.aside else {}
