"""A-ViT: each token halts at a depth of its own, and is a mean of what it was until then.

Yin et al., "A-ViT: Adaptive Tokens for Efficient Vision Transformer", CVPR 2022 (arXiv:2112.07658),
written from the paper and the behaviour of the authors' code. After block l, a token's halting
score is `h_l = sigmoid(scale * x[0] - centre)` of its first channel, in the last block 1. It halts
in block N, the first in which the sum of its scores is more than `1 - epsilon`. From then on
nothing attends to it. In the end it is

    sum of h_l x_l over l < N, and r x_N,    r = 1 - sum of h_l over l < N

Class tokens halt likewise. How many halt where depends on the image, so here tokens are masked and
save no time; the authors' code that removes them was not published. There are no parameters.

Training adds two losses: `ponder`, the mean over tokens of N + r (weight 5e-4), and `prior`, the
divergence of the blocks' mean scores, in shares of their sum, from a Gaussian around block
`prior_depth` (weight 1e-3), over the number of blocks as in the authors' code. There the mean
leaves out the first image, and the Gaussian stands at block 8 of 12.

Published: DeiT-T 71.4 and, with `centre=75`, DeiT-S 78.8, at 0.8 and 3.6 GMACs if halted tokens
left.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from evovit_jax.errors import UserError
from evovit_jax.reduction import base
from evovit_jax.reduction.base import NOTHING_ASKED, AttentionRequest, Backbone, Reducer
from evovit_jax.reduction.card import NEEDED, Card
from evovit_jax.reduction.tokens import TokenSet, mask_out

HIDDEN = -1000.0  # what attention to a halted token gets added
PRIOR_SUM = 0.98  # of the prior up to its middle
SMALLEST_SHARE, LARGEST_SHARE = 0.01, 0.99


@dataclasses.dataclass(frozen=True)
class AViTFields(base.Fields):
    """Settings of A-ViT.

    Attributes:
      scale: what the first channel is multiplied by.
      centre: what is subtracted from it then.
      epsilon: how much less than 1 the sum of scores is at which a token halts.
      prior_depth: the block at which most tokens are to halt; by default after two thirds of them.
    """

    scale: float = 10.0
    centre: float = 30.0
    epsilon: float = 0.01
    prior_depth: int | None = None

    def __post_init__(self):
        if not 0 < self.epsilon < 1:
            raise UserError(f"avit epsilon must be in (0, 1), got {self.epsilon!r}")

    def check(self, backbone: Backbone) -> None:
        """Refuses a prior around a block that is not there."""
        if self.prior_depth is not None and not 1 <= self.prior_depth <= backbone.depth:
            raise UserError(
                f"avit prior_depth must be in 1..{backbone.depth}, got {self.prior_depth}"
            )


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["active", "total", "mean", "blocks", "scores"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Halting:
    """How far the tokens are.

    Attributes:
      active: bool `[b, n]`, which have not halted.
      total: float32 `[b, n]`, the sum of each token's scores until it halts.
      mean: float32 `[b, n, d]`, the weighted sum of what it was so far.
      blocks: float32 `[b, n]`, through how many blocks it went, and what was left of 1.
      scores: the mean score in each block so far.
    """

    active: Bool[Array, "b n"]
    total: Float[Array, "b n"]
    mean: Float[Array, "b n d"]
    blocks: Float[Array, "b n"]
    scores: tuple[Float[Array, ""], ...] = ()

    def after(
        self, x: Float[Array, "b n d"], scores: Float[Array, "b n"], threshold: float, last: bool
    ) -> "Halting":
        """After one more block, which made `x`."""
        total = self.total + jnp.where(self.active, scores, 0.0)
        goes_on = self.active & (total < threshold) & (not last)
        halts = self.active & ~goes_on
        weight = jnp.where(goes_on, scores, jnp.where(halts, 1 - self.total, 0.0))
        return Halting(
            active=goes_on,
            total=total,
            mean=self.mean + weight[..., None] * x.astype(jnp.float32),
            blocks=self.blocks + self.active.astype(jnp.float32) + jnp.where(halts, weight, 0.0),
            scores=(*self.scores, scores.mean()),
        )


class AViT(Reducer):
    """Tokens that halt, masked."""

    card = Card(
        title="A-ViT",
        paper="2112.07658",
        summary="each token halts at a depth of its own; masked, so nothing gets faster",
        training=NEEDED,
        score="the first channel of the token",
        fused_attention="no",
        notes="the authors' code is under the NVIDIA Source Code License",
    )
    Fields = AViTFields
    loss_names = ("ponder", "prior")

    def start(self, tokens: TokenSet) -> TokenSet:
        """No token has halted."""
        none = jnp.zeros(tokens.x.shape[:2])
        mean = jnp.zeros(tokens.x.shape)
        return tokens.put_aside(halting=Halting(none == 0, none, mean, none))

    def before_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """Halted tokens are zero."""
        if not block:
            return tokens
        active = tokens.aside["halting"].active[..., None]
        return tokens.replace(x=jnp.where(active, tokens.x, jnp.zeros_like(tokens.x)))

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """Attention to what has not halted."""
        if not block:
            return NOTHING_ASKED
        active = tokens.aside["halting"].active[:, None, None]
        return AttentionRequest(bias=jnp.where(active, 0.0, HIDDEN))

    def after_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """Adds to the means, and lets tokens halt."""
        fields, last = self.fields, block == self.backbone.depth - 1
        first = tokens.x[:, :, 0].astype(jnp.float32)
        scores = jax.nn.sigmoid(fields.scale * first - fields.centre)
        halting = tokens.aside["halting"].after(tokens.x, scores, 1 - fields.epsilon, last)
        if not last:
            class_tokens = jnp.arange(tokens.x.shape[1])[None] < tokens.prefix
            tokens = mask_out(tokens, halting.active | class_tokens, block)
        return tokens.put_aside(halting=halting)

    def finish(self, tokens: TokenSet) -> TokenSet:
        """The means, of all tokens."""
        return tokens.replace(x=tokens.aside["halting"].mean.astype(tokens.x.dtype), mask=None)

    def losses(self, tokens: TokenSet) -> dict[str, Float[Array, ""]]:
        """`ponder`, how deep tokens go, and `prior`, how far that is from what is wanted."""
        halting, depth = tokens.aside["halting"], self.backbone.depth
        middle = self.fields.prior_depth or max(1, depth * 2 // 3)
        wanted = gaussian(depth, middle)
        shares = jnp.stack(halting.scores)
        shares = jnp.clip(shares / shares.sum(), SMALLEST_SHARE, LARGEST_SHARE)
        divergence = (wanted * (np.log(wanted) - jnp.log(shares))).sum() / depth
        return {"ponder": halting.blocks.mean(), "prior": divergence}


def gaussian(depth: int, middle: int) -> Float[np.ndarray, " depth"]:
    """A Gaussian of width 1 around block `middle`; what is before that sums to `PRIOR_SUM`."""
    values = np.exp(-((np.arange(depth) - middle) ** 2) / 2)
    return (values * PRIOR_SUM / values[:middle].sum()).astype(np.float32)
