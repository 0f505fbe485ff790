"""Stochastic depth: residual branches that are left out for some images in training.

Tested in tests/models/vit_test.py.
"""

import jax
from jaxtyping import Array, Float, Key

from evovit_jax.reduction.tokens import TokenSet


def drop_path(
    x: Float[Array, "b n d"], rate: float, key: Key[Array, ""] | None
) -> Float[Array, "b n d"]:
    """Stochastic depth: a residual branch is zero for an image with probability `rate`.

    The branches that stay are divided by `1 - rate` (Huang et al., 2016; timm). Without a key, as
    in inference, `x` is returned as it is.
    """
    if key is None or rate == 0:
        return x
    stay = jax.random.bernoulli(key, 1 - rate, (x.shape[0], 1, 1))
    return x * (stay.astype(x.dtype) / (1 - rate))


def dropped_branch(
    tokens: TokenSet, branch: Float[Array, "b n d"], rate: float, number: int
) -> Float[Array, "b n d"]:
    """Residual branch number `number` of the network, dropped at `rate` in a training pass."""
    key = tokens.key if tokens.train else None
    return drop_path(branch, rate, None if key is None else jax.random.fold_in(key, number))
