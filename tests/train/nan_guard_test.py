"""Finding what is not finite."""

import jax.numpy as jnp
import pytest

from evovit_jax.errors import UserError
from evovit_jax.train import nan_guard


def test_the_first_of_several():
    scalars = [jnp.float32(x) for x in (1.0, jnp.inf, jnp.nan)]
    assert int(nan_guard.first_bad(scalars)) == 1
    assert int(nan_guard.first_bad(scalars[:1])) == nan_guard.ALL_FINITE


def test_names_follow_the_order_of_looking():
    names = nan_guard.names_of(["loss"], ["a", "b"])
    assert names[0] == "loss"
    assert names[1:3] == ["the gradient of a", "the gradient of b"]
    assert names[4] == "the update of b"


def test_norms():
    squares = nan_guard.squared_norms({"a": jnp.array([3.0]), "b": jnp.array([[4.0]])})
    assert float(nan_guard.norm_of(squares)) == 5


def test_the_message_names_tensor_step_and_checkpoint():
    with pytest.raises(UserError, match=r"^loss is not finite at step 7; checkpoint 5 is good"):
        nan_guard.stop("loss", 7, 5)
    with pytest.raises(UserError, match="there is no checkpoint"):
        nan_guard.stop("loss", 7, None)


def test_bad_values_to_start_from():
    params = {"b": jnp.array([1.0, jnp.nan]), "a": jnp.array([1.0])}
    with pytest.raises(UserError, match=r"^b of FILE is not finite"):
        nan_guard.check_values(params, "FILE")
    nan_guard.check_values({"a": params["a"]}, "FILE")
