"""ATS: samples tokens by inverse transform of their scores; how many stay depends on the image.

Fayyaz et al., "Adaptive Token Sampling for Efficient Vision Transformers", ECCV 2022
(arXiv:2111.15667). Between attention and feed-forward of a location the score of patch token j is
`sum over heads of a_j * |v_j|`, class attention times the length of the value, normalised to a sum
of 1 (Section 3.1, equation 4; the sum + 1e-6). Its cumulative sum over the tokens in their order
is sampled at fixed points `p_j = (2 j + 1) / (2 K)` (Section 3.2): each takes the token whose
cumulative score is nearest, the first on ties. A token that is taken more than once stays once.

K is `int(patches * keep_rate**k) + 1` at the k-th location, and the points are those that
`arange(1 / (2 K), (2 K - 1) / (2 K), 1 / K)` gives, K - 1 for most K and K for some, as in the
token-reduction study (Haurum et al., 2023).

Shapes are static: a location leaves as many places as it has points. The tokens that were taken
come first, in their order; the places that are over are masked from then on, in attention and in
pooling. So on a device that computes in batches the time is that of the static maximum.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from evovit_jax.parallel.per_device import per_device
from evovit_jax.reduction.at_locations import Located, RankedFields
from evovit_jax.reduction.attention_request import key_mask
from evovit_jax.reduction.base import AttentionRequest, AttentionView
from evovit_jax.reduction.card import OPTIONAL, Card
from evovit_jax.reduction.tokens import TokenSet, keep, mask_out, membership


class ATS(Located):
    """Adaptive sampling by class attention and value lengths."""

    card = Card(
        title="ATS",
        paper="2111.15667",
        summary="samples tokens; their number depends on the image, the shapes do not",
        training=OPTIONAL,
        score="class attention times length of the values",
        fused_attention="until tokens are masked",
        equal_to=("JoakimHaurum/TokenReduction",),
        notes="MIT",
    )
    Fields = RankedFields
    needs_class_token = True

    def points(self, location: int, tokens: TokenSet) -> Float[np.ndarray, " m"]:
        """Where the cumulative score is sampled."""
        k = self.grid_count(location, tokens.grid) + 1
        return np.arange(1 / (2 * k), (2 * k - 1) / (2 * k), 1 / k).astype(np.float32)

    def count(self, location: int, tokens: TokenSet) -> int:
        """The places that a location leaves: the most tokens that can stay."""
        return min(len(self.points(location, tokens)), tokens.patches)

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """Class attention and values where tokens are sampled; the mask once there is one."""
        needs = {"class_row", "values"} if self.reduces(block, tokens) else ()
        bias = None if tokens.mask is None else key_mask(tokens.mask)
        return dataclasses.replace(self.class_row(), needs=frozenset(needs), bias=bias)

    def after_attention(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """Keeps the sampled tokens."""
        if not self.reduces(block, tokens):
            return tokens
        location, prefix = self.location(block), tokens.prefix
        scores = value_scores(attention, prefix)
        valid = None if tokens.mask is None else tokens.mask[:, prefix:]
        taken = sampled(scores, valid, self.points(location, tokens))
        # Sampled tokens first, in their order; a stable sort of what is not sampled.
        index, valid = places(taken, self.count(location, tokens))
        tokens = keep(tokens, index, block)
        valid = jnp.pad(valid, ((0, 0), (prefix, 0)), constant_values=True)
        return mask_out(tokens, valid, block)


def value_scores(attention: AttentionView, prefix: int) -> Float[Array, "b p"]:
    """The sum over heads of class attention times the value's length, normalised."""
    values = attention.values[:, :, prefix:].astype(jnp.float32)
    lengths = jnp.linalg.norm(values, axis=-1)
    scores = (attention.class_row[:, :, prefix:] * lengths).sum(axis=1)
    return scores / (scores.sum(axis=1, keepdims=True) + 1e-6)


def sampled(
    scores: Float[Array, "b p"], valid: Bool[Array, "b p"] | None, points: Float[np.ndarray, " m"]
) -> Bool[Array, "b p"]:
    """Which tokens have the cumulative score nearest to one of the points."""
    cumulative = jnp.cumsum(scores, axis=1)
    distance = jnp.abs(cumulative[:, None, :] - jnp.asarray(points)[None, :, None])
    if valid is not None:
        distance = jnp.where(valid[:, None, :], distance, jnp.inf)
    index = distance.argmin(axis=2).astype(jnp.int32)
    return membership(index, scores.shape[1])


def places(
    taken: Bool[Array, "b p"], count: int
) -> tuple[Int[Array, "b {count}"], Bool[Array, "b {count}"]]:
    """The tokens that were taken, in their order, in `count` places, and which places they fill."""
    order = per_device(functools.partial(jnp.argsort, axis=1, stable=True), ~taken)
    filled = jnp.arange(count)[None] < taken.sum(axis=1)[:, None]
    return order[:, :count].astype(jnp.int32), filled
