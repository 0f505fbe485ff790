"""Prune-and-Merge: constant matrices merge tokens before a block, and take them apart after it.

Mao et al., "Prune and Merge: Efficient Token Compression for Vision Transformer with Spatial
Information Preserved", 2025 (arXiv:2503.23455), written from the paper. A block at a location sees
`M x`, of few tokens, and gives `R (its output)`, the whole grid again, to which the positions that
M prunes are added as they were. M and R are parameters, the same for all images: nothing is sorted.

They come from a calibration on the dense network. The score of a position in a block is
`|sum of gradient * attention|` over images, heads and queries of the loss on the labels, added up
over batches, over the block's norm, times `1 - 0.025 * block`. Of all locations together the
`prune_rate` of the lowest are pruned, the `keep_rate` of the highest are centres. A centre's row of
M has the positions from the last row's end to the middle between it and the next centre, at most to
the end of its line of the grid, weighted by their scores over its own; R begins as M's
pseudo-inverse. merge_matrices.py does this, and `python -m evovit_jax.calibrate` is the command.
Without it centres are evenly spaced and nothing is pruned.

Published, after 30 to 60 epochs: DeiT-T 72.0 at 0.8 GMACs, DeiT-S 79.6 at 3.0.
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
from evovit_jax.reduction.base import Backbone, Batches, Reducer
from evovit_jax.reduction.card import NEEDED, Card
from evovit_jax.reduction.merge_matrices import (
    calibrate,
    even_matrix,
    kept_counts,
    position_scores,
)
from evovit_jax.reduction.tokens import TokenSet, dropped_at, follow


@dataclasses.dataclass(frozen=True)
class PruneAndMergeFields(base.Fields):
    """Settings of Prune-and-Merge.

    Attributes:
      locations: the blocks on few tokens; by default all but the first.
      keep_rate: share of the positions that are centres, of all locations together.
      prune_rate: share of the positions that are pruned, likewise.
      kept: rows of each location's matrix, class tokens counted; a calibration says them. By
        default the keep rate's share in each.
    """

    locations: int | tuple[int, ...] | None = None
    keep_rate: float = 0.6
    prune_rate: float = 0.1
    kept: tuple[int, ...] | None = None

    def __post_init__(self):
        base.check_rate("prune_and_merge keep_rate", self.keep_rate)
        if not 0 <= self.prune_rate <= 1 - self.keep_rate:
            raise UserError(
                "prune_and_merge prune_rate must be 0 or more and, with keep_rate, at most 1, "
                f"got {self.prune_rate!r}"
            )

    def blocks(self, backbone: Backbone) -> tuple[int, ...]:
        """The blocks on few tokens."""
        if isinstance(self.locations, int):
            return (self.locations,)
        return self.locations or tuple(range(1, backbone.depth)) or (0,)

    def check(self, backbone: Backbone) -> None:
        """Refuses locations that do not fit the network, and counts that do not fit them."""
        blocks = self.blocks(backbone)
        base.check_blocks("prune_and_merge locations", blocks, backbone.depth)
        if self.kept is not None and len(self.kept) != len(blocks):
            raise UserError(
                f"prune_and_merge kept has {len(self.kept)} members for {len(blocks)} locations"
            )
        inputs = backbone.prefix + backbone.grid[0] * backbone.grid[1]
        if any(not backbone.prefix < rows <= inputs for rows in self.kept or ()):
            raise UserError(
                f"prune_and_merge kept must be in {backbone.prefix + 1}..{inputs}, "
                f"got {':'.join(map(str, self.kept))}"
            )


@functools.partial(jax.tree_util.register_dataclass, data_fields=["x", "source"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Waiting:
    """What waits while a block is on few tokens.

    Attributes:
      x: `[b, N, d]`, the pruned positions as they were, all others 0.
      source: int32 `[b, N]`, the source map.
    """

    x: Float[Array, "b N d"]
    source: Int[Array, "b N"]


class Matrices(nnx.Module):
    """A location's two matrices, and which positions it does not prune."""

    def __init__(self, merge: np.ndarray, valid: np.ndarray):
        self.merge_matrix = nnx.Param(jnp.asarray(merge, jnp.float32))
        self.recover_matrix = nnx.Param(jnp.asarray(np.linalg.pinv(merge), jnp.float32))
        self.token_mask = nnx.BatchStat(jnp.asarray(valid, jnp.float32))


