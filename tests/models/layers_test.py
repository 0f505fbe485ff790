"""What the backbones share: its own tests are those that no whole network shows."""

import jax
import jax.numpy as jnp
import numpy as np
from both_platforms import assert_close, on_both
from flax import nnx

from evovit_jax.models import layers
from evovit_jax.reduction.tokens import start_tokens


def test_patches_are_a_convolution():
    embed = layers.PatchEmbed(4, 3, 6, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(embed)
    images = jax.random.normal(jax.random.key(2), (2, 8, 12, 3))
    assert_close(on_both(lambda s, x: nnx.merge(graphdef, s)(x), state, images), atol=1e-6)


def test_the_mean_of_the_patches_leaves_the_class_token_out():
    x = jax.random.normal(jax.random.key(3), (2, 5, 6)).astype(jnp.bfloat16).at[:, 0].set(1e4)
    means = on_both(lambda x: layers.mean_of_patches(start_tokens(x, prefix=1, grid=(2, 2))), x)
    wanted = np.asarray(x, np.float32)[:, 1:].mean(axis=1)
    for mean in means:
        assert mean.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(mean, np.float32), wanted, rtol=2**-8)
