"""Evo-ViT in a pyramid (Evo-LeViT): slow and fast tokens in each stage, scores across them.

As in a flat network (see `evovit_jax.reduction.evo`), with what a pyramid adds (Xu et al., 2022,
Section 4.1, and the official code): the first blocks of the first stage see every token; every
stage selects anew; a subsampling carries the scores over, averages them with its own class
attention, and gives them the sum that they had. The weight of new class attention in the running
mean may be learned, one number for each attention.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.errors import UserError
from evovit_jax.reduction.base import (
    NOTHING_ASKED,
    AttentionRequest,
    AttentionView,
    Backbone,
)
from evovit_jax.reduction.evo import SlowFast, SlowFastFields, shares
from evovit_jax.reduction.tokens import TokenSet


@dataclasses.dataclass(frozen=True)
class EvoPyramidFields(SlowFastFields):
    """Settings of Evo-ViT in a pyramid, beside those of `SlowFastFields`.

    Attributes:
      first_block: the first block that selects; those before it see every token.
      tradeoff: weight of new class attention in the running mean: "learned", or "fixed" at `alpha`
        (the first part of training).
    """

    first_block: int = 2
    tradeoff: str = "learned"

    def __post_init__(self):
        super().__post_init__()
        self.check_choice("tradeoff", ("learned", "fixed"))

    def check(self, backbone: Backbone) -> None:
        """Refuses a first block that is not there, and keep rates that do not fit the stages."""
        self.check_rates(len(backbone.stage_depths))
        if not 0 <= self.first_block <= backbone.depth:
            raise UserError(
                f"evo first_block must be in 0..{backbone.depth} (the last: nowhere), got "
                f"{self.first_block}"
            )

    def selecting(self, backbone: Backbone) -> dict[int, int]:
        """The first block of each stage that is not before `first_block`."""
        stages = enumerate(zip(backbone.stage_starts, backbone.stage_depths, strict=True))
        return {
            max(self.first_block, start): stage
            for stage, (start, depth) in stages
            if self.first_block < start + depth
        }


class EvoPyramid(SlowFast):
    """Slow-fast token evolution in a pyramid with one class token."""

    Fields = EvoPyramidFields
    not_in_pyramids = None
    needs_class_token = True

    def __init__(self, backbone: Backbone, fields: EvoPyramidFields, *, rngs: nnx.Rngs):
        super().__init__(backbone, fields, rngs=rngs)
        # One for each attention in the network's order, subsamplings included; sigmoid(0) = 1/2.
        attentions = backbone.depth + len(backbone.stage_depths) - 1
        self.tradeoff = nnx.Param(jnp.zeros((attentions,)))

    @classmethod
    def before_and_after_switch(
        cls, fields: EvoPyramidFields
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As the official code does, the weight begins to be learned at the switch."""
        first, then = super().before_and_after_switch(fields)
        if fields.tradeoff == "fixed":
            return first, then
        return first | {"tradeoff": "fixed"}, then | {"tradeoff": "learned"}

    def weight(self, block: int) -> Float[Array, ""] | float:
        """`alpha`, or the block's learned weight."""
        return self._weight(block + self.backbone.stage(block))

    def _weight(self, attention: int) -> Float[Array, ""] | float:
        """The weight at attention number `attention` of the network."""
        if self.fields.tradeoff == "fixed":
            return self.fields.alpha
        return jax.nn.sigmoid(self.tradeoff[...][attention])

    def subsample_request(self, stage: int, tokens: TokenSet) -> AttentionRequest:
        """Class attention, where a later stage selects."""
        del tokens
        last = self.backbone.stage_starts[stage + 1] - 1
        return self.class_row() if self.selects_after(last) else NOTHING_ASKED

    def subsample(
        self, tokens: TokenSet, attention: AttentionView, stride: int, *, stage: int
    ) -> TokenSet:
        """Subsamples the scores, averages them with new ones, and gives them the sum they had."""
        old, row = tokens.scores, attention.class_row
        if old is None and row is None:
            return tokens
        new = None if row is None else attention.patch_scores(tokens.prefix)
        if old is None:
            return tokens.replace(scores=_strided(new, tokens.grid, stride))
        scores = _strided(old, tokens.grid, stride)
        if new is not None:  # none where there is no attention between the stages
            weight = self._weight(self.backbone.stage_starts[stage + 1] + stage)
            scores = (1 - weight) * scores + weight * _strided(new, tokens.grid, stride)
        return tokens.replace(scores=old.sum(axis=1, keepdims=True) * shares(scores))


def _strided(
    scores: Float[Array, "b p"], grid: tuple[int, int], stride: int
) -> Float[Array, "b q"]:
    """The scores at every `stride`-th row and column."""
    raster = scores.reshape(scores.shape[0], *grid)
    return raster[:, ::stride, ::stride].reshape(scores.shape[0], -1)
