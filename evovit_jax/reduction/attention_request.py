"""What a reducer asks of one block's attention, and what it is shown.

Tested in tests/reduction/methods_test.py.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from evovit_jax.reduction.tokens import TokenSet


@dataclasses.dataclass(frozen=True)
class AttentionRequest:
    """What a reducer wants of one block's attention.

    Attributes:
      needs: any of "class_row", "weights", "keys", "raw_keys", "values", "inputs"; a block of which
        nothing is asked may use a fused kernel.
      bias: float32, added to the attention logits; broadcasts to `[b, h, q, k]`, q and k the
        numbers of queries and keys (the same in a block).
      normalise: replaces the softmax: float32 logits `[b, h, q, k]` to weights of that shape.
      edit: changes the normalised tokens `[b, n, d]` that queries, keys and values are made of.
      weights: float32 `[b, h, n, n]`, instead of those of queries and keys, which are not computed.
      look_ahead: for methods that change the tokens before their own attention adds to them: of
        the set and of the map under `bias`, the set that goes on and the request under which it
        attends. This and the last two are for flat networks only.
      score: what "class_row" is to show; a network without a class token has other scores, all of
        them shares of the tokens. "class" is the class token's attention; "received" the attention
        that a token receives, the mean over queries; "map" the attention of the network's pooling
        head to the tokens after the block's attention; "key_norm" the length of its keys; "shift"
        the length of what the block's attention adds to it. One of `Backbone.ranking`.
      queries: how many of the first tokens go on from the block, None for all; all are keys and
        values. A block may return these only.
    """

    needs: frozenset[str] = frozenset()
    bias: Float[Array, "#b #h #q #k"] | None = None
    normalise: Callable[[Array], Array] | None = None
    edit: Callable[[Array], Array] | None = None
    weights: Float[Array, "b h n n"] | None = None
    look_ahead: (
        Callable[[TokenSet, "AttentionView"], tuple[TokenSet, "AttentionRequest"]] | None
    ) = None
    score: str = "class"
    queries: int | None = None

    def reads_no_other_rows(self) -> bool:
        """Whether the first queries alone give all that is asked, and may be given alone."""
        rows_of_others = "weights" in self.needs or (
            "class_row" in self.needs and self.score not in ("class", "key_norm")
        )
        alike = self.bias is None or self.bias.shape[-2] == 1
        replaced = self.normalise or self.weights is not None or self.look_ahead
        return alike and not (rows_of_others or replaced or self.queries is not None)


NOTHING_ASKED = AttentionRequest()
CLASS_ROW = AttentionRequest(needs=frozenset({"class_row"}))


def key_mask(mask: Bool[Array, "b n"]) -> Float[Array, "b 1 1 n"]:
    """The bias of an `AttentionRequest` under which nothing attends to tokens out of `mask`."""
    return jnp.where(mask, 0.0, -jnp.inf)[:, None, None]


def softmax_among(
    logits: Float[Array, "b h q n"], allowed: Float[Array, "b 1 #q n"], eps: float
) -> Float[Array, "b h q n"]:
    """The softmax over the keys that are `allowed`, 1 or 0, in training: both have gradients.

    `(e * allowed + eps / n) / (sum(e * allowed) + eps)` with `e = exp(logit - max)`, the largest of
    all keys (Rao et al., 2021, equation 11).
    """
    largest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = jnp.exp(logits - largest) * allowed
    return (weights + eps / logits.shape[-1]) / (weights.sum(axis=-1, keepdims=True) + eps)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["class_row", "weights", "keys", "values", "inputs", "raw_keys"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class AttentionView:
    """What a reducer asked to see of one block's attention; None where it did not ask.

    Attributes:
      class_row: float32 `[b, h, n]`, the (first) class token's weights over all tokens, or what
        else the request has as its `score`; that may have one head.
      weights: float32 `[b, h, q, n]`, rows are queries and sum to 1.
      keys: `[b, h, n, c]`.
      values: `[b, h, n, c]`.
      inputs: `[b, n, d]`, the normalised tokens that queries, keys and values are made of.
      raw_keys: `[b, h, n, c]`, keys before rotary positions turn them.
    """

    class_row: Float[Array, "b _ n"] | None = None
    weights: Float[Array, "b h q n"] | None = None
    keys: Float[Array, "b h n c"] | None = None
    values: Float[Array, "b h n v"] | None = None
    inputs: Float[Array, "b n d"] | None = None
    raw_keys: Float[Array, "b h n c"] | None = None

    def patch_scores(self, prefix: int) -> Float[Array, "b p"]:
        """The class row of the patch tokens, the mean over heads; float32 `[b, n - prefix]`."""
        assert self.class_row is not None, "the request must ask for the class row"
        return self.class_row[:, :, prefix:].mean(axis=1)
