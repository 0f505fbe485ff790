"""Large batches in chunks give what the whole batch gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import run_model, some_slow

from evovit_jax import create_model
from evovit_jax.hardware.platforms import compiling_for
from evovit_jax.inference import compiled

TINY = {"image_size": 32, "embed_dim": 24, "num_heads": 3, "depth": 3, "num_classes": 5}


def images(n: int):
    return jax.random.normal(jax.random.key(0), (n, 32, 32, 3))


@pytest.mark.parametrize("n", some_slow([3, 4, 11], {3, 11}))
def test_chunks_change_nothing(n):
    model = create_model("evo_deit_tiny_patch16_224", "evo,first_block=1", **TINY)
    found = compiled.jit_inference(model, chunk=4)(images(n))
    assert found.shape == (n, 5)
    np.testing.assert_allclose(found, run_model(model, images(n))[0], rtol=1e-5, atol=1e-5)


def test_larger_images_go_fewer_at_once():
    assert [compiled.default_chunk(size) for size in (224, 384, 2000)] == [8, 2, 1]


def test_chunks_are_those_of_the_platform_that_is_compiled_for():
    with compiling_for("gpu"):
        assert compiled.default_chunk(224) is None
    with compiling_for("tpu"):
        assert compiled.default_chunk(224) == 64
    look = compiled.jit_inference(create_model("deit_tiny_patch16_224", **TINY))  # on this CPU
    many = jax.ShapeDtypeStruct((400, 32, 32, 3), jnp.float32)
    assert "scan" in str(jax.make_jaxpr(look)(many))
    with compiling_for("gpu"):
        assert "scan" not in str(jax.make_jaxpr(look)(many))


def test_only_a_larger_batch_is_cut():
    seen = []

    def function(x):
        seen.append(x.shape[0])
        return {"sum": x.sum(axis=(1, 2, 3)), "first": x[:, 0, 0, 0]}

    whole = function(images(7))
    seen.clear()
    found = compiled.chunked(function, 3)(images(7))
    assert set(seen) == {3, 1}
    for name, value in whole.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-4)  # sums near 0
    seen.clear()
    compiled.chunked(function, 8)(images(7))
    compiled.chunked(function, None)(images(7))
    assert set(seen) == {7}


def test_a_sharded_batch_is_left_whole():
    seen = []
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        compiled.chunked(lambda x: seen.append(len(x)), 2)(images(8))
    assert seen == [8]


def test_batch_norm_is_folded():
    settings = {"image_size": 32, "embed_dim": (16, 24, 32), "key_dim": 8, "num_heads": (2, 3, 4)}
    model = create_model("levit_128s", depth=(1, 1, 1), num_classes=5, **settings)
    model.head.bn.mean[...] = jnp.full_like(model.head.bn.mean[...], 0.5)
    found = compiled.jit_inference(model)(images(2))
    np.testing.assert_allclose(found, run_model(model, images(2))[0], rtol=1e-4, atol=1e-5)
    assert model.head.bn is not None


def test_settings_of_the_reducer_reach_the_call():
    model = create_model("evo_deit_tiny_patch16_224", "evo,first_block=1,keep_rate=0.5", **TINY)
    kept = compiled.jit_inference(model, reduction={"keep_rate": 1.0})(images(2))
    want = run_model(model, images(2), reduction={"keep_rate": 1.0})[0]
    np.testing.assert_allclose(kept, want, atol=1e-5)
    assert not np.allclose(kept, compiled.jit_inference(model)(images(2)), atol=1e-5)
