"""GELU on each platform."""

import jax
import jax.numpy as jnp
import numpy as np
from both_platforms import on_both

from evovit_jax.hardware.gelu import gelu

X = jax.random.normal(jax.random.key(0), (5, 7))


def test_gelu_keeps_its_input_alone_for_the_backward_pass():
    _, pull = jax.vjp(gelu, X)
    kept = [leaf for leaf in jax.tree.leaves(pull) if jnp.shape(leaf) == X.shape]
    assert len(kept) == 1
    np.testing.assert_array_equal(kept[0], X)


def test_gelu_is_the_exact_one():
    def exact(x):
        return jax.nn.gelu(x, approximate=False)

    np.testing.assert_allclose(gelu(X), exact(X), rtol=1e-6, atol=3e-7)
    slope, wanted = (jax.grad(lambda x, f=f: f(x).sum())(X) for f in (gelu, exact))
    np.testing.assert_allclose(slope, wanted, rtol=1e-5, atol=1e-7)
    # In bfloat16 what is near -1 must not be rounded before 1 is added.
    low = jnp.asarray([-3.0, -2.5, -2.0], jnp.bfloat16)
    np.testing.assert_allclose(
        gelu(low).astype(jnp.float32), exact(low.astype(jnp.float32)), rtol=4e-3
    )


def test_gelu_of_bfloat16_on_a_tpu_is_exact_to_rounding():
    x = jnp.linspace(-12, 12, 20001).astype(jnp.bfloat16)
    ours, _ = on_both(gelu, x)
    exact = jax.nn.gelu(x.astype(jnp.float32), approximate=False)
    assert ours.dtype == jnp.bfloat16
    error = np.abs(np.asarray(ours, np.float32) - exact)
    assert (error <= 3e-5 + 2**-8 * np.abs(exact)).all()
    slope, wanted = on_both(jax.grad(lambda x: gelu(x).astype(jnp.float32).sum()), x)
    np.testing.assert_allclose(slope.astype(np.float32), wanted.astype(np.float32), atol=0.01)
