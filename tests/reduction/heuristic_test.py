"""Radial patterns: the study's counts, nesting, and taking tokens out as good as masking them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import run_model

import evovit_jax
from evovit_jax.reduction.base import Backbone
from evovit_jax.reduction.heuristic import Heuristic, HeuristicFields, linspace, radii


def heuristic(grid=(14, 14), depth=12, **fields):
    backbone = Backbone(depth, (12,), (3,), grid, 1, (depth,))
    return Heuristic(backbone, HeuristicFields(**fields), rngs=nnx.Rngs(0))


def counts(reducer, grid=(14, 14)):
    return [int(reducer.inside(i, grid).sum()) for i in range(len(reducer.locations))]


def test_counts_are_the_nearest_that_a_radius_gives():
    assert counts(heuristic()) == [140, 96, 68]  # 137, 96 and 67 were wanted
    assert counts(heuristic(pattern="linf")) == [144, 100, 64]
    found = heuristic().inside(0, (14, 14)).reshape(14, 14)
    np.testing.assert_array_equal(found, found[::-1, ::-1])
    np.testing.assert_array_equal(found, found.T)


def test_contiguous_thresholds_fall_linearly():
    reducer = heuristic(contiguous=True, pattern="l1", min_radius=1.0)
    assert reducer.locations == tuple(range(3, 10))
    kept = counts(reducer)
    assert kept == sorted(kept, reverse=True)
    steps = np.linspace(14.0, 1.0, 9)[1:-1]
    want = [int((radii((14, 14), "l1") <= step + 1e-4).sum()) for step in steps]
    assert kept == want
    from_the_first = heuristic(contiguous=True, pattern="l1", locations=(0, 4))
    assert counts(from_the_first)[0] == 196


def test_each_pattern_lies_within_the_one_before():
    for pattern in ("l1", "l2", "linf"):
        reducer = heuristic((7, 10), pattern=pattern)
        sets = [reducer.inside(i, (7, 10)) for i in range(3)]
        assert (sets[1] <= sets[0]).all()
        assert (sets[2] <= sets[1]).all()


def test_places_are_numbered_as_in_the_study():
    np.testing.assert_allclose(linspace(np.float32(-7), np.float32(7), 14)[[0, 13]], [-7, 7])
    odd = radii((5, 5), "linf").reshape(5, 5)
    assert (odd[0, 0], odd[4, 4]) == (3.0, 2.0)
    np.testing.assert_array_equal(linspace(np.float32(-2), np.float32(2), 1), [-2])


@pytest.mark.slow
@pytest.mark.parametrize("contiguous", [False, True])
def test_taking_tokens_out_equals_masking_them(contiguous):
    made = {"image_size": 20, "patch_size": 4, "embed_dim": 12, "depth": 5, "num_heads": 3}
    spec = {"name": "heuristic", "contiguous": contiguous, "keep_rate": 0.6}
    images = jax.random.normal(jax.random.key(0), (2, 20, 20, 3))
    for name in ("deit_tiny_patch16_224", "evo_deit_tiny_patch16_224"):
        model = evovit_jax.create_model(name, spec, num_classes=4, **made)
        out, masked = (run_model(model, images, reduction={"masked": m}) for m in (False, True))
        np.testing.assert_allclose(out[0], masked[0], atol=1e-5)
        np.testing.assert_array_equal(out[1].token_maps[-1] < 0, masked[1].token_maps[-1] < 0)
        assert out[1].features.shape[1] < masked[1].features.shape[1]


NAMES = ["evo_deit_tiny_patch16_224", "lvvit_s"]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_the_innermost_patches_always_stay(name, masked):
    fields = {"contiguous": True, "locations": (1, 3), "min_radius": 0.1, "masked": masked}
    model = evovit_jax.create_model(
        name, {"name": "heuristic", **fields}, image_size=64, embed_dim=16, depth=4, num_heads=2
    )
    logits, _ = model(jax.random.normal(jax.random.key(0), (1, 64, 64, 3)))
    assert bool(jnp.isfinite(logits).all())
