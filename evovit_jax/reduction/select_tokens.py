"""Fewer tokens at an encoder's output, for a language model that reads them (VisionZip).

Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025
(arXiv:2412.04467), Section 3. The tokens of the largest scores, the dominant ones, stay as they
are; the others are merged into a few contextual ones: some of them, evenly spaced, are targets, and
each of the rest goes into the target whose key is the most similar to its own.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Shaped

from evovit_jax.errors import UserError
from evovit_jax.reduction.matching import best_edges, products, unit
from evovit_jax.reduction.tokens import ascending, gather, group_sum, order_by

# Of each 64 tokens that are left, as in the paper's settings of 64, 128 and 192.
CONTEXTUAL_OF_64 = 10


def select_tokens(
    features: Shaped[ArrayLike, "..."],
    scores: Shaped[ArrayLike, "..."],
    keys: Shaped[ArrayLike, "..."],
    k: int | Sequence[int],
    *,
    add_target: bool = False,
) -> Float[Array, "b k d"]:
    """k tokens of n: the dominant ones, then the contextual ones, both in their old order.

    Args:
      features: `[b, n, d]`, what the language model would read, patches only.
      scores: `[b, n]`, how important each token is, such as the class token's attention to it or,
        without a class token, the attention that it receives, the mean over heads. Ties go to the
        earlier.
      keys: `[b, n, c]`, of the layer that the scores are from, the mean over heads. They decide
        what is similar, by cosine, and get no gradient.
      k: how many tokens to return, 10 of each 64 of them contextual, or
        (dominant tokens, contextual tokens). Without contextual tokens the others are dropped; with
        k = n nothing changes.
      add_target: what a contextual token is: the mean of the target and of all that go into it, or,
        if true as in the official code, the target plus the mean of those that go into it.

    Raises:
      UserError: shapes that do not fit one another, or a k that n tokens do not have.
    """
    check_shapes(features, scores, keys)
    dominant, contextual = _counts(k, np.shape(features)[1])
    x, scores, keys = jnp.asarray(features), jnp.asarray(scores), jnp.asarray(keys)
    return _select(x, scores, keys, dominant, contextual, add_target)


def _select(
    features: Float[Array, "b n d"],
    scores: Float[Array, "b n"],
    keys: Float[Array, "b n c"],
    dominant: int,
    contextual: int,
    add_target: bool,
) -> Float[Array, "b k d"]:
    n = features.shape[1]
    order = order_by(scores.astype(jnp.float32))
    kept = gather(features, ascending(order[:, :dominant]))
    if not contextual:
        return kept
    rest = ascending(order[:, dominant:])
    places = np.arange(n - dominant)
    targets = places[:: len(places) // contextual][:contextual]
    others = np.setdiff1d(places, targets)
    x, metric = gather(features, rest).astype(jnp.float32), gather(unit(keys), rest)
    nearest = best_edges(products(metric[:, others], metric[:, targets])).partner
    ones = jnp.ones((*nearest.shape, 1), jnp.float32)
    sums = group_sum(jnp.concatenate([x[:, others], ones], axis=-1), nearest, contextual)
    gain, count = sums[..., :-1], sums[..., -1:]
    if add_target:
        merged = x[:, targets] + gain / jnp.maximum(count, 1)
    else:
        merged = (x[:, targets] + gain) / (1 + count)
    return jnp.concatenate([kept, merged.astype(features.dtype)], axis=1)


def check_shapes(*arrays: Shaped[ArrayLike, "..."]) -> None:
    """Refuses features, scores and keys that are not of the same batch and tokens.

    Raises:
      UserError: they are not `[b, n, d]`, `[b, n]` and `[b, n, c]`.
    """
    shapes = [tuple(np.shape(array)) for array in arrays]
    if [len(shape) for shape in shapes] != [3, 2, 3] or len({shape[:2] for shape in shapes}) > 1:
        raise UserError(
            "select_tokens takes features [batch, tokens, channels], scores [batch, tokens] and "
            "keys [batch, tokens, channels of a head], got {}, {} and {}".format(*shapes)
        )


def _counts(k: int | Sequence[int], n: int) -> tuple[int, int]:
    """(dominant, contextual) tokens of n."""
    if isinstance(k, int | np.integer):
        contextual = 0 if k == n else int(k) * CONTEXTUAL_OF_64 // 64
        counts = (int(k) - contextual, contextual)
    else:
        counts = tuple(k)
    whole = len(counts) == 2 and all(isinstance(count, int | np.integer) for count in counts)
    if not whole or min(counts) < 0 or not 0 < sum(counts) <= n:
        raise UserError(
            f"select_tokens k={k!r} must be a number of tokens from 1 to {n}, "
            "or (dominant, contextual) tokens that add up to one"
        )
    return int(counts[0]), int(counts[1])
