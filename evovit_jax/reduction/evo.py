"""Evo-ViT: slow updates for informative tokens, one fast update for all others.

Xu et al., "Evo-ViT: Slow-Fast Token Evolution for Dynamic Vision Transformer", AAAI 2022
(arXiv:2108.01390). Every token is kept. In a selecting block the class tokens, the patch tokens
with the largest global class attention and one representative token take the slow path (attention
and MLP). The other patch tokens, the placeholders, are summarised by the representative token,
their mean weighted by global class attention; what it gained on the slow path is added to each of
them (Section 3.3). Global class attention is the running mean of the class token's attention,
`score = (1 - alpha) * score + alpha * attention` (Section 3.2).

Tokens keep raster order, so the source map is the identity between two slow paths.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.errors import UserError
from evovit_jax.reduction import base
from evovit_jax.reduction.base import (
    AttentionRequest,
    AttentionView,
    Backbone,
    BlockTokens,
    Reducer,
    check_blocks,
    check_rate,
)
from evovit_jax.reduction.tokens import (
    TokenSet,
    dropped_at,
    follow,
    gather,
    kept_moves,
    membership,
    scatter_set,
    top_k,
    with_prefix,
)

CLASS_ROW = AttentionRequest(needs=frozenset({"class_row"}))


@dataclasses.dataclass(frozen=True)
class EvoFields(base.Fields):
    """Settings of Evo-ViT in a flat network.

    Attributes:
      keep_rate: share of the patch tokens on the slow path, in (0, 1]; one number, or one a stage.
        The count is rounded down, as the official code does, and is at least one.
      first_block: the first block that selects; by default a third of the depth.
      stages: the first block of each stage, by default two stages of equal length from
        `first_block` on (4 and 8 in a network of 12 blocks).
      selection: "stage" selects once a stage, "layer" in every block (the first part of training).
      alpha: weight of a block's class attention in the running mean, in (0, 1].
      average_from: the block at which averaging starts, in those before it the score is that
        block's class attention; by default `first_block`, as the official DeiT code does.
      representative_token: the paper's fast update; False leaves placeholders as they are, as the
        official DeiT code does, and its checkpoints want.
      keep_multiple: more patch tokens are kept until all tokens of the slow path, class and
        representative tokens included, are a multiple of it, which some hardware likes; 1 for none.
    """

    keep_rate: float | tuple[float, ...] = 0.5
    first_block: int | None = None
    stages: tuple[int, ...] | None = None
    selection: str = "stage"
    alpha: float = 0.5
    average_from: int | None = None
    representative_token: bool = True
    keep_multiple: int = 1

    def __post_init__(self):
        check_rate("evo keep_rate", self.keep_rate)
        check_rate("evo alpha", self.alpha)
        if not isinstance(self.keep_multiple, int) or self.keep_multiple < 1:
            raise UserError(f"evo keep_multiple must be at least 1, got {self.keep_multiple!r}")
        if self.selection not in ("stage", "layer"):
            raise UserError(f"evo selection must be stage or layer, got {self.selection!r}")
        if self.stages and self.first_block not in (None, self.stages[0]):
            raise UserError("evo: first_block must be the first of stages; give one of the two")

    def stage_starts(self, depth: int) -> tuple[int, ...]:
        """The first block of each stage, in a network of `depth` blocks.

        Raises:
          UserError: if the stages do not fit the network, or the keep rates the stages.
        """
        if self.stages is not None:
            starts = self.stages
        else:
            first = depth // 3 if self.first_block is None else self.first_block
            middle = (first + depth) // 2
            starts = (first, middle) if first < middle else (first,)
        check_blocks("evo stages", starts, depth)
        if isinstance(self.keep_rate, tuple) and len(self.keep_rate) != len(starts):
            raise UserError(
                f"evo keep_rate has {len(self.keep_rate)} members for {len(starts)} stages"
            )
        return starts


class Evo(Reducer):
    """Slow-fast token evolution in a flat network."""

    Fields = EvoFields

    def __init__(self, backbone: Backbone, fields: EvoFields, *, rngs: nnx.Rngs):
        super().__init__(backbone, fields, rngs=rngs)
        fields.stage_starts(backbone.depth)  # refuse settings that do not fit the network

    def _stage(self, block: int) -> int:
        """The number of the stage of `block`, -1 before the first."""
        return sum(start <= block for start in self.fields.stage_starts(self.backbone.depth)) - 1

    def _is_border(self, block: int) -> bool:
        """Whether the slow path is entered before `block` (and left before the next border)."""
        if self.fields.selection == "layer":
            return self._stage(block) >= 0
        return block in self.fields.stage_starts(self.backbone.depth)

    def _count(self, block: int, patches: int) -> int:
        rate = self.fields.keep_rate
        rate = rate[self._stage(block)] if isinstance(rate, tuple) else rate
        count = max(1, int(patches * rate))
        others = self.backbone.prefix + self.fields.representative_token
        multiple = self.fields.keep_multiple
        return min(patches, -(-(count + others) // multiple) * multiple - others)

    def before_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """Enters the slow path where `block` selects."""
        if not self._is_border(block):
            return tokens
        count = self._count(block, tokens.patches)
        if count == tokens.patches:
            return tokens  # no placeholder is left, hence no representative token either
        if tokens.scores is None:
            # Nothing has been scored before block 0: all tokens are equal.
            tokens = tokens.replace(scores=jnp.ones((len(tokens.x), tokens.patches)))
        return enter_slow_path(
            tokens, count, block=block, fast_update=self.fields.representative_token
        )

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """Class attention, in every block that a later selection depends on."""
        del tokens
        starts = self.fields.stage_starts(self.backbone.depth)
        last = self.backbone.depth - 1 if self.fields.selection == "layer" else starts[-1]
        return CLASS_ROW if block < last else base.NOTHING_ASKED

    def after_attention(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """Moves the scores of the tokens on the slow path towards their class attention."""
        if attention.class_row is None:
            return tokens
        scored = attention.class_row[:, :, tokens.prefix :]
        if "full" in tokens.aside:
            scored = scored[:, :, : tokens.scores.shape[1]]  # not the representative token
        new = scored.mean(axis=1)
        starts = self.fields.stage_starts(self.backbone.depth)
        average_from = self.fields.average_from
        average_from = starts[0] if average_from is None else average_from
        if block >= average_from and tokens.scores is not None:
            new = (1 - self.fields.alpha) * tokens.scores + self.fields.alpha * new
        return tokens.replace(scores=new)

    def after_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """Leaves the slow path at the end of a stage."""
        last = block == self.backbone.depth - 1
        if "full" in tokens.aside and (last or self._is_border(block + 1)):
            return leave_slow_path(tokens)
        return tokens

    def macs(self, block: int, counts: BlockTokens) -> int:
        """The representative token, where the slow path is entered."""
        return representative_macs(self, block, counts)


def representative_token(
    x: Float[Array, "b p d"], scores: Float[Array, "b p"], is_placeholder: Array
) -> Float[Array, "b 1 d"]:
    """The mean of the placeholders, weighted by their scores (Section 3.3).

    Where softmax has rounded all of these to zero, they weigh the same.
    """
    weights = jnp.where(is_placeholder, scores, 0.0)
    alike = is_placeholder.astype(scores.dtype)
    weights = shares(jnp.where(weights.any(axis=1, keepdims=True), weights, alike))
    return jnp.einsum("bp,bpd->bd", weights.astype(x.dtype), x)[:, None]


def shares(x: Float[Array, "b p"]) -> Float[Array, "b p"]:
    """Each row, not negative, over its sum; zeros where that is zero.

    The largest is made 1 first: the derivative squares the sum, which may be as small as softmax
    gets.
    """
    largest = jax.lax.stop_gradient(x.max(axis=1, keepdims=True))
    x = x / jnp.where(largest > 0, largest, 1.0)
    total = x.sum(axis=1, keepdims=True)
    return x / jnp.where(total > 0, total, 1.0)


def representative_macs(reducer: Reducer, block: int, counts: BlockTokens) -> int:
    """Multiply-adds of the representative token at `block`: the weighted sum over all patches."""
    if not reducer.fields.representative_token or counts.attention == counts.entering:
        return 0
    backbone = reducer.backbone
    return (counts.entering - backbone.prefix) * backbone.dim[backbone.stage(block)]


def enter_slow_path(tokens: TokenSet, count: int, *, block: int, fast_update: bool) -> TokenSet:
    """The class tokens, the `count` patch tokens of the largest scores, the representative token.

    The full set waits aside. `scores` become those of the selected tokens. The source map sends
    the placeholders to the representative token; without one they are out of the set at `block`.
    """
    n, prefix = tokens.x.shape[1], tokens.prefix
    slow_scores, index = top_k(tokens.scores, count)
    whole = with_prefix(index, prefix)
    slow = gather(tokens.x, whole)
    elsewhere = dropped_at(block)
    aside = {"x": tokens.x, "scores": tokens.scores, "index": whole, "source": tokens.source}
    if fast_update:
        others = ~membership(index, tokens.patches)
        entered = representative_token(tokens.x[:, prefix:], tokens.scores, others)
        slow = jnp.concatenate([slow, entered], axis=1)
        aside["entered"] = entered
        elsewhere = prefix + count
    moves = kept_moves(whole, n, elsewhere=elsewhere)
    return tokens.replace(
        x=slow, scores=slow_scores, source=follow(tokens.source, moves)
    ).put_aside(full=aside)


def leave_slow_path(tokens: TokenSet) -> TokenSet:
    """The full set again, in its order: slow updates written back, the fast update for the rest."""
    aside = dict(tokens.aside)
    full = aside.pop("full")
    index, prefix = full["index"], tokens.prefix
    x = full["x"]
    if "entered" in full:
        # Placeholders gain what the representative token gained; selected rows are overwritten.
        x = x + (tokens.x[:, -1:] - full["entered"])
    x = scatter_set(x, index, tokens.x[:, : index.shape[1]])
    scores = scatter_set(full["scores"], index[:, prefix:] - prefix, tokens.scores)
    return tokens.replace(x=x, scores=scores, source=full["source"], aside=aside)
