"""Rotary positions: what scalar products see of two places, and tokens that have none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evovit_jax.models.rotary import rotation_of, turned


def rotation(kind, place, grid=(4, 6), prefix=2, reference=(4, 6)):
    settings = {"prefix": prefix, "grid": grid, "head_dim": 8, "reference": reference}
    temperature = {"dinov3": 100.0, "axial": 10000.0}[kind]
    place = jnp.asarray(place, jnp.int32)[None]
    return rotation_of(kind, place, temperature=temperature, **settings)


def logit(kind, q, k, places, **settings):
    """The scalar product of a query and a key in two places."""
    turn = rotation(kind, places, **settings)
    x = turned(jnp.stack([q, k])[None, None], turn)[0, 0]
    return float(x[0] @ x[1])


@pytest.mark.parametrize("kind", ["dinov3", "axial"])
def test_products_see_the_distance_of_two_places_only(kind):
    q, k = jax.random.normal(jax.random.key(0), (2, 8))
    # One row down and two columns on, from two corners; places count the two class tokens.
    near = logit(kind, q, k, [2, 2 + 6 + 2])
    assert logit(kind, q, k, [2 + 6 + 1, 2 + 12 + 3]) == pytest.approx(near, abs=1e-5)
    assert abs(logit(kind, q, k, [2, 2 + 12 + 1]) - near) > 1e-3


@pytest.mark.parametrize("kind", ["dinov3", "axial"])
def test_tokens_without_a_place_and_class_tokens_are_not_turned(kind):
    x = jax.random.normal(jax.random.key(0), (1, 3, 4, 8))
    turn = rotation(kind, [0, 1, -1, 5])
    after = turned(x, turn)
    np.testing.assert_array_equal(after[:, :, :3], x[:, :, :3])
    assert float(jnp.abs(after[:, :, 3] - x[:, :, 3]).max()) > 1e-3
    first = turned(jnp.swapaxes(x, 1, 2), turn, tokens_first=True)
    np.testing.assert_array_equal(jnp.swapaxes(first, 1, 2), after)


def test_axial_coordinates_are_of_the_reference_grid():
    """Twice as many patches in twice the pixels: every second one is where it was."""
    small, large = (
        rotation("axial", range(2, 2 + n * n), grid=(n, n), reference=(3, 3)) for n in (3, 6)
    )
    places = large.cos.reshape(6, 6, 8)[1::2, 1::2].reshape(9, 8)
    np.testing.assert_allclose(places, small.cos[0], atol=1e-6)