class PruneAndMerge(Reducer):
    """Blocks on few tokens between constant matrices."""

    card = Card(
        title="Prune-and-Merge",
        paper="2503.23455",
        summary="constant matrices around each block; the grid is whole between blocks",
        training=NEEDED,
        score="position, by a calibration",
        equal_to=("NUST-Machine-Intelligence-Laboratory/prune_and_merge",),
        notes="Apache-2.0",
    )
    Fields = PruneAndMergeFields
    fixed_fields = ("locations", "keep_rate", "kept")
    any_grid = False
    keeps_places = False

    def __init__(self, backbone: Backbone, fields: PruneAndMergeFields, *, rngs: nnx.Rngs):
        super().__init__(backbone, fields, rngs=rngs)
        self.locations = fields.blocks(backbone)
        patches, prefix = backbone.grid[0] * backbone.grid[1], backbone.prefix
        rows = max(1, int(patches * fields.keep_rate)) + prefix
        self.matrices = nnx.List(
            Matrices(*even_matrix(kept - prefix, backbone))
            for kept in fields.kept or (rows,) * len(self.locations)
        )

    @property
    def torch_names(self) -> tuple[tuple[str, str], ...]:
        """The matrices are called after their blocks."""
        return tuple(
            (rf"matrices\.{i}\.(.*)", rf"blocks.{block}.attn.\1")
            for i, block in enumerate(self.locations)
        )

    def before_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """Few tokens at a location."""
        if block not in self.locations:
            return tokens
        matrices = self.matrices[self.locations.index(block)]
        merge, valid = matrices.merge_matrix[...], matrices.token_mask[...] > 0
        x = tokens.x
        if x.shape[1] != merge.shape[1]:
            raise UserError(
                f"reduction prune_and_merge has matrices for {merge.shape[1]} tokens and got "
                f"{x.shape[1]}: make the model with the images' size"
            )
        waiting = Waiting(jnp.where(valid[None, :, None], 0, x).astype(x.dtype), tokens.source)
        place = jnp.abs(merge).argmax(axis=0).astype(jnp.int32)
        moves = jnp.broadcast_to(jnp.where(valid, place, dropped_at(block)), x.shape[:2])
        return tokens.replace(
            x=mix(merge, x), source=follow(tokens.source, moves.astype(jnp.int32))
        ).put_aside(waiting=waiting)

    def after_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """The whole grid again."""
        if block not in self.locations:
            return tokens
        aside = dict(tokens.aside)
        waiting = aside.pop("waiting")
        recover = self.matrices[self.locations.index(block)].recover_matrix[...]
        x = mix(recover, tokens.x) + waiting.x
        return tokens.replace(x=x, source=waiting.source, aside=aside)

    def calibrated(self, model: nnx.Module, batches: Batches) -> "PruneAndMerge":
        """This reducer with the matrices of a network's gradients on labelled images."""
        backbone, fields = self.backbone, self.fields
        scores = position_scores(model, batches)
        kept = kept_counts(
            scores,
            self.locations,
            keep_rate=fields.keep_rate,
            prune_rate=fields.prune_rate,
            prefix=backbone.prefix,
        )
        fields = dataclasses.replace(fields, kept=kept)
        found = PruneAndMerge(backbone, fields, rngs=nnx.Rngs(0))
        calibrate(found, scores)
        return found


def mix(matrix: Float[Array, "m n"], x: Float[Array, "b n d"]) -> Float[Array, "b m d"]:
    """The matrix times every image's tokens, in their dtype."""
    return jnp.einsum("mn,bnd->bmd", matrix.astype(x.dtype), x, precision="highest")
