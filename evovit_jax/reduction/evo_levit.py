"""Evo-ViT in a pyramid (Evo-LeViT): slow and fast tokens in each stage, scores across them.

As in a flat network (see `evovit_jax.reduction.evo`), with what a pyramid adds (Xu et al., 2022,
Section 4.1, and the official code): the first blocks of the first stage see every token; every
stage selects anew; a subsampling carries the scores over, averages them with its own class
attention, and gives them the sum that they had. The weight of new class attention in the running
mean may be learned, one number for each attention.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.errors import UserError
from evovit_jax.reduction import base
from evovit_jax.reduction.base import (
    CLASS_ROW,
    AttentionRequest,
    AttentionView,
    Backbone,
    BlockTokens,
    Reducer,
    check_rate,
)
from evovit_jax.reduction.evo import (
    enter_slow_path,
    leave_slow_path,
    representative_macs,
    shares,
)
from evovit_jax.reduction.tokens import TokenSet


@dataclasses.dataclass(frozen=True)
class EvoPyramidFields(base.Fields):
    """Settings of Evo-ViT in a pyramid.

    Attributes:
      keep_rate: share of the patch tokens on the slow path, in (0, 1]; one number, or one a stage.
        The count is rounded down, as the official code does, and is at least one.
      first_block: the first block that selects; those before it see every token.
      selection: "stage" selects once a stage, "layer" in every block (the first part of training).
      tradeoff: weight of new class attention in the running mean: "learned", or "fixed" at `alpha`
        (the first part of training).
      alpha: that weight where it is fixed, in (0, 1].
      representative_token: the paper's fast update; False leaves placeholders as they are.
    """

    keep_rate: float | tuple[float, ...] = 0.5
    first_block: int = 2
    selection: str = "stage"
    tradeoff: str = "learned"
    alpha: float = 0.5
    representative_token: bool = True

    def __post_init__(self):
        check_rate("evo keep_rate", self.keep_rate)
        check_rate("evo alpha", self.alpha)
        for name, choices in (
            ("selection", ("stage", "layer")),
            ("tradeoff", ("learned", "fixed")),
        ):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"evo {name} must be {' or '.join(choices)}, got {getattr(self, name)!r}"
                )


class EvoPyramid(Reducer):
    """Slow-fast token evolution in a pyramid with one class token."""

    Fields = EvoPyramidFields
    not_in_pyramids = None
    needs_class_token = True

    def __init__(self, backbone: Backbone, fields: EvoPyramidFields, *, rngs: nnx.Rngs):
        super().__init__(backbone, fields, rngs=rngs)
        stages = len(backbone.stage_depths)
        if isinstance(fields.keep_rate, tuple) and len(fields.keep_rate) != stages:
            raise UserError(
                f"evo keep_rate has {len(fields.keep_rate)} members for {stages} stages"
            )
        if not 0 <= fields.first_block <= backbone.depth:
            raise UserError(
                f"evo first_block must be in 0..{backbone.depth} (the last: nowhere), got "
                f"{fields.first_block}"
            )
        # One for each attention in the network's order, subsamplings included; sigmoid(0) = 1/2.
        self.tradeoff = nnx.Param(jnp.zeros((backbone.depth + stages - 1,)))

    def _starts(self) -> list[int]:
        """The first block of each stage, and one past the last."""
        return [0, *itertools.accumulate(self.backbone.stage_depths)]

    def _stage(self, block: int) -> int:
        """The number of the stage of `block`."""
        return sum(start <= block for start in self._starts()) - 1

    def _is_border(self, block: int) -> bool:
        """Whether the slow path is entered before `block`."""
        first = self.fields.first_block
        if self.fields.selection == "layer":
            return block >= first
        return block == max(first, self._starts()[self._stage(block)])

    def _weight(self, attention: int) -> Float[Array, ""] | float:
        """The weight of new class attention at attention number `attention` of the network."""
        if self.fields.tradeoff == "fixed":
            return self.fields.alpha
        return jax.nn.sigmoid(self.tradeoff[...][attention])

    def before_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """Enters the slow path where `block` selects."""
        if not self._is_border(block):
            return tokens
        rate = self.fields.keep_rate
        rate = rate[self._stage(block)] if isinstance(rate, tuple) else rate
        count = max(1, int(tokens.patches * rate))
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
        later = range(block + 1, self.backbone.depth)
        return CLASS_ROW if any(map(self._is_border, later)) else base.NOTHING_ASKED

    def after_attention(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """Moves the scores of the tokens on the slow path towards their class attention."""
        if attention.class_row is None:
            return tokens
        new = attention.patch_scores(tokens.prefix)
        if tokens.scores is not None:
            new = new[:, : tokens.scores.shape[1]]  # not the representative token
            weight = self._weight(block + self._stage(block))
            new = (1 - weight) * tokens.scores + weight * new
        return tokens.replace(scores=new)

    def after_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """Leaves the slow path at the end of a stage, or of the block that selected."""
        ends = block + 1 in self._starts() or self._is_border(block + 1)
        return leave_slow_path(tokens) if "full" in tokens.aside and ends else tokens

    def macs(self, block: int, counts: BlockTokens) -> int:
        """The representative token, where the slow path is entered."""
        return representative_macs(self, block, counts)

    def subsample_request(self, stage: int, tokens: TokenSet) -> AttentionRequest:
        """Class attention, where a later stage selects."""
        del tokens
        later = range(self._starts()[stage + 1], self.backbone.depth)
        return CLASS_ROW if any(map(self._is_border, later)) else base.NOTHING_ASKED

    def subsample(
        self, tokens: TokenSet, attention: AttentionView, stride: int, *, stage: int
    ) -> TokenSet:
        """Subsamples the scores, averages them with new ones, and gives them the sum they had."""
        if attention.class_row is None:
            return tokens
        new = attention.patch_scores(tokens.prefix)
        kept = _strided(new, tokens.grid, stride)
        if tokens.scores is None:
            return tokens.replace(scores=kept)
        weight = self._weight(self._starts()[stage + 1] + stage)
        scores = (1 - weight) * _strided(tokens.scores, tokens.grid, stride) + weight * kept
        total = tokens.scores.sum(axis=1, keepdims=True)
        return tokens.replace(scores=total * shares(scores))


def _strided(
    scores: Float[Array, "b p"], grid: tuple[int, int], stride: int
) -> Float[Array, "b q"]:
    """The scores at every `stride`-th row and column."""
    raster = scores.reshape(len(scores), *grid)
    return raster[:, ::stride, ::stride].reshape(len(scores), -1)
