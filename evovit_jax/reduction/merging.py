"""What the reducers share that merge tokens by their keys between attention and feed-forward.

tests/reduction/methods_test.py tests it in each of them.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from evovit_jax.errors import UserError
from evovit_jax.reduction.at_locations import LocatedFields
from evovit_jax.reduction.base import AttentionRequest, AttentionView, Backbone
from evovit_jax.reduction.in_pyramid import WithinStages
from evovit_jax.reduction.tokens import TokenSet


@dataclasses.dataclass(frozen=True)
class EveryBlockFields(LocatedFields):
    """Settings of a method that leaves a share of the tokens in every block.

    Attributes:
      keep_rate: share of the tokens reaching a location that it leaves, in (0, 1].
      locations: the blocks that reduce; all of them by default.
    """

    keep_rate: float | tuple[float, ...] = 0.9

    def blocks(self, backbone: Backbone) -> tuple[int, ...]:
        """The blocks that reduce.

        Raises:
          UserError: if the locations do not fit the network, or the keep rates the locations.
        """
        if self.locations is None:
            every = dataclasses.replace(self, locations=tuple(range(backbone.depth)))
            return every.blocks(backbone)
        return super().blocks(backbone)


class Merging(WithinStages):
    """A method that matches tokens by their keys."""

    def __init__(self, backbone: Backbone, fields: LocatedFields, *, rngs: nnx.Rngs):
        super().__init__(backbone, fields, rngs=rngs)
        if backbone.is_pyramid and not backbone.prefix:
            raise UserError(
                f"reduction {type(self).__name__.lower()} does not run in this network: its "
                "attention biases belong to places of the grid, and a merged token has none; use "
                "one without them (evo_levit)"
            )

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """Keys where tokens merge; attention in proportion to sizes once they have."""
        raw = self.backbone.rotary and getattr(self.fields, "metric", "keys") == "rawkeys"
        keys = frozenset({"raw_keys" if raw else "keys"})
        needs = keys if self.reduces(block, tokens) else frozenset()
        bias = log_sizes(tokens) if getattr(self.fields, "proportional_attention", True) else None
        return AttentionRequest(needs=needs, bias=bias)


def log_sizes(tokens: TokenSet) -> Float[Array, "b 1 1 n"] | None:
    """The bias under which attention counts a token as often as it has patches; None for ones."""
    return None if tokens.sizes is None else jnp.log(tokens.sizes)[:, None, None]


def mean_keys(attention: AttentionView) -> Float[Array, "b n c"]:
    """Keys, the mean over heads, float32."""
    return mean_heads(attention.keys)


def mean_heads(keys: Float[Array, "b h n c"]) -> Float[Array, "b n c"]:
    """The mean over heads, float32."""
    return keys.astype(jnp.float32).mean(axis=1)
