"""Which of two formulations a program gets: by its platform, not by this process's."""

import functools

import jax
import jax.numpy as jnp
import pytest
from tiny import tiny_config

from evovit_jax.hardware.platforms import by_platform, compiling_for, mesh_platform, platform
from evovit_jax.parallel import sharding


@pytest.fixture(autouse=True)
def unknown_platform():
    with compiling_for(None):
        yield


# Two ways that a test can tell apart.
either = functools.partial(by_platform, tpu=jnp.cos, default=jnp.sin)
one_of_three = functools.partial(either, gpu=jnp.tan)
X = jax.ShapeDtypeStruct((4,), jnp.float32)


@pytest.mark.parametrize(
    ("platform", "kept"), [("tpu", "cosine"), ("cpu", "sine"), ("cuda", "sine")]
)
def test_a_program_has_the_way_of_the_platform_that_it_is_lowered_for(platform, kept):
    text = jax.jit(either).trace(X).lower(lowering_platforms=(platform,)).as_text()
    assert {name for name in ("cosine", "sine") if f"stablehlo.{name} " in text} == {kept}


@pytest.mark.parametrize(("platform", "kept"), [("cuda", "tan"), ("cpu", "sine")])
def test_a_gpu_may_have_a_way_of_its_own(platform, kept):
    text = jax.jit(one_of_three).trace(X).lower(lowering_platforms=(platform,)).as_text()
    assert {name for name in ("cosine", "sine", "tan") if f"stablehlo.{name} " in text} == {kept}
    with compiling_for("gpu" if platform == "cuda" else platform):
        assert float(one_of_three(1.0)) == pytest.approx(float(getattr(jnp, kept[:3])(1.0)))


def test_this_process_computes_the_default():
    assert float(jax.jit(either)(0.0)) == 0
    assert float(either(0.0)) == 0


def test_a_known_platform_decides_while_tracing():
    traced = jax.jit(either)
    with compiling_for("tpu"):
        assert "cond" not in str(jax.make_jaxpr(either)(0.0))
        assert float(traced(0.0)) == 1
    with compiling_for("cpu"):
        assert float(traced(0.0)) == 0
    assert "cond" in str(jax.make_jaxpr(either)(0.0))


def test_the_devices_of_the_mesh_decide_while_tracing():
    assert mesh_platform() is None
    with jax.set_mesh(sharding.make_mesh(tiny_config(), jax.devices()[:2])):
        assert mesh_platform() == "cpu"
        assert "cond" not in str(jax.make_jaxpr(either)(0.0))


def test_this_process_says_the_platform_where_nobody_else_does(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert platform() == "gpu"
    with compiling_for("tpu"):
        assert platform() == "tpu"
    with jax.set_mesh(sharding.make_mesh(tiny_config(), jax.devices()[:2])):
        assert platform() == "cpu"


def test_the_gradient_is_that_of_the_way_taken():
    grad = jax.grad(either)
    assert float(grad(0.5)) == pytest.approx(float(jnp.cos(0.5)))
    with compiling_for("tpu"):
        assert float(grad(0.5)) == pytest.approx(-float(jnp.sin(0.5)))
