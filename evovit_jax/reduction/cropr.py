"""Cropr: a learned query after each block scores tokens, trained by a classifier that is not kept.

Bergner et al., "Token Cropr: Faster ViTs for Quite a Few Tasks", CVPR 2025 (arXiv:2412.00965),
written from the paper. After every block but the last a token's score is its scalar product with
the block's queries, added up, no softmax. The r patches of the lowest score leave, r + 1 after the
first block; the others stay by falling score (Section 3.1). Attention is not looked at, so every
block may use a fused kernel.

With `last_layer_fusion` tokens leave after all blocks but the last two, and before the last block
all come back, in the order in which they left: for tasks that need every token (Section 3.3).

Training: after the block the queries attend to its tokens (cross-attention in `aux_heads` heads of
the tokens as they are), and an MLP and a head give logits, whose loss on the labels is added by
`loss.reducer_weights`. No gradient goes from there into the backbone. Without training the scores
are random.

Published: MAE ViT-L 85.3 % top-1 fine-tuned (dense 85.8), 1.5 to 4 times faster.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from evovit_jax.errors import UserError
from evovit_jax.reduction import base
from evovit_jax.reduction.base import Backbone, Reducer
from evovit_jax.reduction.card import NEEDED, Card
from evovit_jax.reduction.knob import Knob, numbers_leaving
from evovit_jax.reduction.matching import places
from evovit_jax.reduction.query_classifier import CrossAttention, Head
from evovit_jax.reduction.tokens import (
    TokenSet,
    gather,
    keep,
    order_by,
    scatter_set,
    with_prefix,
)

# By default a network drops this share of its patches: 8 a block of 196 in 12 blocks.
DEFAULT_DROPPED = 0.5


@dataclasses.dataclass(frozen=True)
class CroprFields(base.Fields):
    """Settings of Cropr.

    Attributes:
      r: patches that leave after a block; by default half of the patches over all blocks.
      first_extra: how many more leave after the first block.
      num_queries: of each block.
      aux_heads: of the cross-attention in training.
      last_layer_fusion: whether all tokens come back before the last block.
    """

    r: int | None = None
    first_extra: int = 1
    num_queries: int = 1
    aux_heads: int = 3
    last_layer_fusion: bool = False

    def __post_init__(self):
        if (self.r or 0) < 0 or self.first_extra < 0:
            raise UserError("cropr r and first_extra must not be negative")
        if self.num_queries < 1 or self.aux_heads < 1:
            raise UserError("cropr num_queries and aux_heads must be 1 or more")

    def check(self, backbone: Backbone) -> None:
        """Refuses heads that do not divide the width, and networks that are too short."""
        if backbone.dim[0] % self.aux_heads:
            raise UserError(f"cropr aux_heads {self.aux_heads} does not divide {backbone.dim[0]}")
        if self.modules(backbone.depth) < 1:
            raise UserError("cropr needs a block after the one whose tokens leave")

    def modules(self, depth: int) -> int:
        """After how many of the first blocks tokens leave."""
        return depth - 1 - self.last_layer_fusion

    def leaving(self, block: int, depth: int, tokens: TokenSet) -> int:
        """How many patches leave after `block`; one stays at least."""
        r = self.r
        if r is None:
            r = int(DEFAULT_DROPPED * tokens.grid[0] * tokens.grid[1] / depth)
        return min(r + self.first_extra * (block == 0), tokens.patches - 1)


class Module(nnx.Module):
    """What stands after a block."""

    def __init__(self, backbone: Backbone, fields: CroprFields, *, rngs: nnx.Rngs):
        dim = backbone.dim[0]
        self.cross_attn = CrossAttention(dim, fields.num_queries, fields.aux_heads, rngs=rngs)
        self.head = Head(dim, backbone.classes, rngs=rngs)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["inputs", "left", "logits"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Left:
    """What has left so far.

    Attributes:
      inputs: int32 `[b, n]`, which input token each token of the set is.
      left: of each block the tokens `[b, r, d]` that left, and which input tokens they are.
      logits: float32 `[b, k]` of each block, in training.
    """

    inputs: Int[Array, "b n"]
    left: tuple[tuple[Float[Array, "b _ d"], Int[Array, "b _"]], ...] = ()
    logits: tuple[Float[Array, "b k"], ...] = ()


class Cropr(Reducer):
    """Pruning by learned queries."""

    card = Card(
        title="Cropr",
        paper="2412.00965",
        summary="learned queries after each block; may give all tokens back for the last",
        training=NEEDED,
        score="learned",
        equal_to=("benbergner/cropr",),
        notes="MIT",
    )
    knob = Knob("r", numbers_leaving)
    Fields = CroprFields
    fixed_fields = ("num_queries", "aux_heads")

    def __init__(self, backbone: Backbone, fields: CroprFields, *, rngs: nnx.Rngs):
        super().__init__(backbone, fields, rngs=rngs)
        if not backbone.classes:
            raise UserError(
                "cropr's modules learn from labels, and this network has no classes: make it with "
                "num_classes"
            )
        modules = fields.modules(backbone.depth)
        self.cropr = nnx.List(Module(backbone, fields, rngs=rngs) for _ in range(modules))
        self.loss_names = tuple(f"cropr_{block}" for block in range(modules))

    def start(self, tokens: TokenSet) -> TokenSet:
        """Every token is its own input."""
        return tokens.put_aside(left=Left(places(tokens.x)))

    def after_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """Drops the patches of the lowest scores."""
        if block >= self.fields.modules(self.backbone.depth):
            return tokens
        if block >= len(self.cropr):
            raise UserError(
                "cropr: a model made with last_layer_fusion cannot go without for a call"
            )
        so_far, module = tokens.aside["left"], self.cropr[block]
        detached = jax.lax.stop_gradient(tokens.x.astype(jnp.float32))
        logits = so_far.logits
        if tokens.train:
            logits = (*logits, module.head(module.cross_attn(detached)))
        scores = jax.lax.stop_gradient(module.cross_attn.scores(detached))[:, tokens.prefix :]
        count = tokens.patches - self.fields.leaving(block, self.backbone.depth, tokens)
        order = order_by(scores)
        leave = order[:, count:] + tokens.prefix
        left = (gather(tokens.x, leave), gather(so_far.inputs, leave))
        inputs = gather(so_far.inputs, with_prefix(order[:, :count], tokens.prefix))
        after = keep(tokens, order[:, :count], block)
        return after.put_aside(left=Left(inputs, (*so_far.left, left), logits))

    def before_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """All tokens again before the last block, with last-layer fusion."""
        if not self.fields.last_layer_fusion or block != self.backbone.depth - 1:
            return tokens
        so_far = tokens.aside["left"]
        x = jnp.concatenate([tokens.x, *(x for x, _ in so_far.left)], axis=1)
        inputs = jnp.concatenate([so_far.inputs, *(index for _, index in so_far.left)], axis=1)
        source = scatter_set(jnp.zeros_like(inputs), inputs, places(x))
        place = None if tokens.place is None else inputs
        return tokens.replace(x=x, source=source, place=place)

    def aux_logits(self, tokens: TokenSet) -> dict[str, Float[Array, "b k"]]:
        """`cropr_0`, `cropr_1`, ..., of each block's classifier."""
        logits = tokens.aside["left"].logits
        return {f"cropr_{block}": each for block, each in enumerate(logits)}
