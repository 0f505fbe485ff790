"""Patch Slimming: each block makes fewer of the patches, the same ones in every image.

Tang et al., "Patch Slimming for Efficient Vision Transformers", CVPR 2022 (arXiv:2106.02852),
written from the paper; there is no code of the authors. Block l makes the tokens of a mask m_l.
Its queries and its feed-forward are theirs alone, its keys and values those of all tokens that the
block before made: `diag(m_l) P_l Z_l-1`, P the attention and Z the tokens. Masks are nested, and
the last block makes the class token alone; where the network classifies the mean of the patches, it
makes as many as the block before.

Nested masks are one order of the positions and a number for each block. The patches are put in
this order once, before the first block; from then on a mask is the first tokens of the set, so that
nothing is sorted or gathered. The order is a constant beside the weights, the numbers are `kept`.

Both come from a calibration, which goes from the last block down (Algorithm 1). The score of
position i in block t bounds what its removal changes of the last block's class token,

    s_i = sum over heads of |A[:, i]|^2 |U[i, :]|^2,
    A = product of diag(m_l) P_l over l > t, from the last block down,    U = P_t |Z_t-1|,

where heads are all choices of one head a block, those of A summed by one matrix product a head and
block, and Z is what attention mixes, tokens after the norm. P is that of the whole network, and the
score is the mean over the images. A mask begins as that of the block after it, and takes the
`step` positions of the highest scores, again and again, until the tokens that the next block makes
are off by `tolerance` at most: the squared error over their squared length, against the whole
network. The paper trains a block on before it measures; here one trains at the end. Without a
calibration positions are in the order of their distance from the centre, and numbers fall evenly to
`keep_rate`.

Published, after training: DeiT-T 72.0 at 0.7 GMACs, DeiT-S 79.4 at 2.6.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Int

from evovit_jax.errors import UserError
from evovit_jax.reduction import base
from evovit_jax.reduction.base import (
    AttentionRequest,
    AttentionView,
    Backbone,
    Batches,
    Reducer,
)
from evovit_jax.reduction.card import NEEDED, Card
from evovit_jax.reduction.slimming_masks import masks_of
from evovit_jax.reduction.tokens import TokenSet, dropped_at, follow, keep


@dataclasses.dataclass(frozen=True)
class PatchSlimmingFields(base.Fields):
    """Settings of Patch Slimming.

    Attributes:
      kept: patches that each block makes; a calibration says them.
      keep_rate: without `kept`, the share of the patches that the block before the last makes.
      tolerance: of a calibration: how far off a block's tokens may be, a share of their squares.
      step: of a calibration: by how many patches a mask grows.
    """

    kept: tuple[int, ...] | None = None
    keep_rate: float = 0.3
    tolerance: float = 0.01
    step: int = 10

    def __post_init__(self):
        base.check_rate("patch_slimming keep_rate", self.keep_rate)
        if self.tolerance <= 0 or self.step < 1:
            raise UserError("patch_slimming tolerance must be above 0, and step 1 or more")

    def check(self, backbone: Backbone) -> None:
        """Refuses numbers that are not one a block, rise, or are more than there are patches."""
        patches = backbone.grid[0] * backbone.grid[1]
        kept = self.counts(backbone)
        said = f"got {':'.join(map(str, kept))}"
        if len(kept) != backbone.depth:
            raise UserError(
                f"patch_slimming kept has {len(kept)} members for {backbone.depth} blocks"
            )
        if list(kept) != sorted(kept, reverse=True) or not 0 <= kept[-1] <= kept[0] <= patches:
            raise UserError(
                f"patch_slimming kept must fall, from {patches} patches at most, {said}"
            )
        if backbone.pools_patches and not kept[-1]:
            raise UserError(
                f"patch_slimming kept must not end with 0 where patches are classified, {said}"
            )

    def counts(self, backbone: Backbone) -> tuple[int, ...]:
        """How many patches each block makes."""
        if self.kept is not None:
            return self.kept
        patches, depth = backbone.grid[0] * backbone.grid[1], backbone.depth
        falling = [1 - (1 - self.keep_rate) * i / max(1, depth - 1) for i in range(1, depth)]
        kept = tuple(max(1, int(patches * share)) for share in falling)
        last = (*kept, max(1, int(patches * self.keep_rate)))[-1] if backbone.pools_patches else 0
        return (*kept, last)


class PatchSlimming(Reducer):
    """Constant nested masks."""

    card = Card(
        title="Patch Slimming",
        paper="2106.02852",
        summary="constant nested masks: each block makes fewer of the patches",
        training=NEEDED,
        score="position, by a calibration",
    )
    Fields = PatchSlimmingFields
    needs_class_token = True
    any_grid = False

    def __init__(self, backbone: Backbone, fields: PatchSlimmingFields, *, rngs: nnx.Rngs):
        super().__init__(backbone, fields, rngs=rngs)
        self.patch_order = nnx.BatchStat(jnp.asarray(from_centre(backbone.grid), jnp.float32))

    def start(self, tokens: TokenSet) -> TokenSet:
        """The patches in the order of how long they stay."""
        order = self.patch_order[...].astype(jnp.int32)
        if tokens.patches != len(order):
            raise UserError(
                f"reduction patch_slimming has masks for {len(order)} patches and got "
                f"{tokens.patches}: make the model with the images' size"
            )
        return keep(tokens, jnp.broadcast_to(order, (tokens.x.shape[0], len(order))), 0)

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """Queries of the tokens that the block makes."""
        return AttentionRequest(queries=self.made(block, tokens))

    def after_attention(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """The tokens that the block makes; the others end here."""
        del attention
        made = self.made(block, tokens)
        before = self.made(block - 1, tokens) if block else tokens.source.shape[1]
        moves = np.where(np.arange(before) < made, np.arange(before), dropped_at(block))
        moves = jnp.broadcast_to(jnp.asarray(moves, jnp.int32), (tokens.x.shape[0], before))
        return tokens.replace(
            x=tokens.x[:, :made],
            source=follow(tokens.source, moves),
            place=None if tokens.place is None else tokens.place[:, :made],
        )

    def made(self, block: int, tokens: TokenSet) -> int:
        """How many tokens a block makes, class tokens counted."""
        return tokens.prefix + self.fields.counts(self.backbone)[block]

    def calibrated(self, model: nnx.Module, batches: Batches) -> "PatchSlimming":
        """This reducer with the order and the numbers of a network's impact scores."""
        fields = self.fields
        if self.backbone.pools_patches:
            raise UserError(
                "patch_slimming: masks are found from the class token down, and this network "
                "classifies its patches"
            )
        order, kept = masks_of(
            model, batches, self.backbone, tolerance=fields.tolerance, step=fields.step
        )
        fields = dataclasses.replace(fields, kept=kept)
        found = PatchSlimming(self.backbone, fields, rngs=nnx.Rngs(0))
        found.patch_order.set_value(jnp.asarray(order, jnp.float32))
        return found


def from_centre(grid: tuple[int, int]) -> Int[np.ndarray, " p"]:
    """The patches of a grid, those nearest to its centre first, equally near ones by raster."""
    y, x = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    squared = (2 * y - grid[0] + 1) ** 2 + (2 * x - grid[1] + 1) ** 2
    return np.argsort(squared, kind="stable")
