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
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from evovit_jax.errors import UserError
from evovit_jax.reduction import base
from evovit_jax.reduction.base import (
    NOTHING_ASKED,
    AttentionRequest,
    AttentionView,
    Backbone,
    Reducer,
    check_blocks,
    check_rate,
    check_score,
)
from evovit_jax.reduction.card import OPTIONAL, Card
from evovit_jax.reduction.knob import Knob, keep_rates
from evovit_jax.reduction.schedule import KEEP_RATE, Changes, Timeline
from evovit_jax.reduction.tokens import (
    TokenSet,
    among_top,
    dropped_at,
    follow,
    gather,
    gather_and_sum,
    kept_moves,
    scatter_set,
    top_k,
    with_prefix,
)


@dataclasses.dataclass(frozen=True)
class SlowFastFields(base.Fields):
    """Settings of Evo-ViT in every network.

    Attributes:
      keep_rate: share of the patch tokens on the slow path, in (0, 1]; one number, or one a stage.
        The count is rounded down, as the official code does, and is at least one.
      selection: "stage" selects once a stage, "layer" in every block (the first part of training).
      alpha: weight of new class attention in the running mean, in (0, 1].
      representative_token: the paper's fast update; False leaves placeholders as they are, as the
        official DeiT code does, and its checkpoints want.
      keep_multiple: more patch tokens are kept until all tokens of the slow path, class and
        representative tokens included, are a multiple of it, which some hardware likes; 1 for none.
    """

    keep_rate: float | tuple[float, ...] = 0.5
    selection: str = "stage"
    alpha: float = 0.5
    representative_token: bool = True
    keep_multiple: int = 1

    def __post_init__(self):
        check_rate("evo keep_rate", self.keep_rate)
        check_rate("evo alpha", self.alpha)
        self.check_choice("selection", ("stage", "layer"))
        if not isinstance(self.keep_multiple, int) or self.keep_multiple < 1:
            raise UserError(f"evo keep_multiple must be at least 1, got {self.keep_multiple!r}")

    def check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        """Refuses a field `name` that is none of `choices`."""
        value = getattr(self, name)
        if value not in choices:
            raise UserError(f"evo {name} must be {' or '.join(choices)}, got {value!r}")

    def check_rates(self, stages: int) -> None:
        """Refuses keep rates of another number than there are stages."""
        if isinstance(self.keep_rate, tuple) and len(self.keep_rate) != stages:
            raise UserError(f"evo keep_rate has {len(self.keep_rate)} members for {stages} stages")

    def selecting(self, backbone: Backbone) -> dict[int, int]:
        """The first block that selects in each stage, and that stage's number."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class EvoFields(SlowFastFields):
    """Settings of Evo-ViT in a flat network, beside those of `SlowFastFields`.

    Attributes:
      first_block: the first block that selects; by default a third of the depth.
      stages: the first block of each stage, by default two stages of equal length from
        `first_block` on (4 and 8 in a network of 12 blocks).
      average_from: the block at which averaging starts, in those before it the score is that
        block's class attention; by default `first_block`, as the official DeiT code does.
      score: what stands for class attention (`AttentionRequest.score`); by default the network's
        first.
    """

    first_block: int | None = None
    stages: tuple[int, ...] | None = None
    average_from: int | None = None
    score: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.stages and self.first_block not in (None, self.stages[0]):
            raise UserError("evo: first_block must be the first of stages; give one of the two")

    def check(self, backbone: Backbone) -> None:
        """Refuses stages that do not fit the network, and keep rates that do not fit these."""
        check_score(self.score, backbone)
        starts = self.stage_starts(backbone.depth)
        check_blocks("evo stages", starts, backbone.depth)
        self.check_rates(len(starts))

    def stage_starts(self, depth: int) -> tuple[int, ...]:
        """The first block of each stage, in a network of `depth` blocks."""
        if self.stages is not None:
            return self.stages
        first = depth // 3 if self.first_block is None else self.first_block
        middle = (first + depth) // 2
        return (first, middle) if first < middle else (first,)

    def selecting(self, backbone: Backbone) -> dict[int, int]:
        """The first block of each stage."""
        return {start: i for i, start in enumerate(self.stage_starts(backbone.depth))}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Waiting:
    """The full set, while some of its tokens are on the slow path.

    Attributes:
      x: `[b, n, d]`, all tokens as they were.
      scores: float32 `[b, p]` of all patch tokens.
      index: int32 `[b, k]`, which tokens of `x` are on the slow path, in its order.
      source: the source map of the full set.
      place: the full set's, where places are kept track of.
      entered: `[b, 1, d]`, the representative token as it entered; None without one.
    """

    x: Float[Array, "b n d"]
    scores: Float[Array, "b p"]
    index: Int[Array, "b k"]
    source: Int[Array, "b N"]
    place: Int[Array, "b n"] | None
    entered: Float[Array, "b 1 d"] | None


def waiting(tokens: TokenSet) -> Waiting | None:
    """The full set where `tokens` are on the slow path, else None."""
    return tokens.aside.get("waiting")


class SlowFast(Reducer):
    """Slow-fast token evolution; the fields say where it selects, subclasses how it averages."""

    knob = Knob("keep_rate", keep_rates)
    Fields = SlowFastFields
    trained_settings = ("representative_token",)
    durations = (*KEEP_RATE, "layer_to_stage")

    @classmethod
    def schedule(cls, fields: SlowFastFields, timeline: Timeline) -> Changes:
        """Selects in every block at first: for two thirds by default (Section 3.4)."""
        changes = super().schedule(fields, timeline)
        if fields.selection == "stage":
            switch = timeline.durations.get("layer_to_stage", math.ceil(timeline.total * 2 / 3))
            first, then = cls.before_and_after_switch(fields)
            for step, settings in ((0, first), (switch, then)):
                changes[step] = changes.get(step, {}) | settings
        return changes

    @classmethod
    def before_and_after_switch(
        cls, fields: SlowFastFields
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The settings of the first part of a training, and those from the switch on."""
        del fields
        return {"selection": "layer"}, {"selection": "stage"}

    def weight(self, block: int) -> Float[Array, ""] | float:
        """The weight of the class attention of `block` in the running mean."""
        raise NotImplementedError

    def selects(self, block: int) -> bool:
        """Whether the slow path is entered before `block` (and left before the next such block)."""
        first_blocks = self.fields.selecting(self.backbone)
        if self.fields.selection == "layer":
            return block < self.backbone.depth and block >= min(first_blocks, default=block + 1)
        return block in first_blocks

    def selects_after(self, block: int) -> bool:
        """Whether any block after `block` selects."""
        return any(map(self.selects, range(block + 1, self.backbone.depth)))

    def is_replaced_after(self, block: int) -> bool:
        """Whether the scores of the next block replace those of `block` before any are used."""
        weight = self.weight(block + 1)
        return isinstance(weight, float) and weight == 1.0 and not self.selects(block + 1)

    def count(self, block: int, patches: int) -> int:
        """How many of `patches` patch tokens `block`, which selects, keeps on the slow path."""
        fields, rate = self.fields, self.fields.keep_rate
        if isinstance(rate, tuple):
            stages = fields.selecting(self.backbone)
            rate = rate[stages[max(first for first in stages if first <= block)]]
        count = max(1, int(patches * rate))
        others, multiple = self.backbone.prefix + fields.representative_token, fields.keep_multiple
        return min(patches, -(-(count + others) // multiple) * multiple - others)

    def before_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """Enters the slow path where `block` selects."""
        if not self.selects(block):
            return tokens
        count = self.count(block, tokens.patches)
        if count == tokens.patches:
            return tokens  # no placeholder is left, hence no representative token either
        if tokens.scores is None:
            # Nothing has been scored before block 0: all tokens are equal.
            tokens = tokens.replace(scores=jnp.ones((tokens.x.shape[0], tokens.patches)))
        return enter_slow_path(
            tokens, count, block=block, fast_update=self.fields.representative_token
        )

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """Class attention, in every block that a later selection depends on."""
        del tokens
        if not self.selects_after(block) or self.is_replaced_after(block):
            return NOTHING_ASKED
        return self.class_row()

    def after_attention(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """Moves the scores of the tokens on the slow path towards their class attention."""
        if attention.class_row is None:
            return tokens
        new = attention.patch_scores(tokens.prefix)
        if tokens.scores is not None:
            new = new[:, : tokens.scores.shape[1]]  # not the representative token
            weight = self.weight(block)
            new = (1 - weight) * tokens.scores + weight * new
        return tokens.replace(scores=new)

    def after_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """Leaves the slow path at the end of a stage, or of a block before one that selects."""
        last = block == self.backbone.depth - 1
        ends = last or self.backbone.ends_stage(block) or self.selects(block + 1)
        return leave_slow_path(tokens) if ends and waiting(tokens) else tokens


class Evo(SlowFast):
    """Slow-fast token evolution in a flat network."""

    card = Card(
        title="Evo-ViT",
        paper="2108.01390",
        summary="keeps all tokens: slow path for some, one fast update for the rest",
        training=OPTIONAL,
        score="class attention, averaged over blocks",
        in_pyramids="with a class token",
        equal_to=("YifanXu74/Evo-ViT",),
        notes="MIT",
    )
    Fields = EvoFields
    needs_class_token = True

    def weight(self, block: int) -> float:
        """`alpha` once averaging has started, before that 1: the scores are replaced."""
        first = self.fields.average_from
        if first is None:
            first = self.fields.stage_starts(self.backbone.depth)[0]
        return self.fields.alpha if block >= first else 1.0


def representative_weights(
    scores: Float[Array, "b p"], is_placeholder: Bool[Array, "b p"]
) -> Float[Array, "b p"]:
    """What each patch token counts in the representative token (Section 3.3).

    The representative token is the mean of the placeholders, weighted by their scores. Where
    softmax has rounded all of these to zero, they weigh the same.
    """
    weights = jnp.where(is_placeholder, scores, 0.0)
    alike = is_placeholder.astype(scores.dtype)
    return shares(jnp.where(weights.any(axis=1, keepdims=True), weights, alike))


def shares(x: Float[Array, "b p"]) -> Float[Array, "b p"]:
    """Each row, not negative, over its sum; zeros where that is zero.

    The largest is made 1 first: the derivative squares the sum, which may be as small as softmax
    gets.
    """
    largest = jax.lax.stop_gradient(x.max(axis=1, keepdims=True))
    x = x / jnp.where(largest > 0, largest, 1.0)
    total = x.sum(axis=1, keepdims=True)
    return x / jnp.where(total > 0, total, 1.0)


def enter_slow_path(tokens: TokenSet, count: int, *, block: int, fast_update: bool) -> TokenSet:
    """The class tokens, the `count` patch tokens of the largest scores, the representative token.

    The full set waits aside. `scores` become those of the selected tokens. The source map sends
    the placeholders to the representative token; without one they are out of the set at `block`.
    """
    n, prefix = tokens.x.shape[1], tokens.prefix
    slow_scores, index = top_k(tokens.scores, count)
    whole = with_prefix(index, prefix)
    entered, elsewhere = None, dropped_at(block)
    if fast_update:
        weights = representative_weights(tokens.scores, ~among_top(tokens.scores, index))
        slow = gather_and_sum(tokens.x, whole, weights)
        entered = slow[:, -1:]
        elsewhere = prefix + count
    else:
        slow = gather(tokens.x, whole)
    moves = kept_moves(whole, n, elsewhere=elsewhere)
    full = Waiting(tokens.x, tokens.scores, whole, tokens.source, tokens.place, entered)
    return tokens.replace(
        x=slow,
        scores=slow_scores,
        source=follow(tokens.source, moves),
        place=tokens.places_at(whole, new=int(fast_update)),
    ).put_aside(waiting=full)


def leave_slow_path(tokens: TokenSet) -> TokenSet:
    """The full set again, in its order: slow updates written back, the fast update for the rest."""
    full, prefix = waiting(tokens), tokens.prefix
    x = full.x
    if full.entered is not None:
        # Placeholders gain what the representative token gained; selected rows are overwritten.
        x = x + (tokens.x[:, -1:] - full.entered)
    x = scatter_set(x, full.index, tokens.x[:, : full.index.shape[1]])
    # At the places of all tokens, as above: the compiler finds them once.
    ahead = ((0, 0), (prefix, 0))
    scores = scatter_set(jnp.pad(full.scores, ahead), full.index, jnp.pad(tokens.scores, ahead))
    scores = scores[:, prefix:]
    tokens = tokens.replace(x=x, scores=scores, source=full.source, place=full.place)
    return tokens.put_aside(waiting=None)
