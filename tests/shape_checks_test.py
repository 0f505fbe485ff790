"""What the suite's shape checks find: wrong shapes and dtypes, in every function made anew too."""

import jax.numpy as jnp
import jaxtyping
import pytest
from shape_checks import when_called

from evovit_jax.reduction import tokens


def test_the_package_is_checked():
    index = jnp.zeros((2, 1), jnp.int32)
    with pytest.raises(jaxtyping.TypeCheckError, match="membership"):
        tokens.membership(index.astype(jnp.float32), 3)
    with pytest.raises(jaxtyping.TypeCheckError, match="membership"):
        tokens.membership(index[0], 3)


def test_a_function_that_is_made_again_has_its_own_shapes():
    def made(name):
        def double(x):
            return x * 2

        shaped = jaxtyping.Float[jaxtyping.Array, name]
        double.__annotations__ = {"x": shaped, "return": shaped}
        return jaxtyping.jaxtyped(double, typechecker=when_called)

    for name, good, bad in [("a b", (2, 3), (2,)), ("a", (2,), (2, 3)), ("a b", (2, 3), (2,))]:
        assert made(name)(jnp.ones(good)).shape == good
        with pytest.raises(jaxtyping.TypeCheckError):
            made(name)(jnp.ones(bad))
