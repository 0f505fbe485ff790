"""What the backbones share: its own tests are those that no whole network shows."""

import jax
import jax.numpy as jnp
import numpy as np

from evovit_jax.models import layers

X = jax.random.normal(jax.random.key(0), (5, 7))


def test_gelu_keeps_its_input_alone_for_the_backward_pass():
    _, pull = jax.vjp(layers.gelu, X)
    kept = [leaf for leaf in jax.tree.leaves(pull) if jnp.shape(leaf) == X.shape]
    assert len(kept) == 1
    np.testing.assert_array_equal(kept[0], X)


def test_gelu_is_the_exact_one():
    def exact(x):
        return jax.nn.gelu(x, approximate=False)

    np.testing.assert_allclose(layers.gelu(X), exact(X), rtol=1e-6)
    slope, wanted = (jax.grad(lambda x, f=f: f(x).sum())(X) for f in (layers.gelu, exact))
    np.testing.assert_allclose(slope, wanted, rtol=1e-5, atol=1e-7)
