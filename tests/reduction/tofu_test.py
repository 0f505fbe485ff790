"""ToFu's norms and counts."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from evovit_jax.reduction import token_counts
from evovit_jax.reduction.base import Backbone
from evovit_jax.reduction.matching import Merge
from evovit_jax.reduction.tofu import ToFu, ToFuFields, fused


def test_a_mean_is_lengthened_by_the_longest_over_the_kept_one():
    x = jnp.asarray([[[3.0, 0.0], [0.0, 1.0], [0.0, 5.0]]])
    merge = Merge(kept=jnp.asarray([[0, 1]]), merged=jnp.asarray([[2]]), into=jnp.asarray([[1]]))
    # The mean of (0, 1) and (0, 5) is (0, 3); 5 is the largest norm, 1 that of the one kept.
    np.testing.assert_allclose(fused(x, merge), [[[3.0, 0.0], [0.0, 15.0]]], rtol=1e-6)


def test_counts_round_as_the_published_port_does():
    backbone = Backbone(12, (12,), (3,), (14, 14), 1, (12,))
    reducer = ToFu(backbone, ToFuFields(keep_rate=0.9), rngs=nnx.Rngs(0))
    # floor(T - T * 0.9) of 197, 178, ...: 110 - 99.00000000000001 is 10.99 and takes 10.
    counts = [count.leaving for count in token_counts.count(reducer, (14, 14))]
    assert counts[:6] == [178, 161, 145, 131, 118, 107]
