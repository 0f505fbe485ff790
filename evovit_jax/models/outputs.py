"""What a model returns beside its logits; jit prunes what nobody reads.

Tested in tests/models/vit_test.py.
"""

import dataclasses
import functools

import jax
from jaxtyping import Array, Float, Int


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["features", "token_maps", "aux_logits", "losses", "aux"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Outputs:
    """Everything of a forward pass beside the logits.

    Attributes:
      features: `[b, n, d]`, the tokens after the last norm, class tokens first.
      token_maps: for each block int32 `[b, N]`, where each of the N input tokens (class tokens
        included) was in the block's feed-forward: the index of the token that held it, or
        `-(i + 1)` when it was out of the set since block `i`. The last entry is the map of the
        finished set.
      aux_logits: float32 `[b, k]` of each auxiliary head, by name; in training passes only.
      losses: the reducer's extra losses by name, unweighted; in training passes only.
      aux: what else the reducer has to show, by name.
    """

    features: Float[Array, "b n d"]
    token_maps: tuple[Int[Array, "b N"], ...] = ()
    aux_logits: dict[str, Float[Array, "b k"]] = dataclasses.field(default_factory=dict)
    losses: dict[str, Float[Array, ""]] = dataclasses.field(default_factory=dict)
    aux: dict[str, Array] = dataclasses.field(default_factory=dict)
