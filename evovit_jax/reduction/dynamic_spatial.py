"""DynamicViT on maps: a cheap path for the positions that a small network finds uninformative.

Rao et al., "Dynamic Spatial Sparsification for Efficient Vision Transformers and Convolutional
Neural Networks", TPAMI 2023 (arXiv:2207.01580), Section 3.3: `dynamicvit` in a network whose blocks
need a whole map, ConvNeXt and Swin. No position leaves. From the first location on, in one stage,
the feed-forward of a block is for the `slow` positions; the others take the `fast` path, a
LayerNorm and a linear map of their own. Before each location a predictor (that of DynamicViT, the
mean over all positions) chooses the slow ones anew among all positions of the map.

Inference: the `int(positions * rate)` positions of the largest keep probability are slow. One sort
a predictor; a block gathers its map in that order, and gathers it back.

Training: two maps, of which every position has its value on both paths. With x1 the slow and x2 the
fast stream (the map itself, at first), m the decision (a hard Gumbel-softmax sample, 1 for slow;
not multiplied with the one before) and x0 = x1 m + x2 (1 - m):

    y = mix(x0)
    x1' = s1 + feed_forward(y m + x1 (1 - m))
    x2' = s2 + fast(y (1 - m) + x2 m)

A predictor sees the streams joined by the decision before its own. After the stage they are joined
by the last one. A position that changes sides goes on with the stream in which it had not been, so
that training and inference differ, as in the authors' code.

The families differ (`map_blocks.MapBlocks`): in ConvNeXt each stream adds its own input (s1 = x1,
s2 = x2), LayerNorms have epsilon 1e-6, and the fast path ends with a factor a channel; in Swin both
streams add the map after attention and its residual (s1 = s2 = y), epsilon is 1e-5, no factor.

Losses: `ratio`, the mean over locations and images of `(share of slow positions - rate)**2`, and
against the dense network `distill_logits` (Kullback-Leibler) and `distill_tokens`, the mean squared
error of the last map after the norm, all positions.

Published recipe: 120 epochs from pretrained weights, AdamW, 4e-3 to 1e-6, batch 4096, weights cross
entropy 1, ratio 10, both distillations 0.5; the backbone frozen for 5 epochs, then at 0.2 of the
rate. ConvNeXt-T at 0.7: 81.59 at 3.6 GFLOPs; Swin-T at 0.7: 80.91 at 4.0.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.errors import UserError
from evovit_jax.reduction.at_locations import Located, LocatedFields
from evovit_jax.reduction.base import AttentionView, Backbone, check_blocks
from evovit_jax.reduction.dynamic_vit import (
    KEEP,
    DynamicViT,
    Predictor,
    decide,
    divergence,
    ratio_loss,
)
from evovit_jax.reduction.map_blocks import MapBlocks
from evovit_jax.reduction.stochastic_depth import dropped_branch
from evovit_jax.reduction.tokens import TokenSet, dropped_at, follow, gather, kept_moves, order_by

STEP = 0.2  # by which the rate falls from one location to the next


@dataclasses.dataclass(frozen=True)
class SpatialFields(LocatedFields):
    """Settings of a network with a slow and a fast path.

    Attributes:
      keep_rate: share of the positions that are slow; one number a location, or one number r for r,
        r - 0.2, r - 0.4, as the authors' code subtracts them: at 0.7 and 196 positions 137, 97, 58.
      locations: the blocks that have a predictor, counted from the stage's first; by default three,
        every ninth part of the stage (1:2:3 in ConvNeXt-T and Swin-T, 3:6:9 in ConvNeXt-S and -B,
        2:4:6 in Swin-S and -B).
      stage: the stage, from 0.
    """

    stage: int = 2

    def blocks(self, backbone: Backbone) -> tuple[int, ...]:
        """The blocks of the network that have a predictor.

        Raises:
          UserError: if stage or locations do not fit the network, or the keep rates the locations.
        """
        if not 0 <= self.stage < len(backbone.stage_depths):
            last = len(backbone.stage_depths) - 1
            raise UserError(f"stage must be in 0..{last}, got {self.stage}")
        depth, blocks = backbone.stage_depths[self.stage], self.locations
        if blocks is None:
            step = max(1, depth // 9)
            blocks = tuple(range(step, min(3 * step + 1, depth), step)) or (0,)
        blocks = (blocks,) if isinstance(blocks, int) else blocks
        check_blocks("locations", blocks, depth)
        if isinstance(self.keep_rate, tuple):
            if len(self.keep_rate) != len(blocks):
                raise UserError(
                    f"keep_rate has {len(self.keep_rate)} members for {len(blocks)} locations"
                )
        elif self.rate(len(blocks) - 1) <= 0:
            raise UserError(
                f"keep_rate {self.keep_rate} falls by {STEP} a location and leaves nothing at the "
                f"last of {len(blocks)}: give one for each, such as 0.5:0.3:0.1"
            )
        start = backbone.stage_starts[self.stage]
        return tuple(start + block for block in blocks)

    def rate(self, location: int) -> float:
        """The share of slow positions from location number `location` on."""
        if isinstance(self.keep_rate, tuple):
            return self.keep_rate[location]
        return self.keep_rate - STEP * location


class FastPath(nnx.Module):
    """A LayerNorm and a linear map, and where the network has them a factor a channel."""

    def __init__(self, dim: int, blocks: MapBlocks, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(dim, epsilon=blocks.norm_eps, rngs=rngs)
        init = nnx.initializers.truncated_normal(stddev=0.02)
        self.linear = nnx.Linear(
            dim, dim, kernel_init=init, dtype=jnp.dtype(blocks.dtype), rngs=rngs
        )
        scale = blocks.layer_scale
        self.gamma = None if scale is None else nnx.Param(jnp.full((dim,), scale))

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """What is added to each position."""
        branch = self.linear(self.norm(x.astype(jnp.float32)).astype(x.dtype))
        if self.gamma is None:
            return branch
        return branch * self.gamma[...].astype(branch.dtype)[None, None]


class DynamicSpatial(Located):
    """Learned, image-dependent choice of the positions that take the slow path."""

    Fields = SpatialFields
    not_in_pyramids = "in a pyramid it is for blocks that need a whole map (ConvNeXt, Swin)"
    keeps_map = True
    fixed_fields = ("stage", "locations")
    loss_names = DynamicViT.loss_names
    teacher_loss_names = DynamicViT.teacher_loss_names
    torch_names = DynamicViT.torch_names

    def __init__(self, backbone: Backbone, fields: SpatialFields, *, rngs: nnx.Rngs):
        super().__init__(backbone, fields, rngs=rngs)
        dim, blocks = backbone.dim[fields.stage], backbone.map_blocks
        self.score_predictor = nnx.List(
            Predictor(dim, epsilon=blocks.norm_eps, rngs=rngs) for _ in self.locations
        )
        self.fast_path = nnx.List(FastPath(dim, blocks, rngs=rngs) for _ in self.split_blocks)

    @property
    def split_blocks(self) -> range:
        """The blocks that have two paths, one element of `fast_path` each."""
        start = self.backbone.stage_starts[self.fields.stage]
        return range(self.locations[0], start + self.backbone.stage_depths[self.fields.stage])

    def share(self, location: int) -> float:
        """The share of slow positions from location number `location` on."""
        return self.fields.rate(location)

    def grid_count(self, location: int, grid: tuple[int, int]) -> int:
        """`int(positions * rate)`: how many positions of a map are slow."""
        return int(grid[0] * grid[1] * self.share(location))

    def before_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """Chooses the slow positions at a location."""
        if block not in self.split_blocks:
            return tokens
        location = self.location(block)
        if location is not None:
            log_probs = self.score_predictor[location](tokens.x, jnp.ones(tokens.x.shape[:2]))
            choose = self._decide if tokens.train else self._rank
            tokens = choose(location, tokens, log_probs)
        return tokens.put_aside(entered=tokens.x)

    def _rank(self, location: int, tokens: TokenSet, log_probs: Float[Array, "b n 2"]) -> TokenSet:
        """Keeps aside the order of the positions, slow ones first, and the way back."""
        order = order_by(log_probs[:, :, KEEP])
        n = tokens.x.shape[1]
        places, count = kept_moves(order, n, elsewhere=0), self.count(location, tokens)
        decided = (places < count).astype(jnp.float32)
        decisions = (*tokens.aside.get("decisions", ()), decided)
        return tokens.put_aside(order=order, places=places, decisions=decisions)

    def _decide(
        self, location: int, tokens: TokenSet, log_probs: Float[Array, "b n 2"]
    ) -> TokenSet:
        """Draws the decision of a training pass and joins the streams by it."""
        decision = decide(self, location, tokens, log_probs)
        decisions = (*tokens.aside.get("decisions", ()), decision)
        streams = tokens.aside.get("streams", (tokens.x, tokens.x))
        x = joined(*streams, decision)
        return tokens.replace(x=x).put_aside(decisions=decisions, streams=streams)

    def after_attention(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """Gives the feed-forward what is slow, and puts aside what is fast."""
        del attention
        if block not in self.split_blocks:
            return tokens
        adds_input = self.backbone.map_blocks.adds_to == "input"
        mixed, entered = tokens.x, tokens.aside["entered"]
        tokens = tokens.put_aside(shortcut=None, entered=None)
        if tokens.train:
            decision, streams = tokens.aside["decisions"][-1], tokens.aside["streams"]
            slow = joined(mixed, streams[0], decision)
            fast = joined(streams[1], mixed, decision)
            shortcuts = streams if adds_input else (mixed, mixed)
            return tokens.replace(x=slow).put_aside(fast=fast, shortcuts=shortcuts)
        location = sum(start <= block for start in self.locations) - 1
        count, places = self.count(location, tokens), tokens.aside["places"]
        ordered = gather(mixed, tokens.aside["order"])
        moves = jnp.where(places < count, places, jnp.int32(dropped_at(block)))
        aside = {"fast": ordered[:, count:], "shortcuts": entered if adds_input else mixed}
        return tokens.replace(x=ordered[:, :count], source=follow(tokens.source, moves)).put_aside(
            **aside, whole=tokens.source
        )

    def after_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """Joins both paths: a whole map again."""
        if block not in self.split_blocks:
            return tokens
        aside = tokens.aside
        fast = self.fast_path[block - self.split_blocks[0]](aside["fast"])
        shortcuts, whole = aside["shortcuts"], aside.get("whole")
        tokens = tokens.put_aside(fast=None, shortcuts=None, whole=None)
        if not tokens.train:
            branches = gather(jnp.concatenate([tokens.x, fast], axis=1), aside["places"])
            return tokens.replace(x=shortcuts + branches, source=whole)
        rate = self.backbone.map_blocks.drop_path_rates[block]
        # Numbers that neither branches nor decisions have.
        fast = dropped_branch(tokens, fast, rate, 3 * self.backbone.depth + block)
        streams = (shortcuts[0] + tokens.x, shortcuts[1] + fast)
        x = joined(*streams, aside["decisions"][-1])
        return tokens.replace(x=x).put_aside(streams=streams)

    def losses(self, tokens: TokenSet) -> dict[str, Float[Array, ""]]:
        """`ratio`: how far the shares of slow positions are from the keep rates."""
        return {"ratio": ratio_loss(self, tokens)}

    def teacher_losses(
        self,
        logits: Float[Array, "b k"],
        out: Any,
        teacher_logits: Float[Array, "b k"],
        teacher: Any,
    ) -> dict[str, Float[Array, ""]]:
        """`distill_logits`, and `distill_tokens` of the last maps; the teacher is dense."""
        maps = (o.features.astype(jnp.float32) for o in (out, teacher))
        return {
            "distill_logits": divergence(logits, teacher_logits).mean(),
            "distill_tokens": jnp.square(next(maps) - next(maps)).mean(),
        }

    def aux(self, tokens: TokenSet) -> dict[str, Array]:
        """`decisions`, float32 `[b, locations, positions]`: 1 where a position is slow.

        In training also the streams at the end of the stage, `slow_stream` and `fast_stream`,
        `[b, positions, d]`.
        """
        found = {"decisions": jnp.stack(tokens.aside["decisions"], axis=1)}
        if tokens.train:
            found["slow_stream"], found["fast_stream"] = tokens.aside["streams"]
        return found


def joined(
    first: Float[Array, "b n d"], second: Float[Array, "b n d"], mask: Float[Array, "b n"]
) -> Float[Array, "b n d"]:
    """`first` where the mask is 1, `second` where it is 0."""
    mask = mask[:, :, None].astype(first.dtype)
    return first * mask + second * (1 - mask)
