"""Convolutions in groups: on several devices each makes its own images' alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from evovit_jax.models.convolution import convolve
from evovit_jax.plan import collectives
from evovit_jax.train import gradient_sums

CHANNELS = 16
# (groups, channels made, stride): RegNet's, ConvNeXt's, PiT's, and a stem's.
KINDS = {"groups": (4, 16, 1), "depthwise": (16, 16, 1), "pool": (16, 32, 2), "whole": (1, 16, 2)}


def mesh():
    axes = ("data", "fsdp")
    return jax.make_mesh((4, 2), axes, axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:8])


def layer(kind, dtype):
    groups, out, stride = KINDS[kind]
    return nnx.Conv(
        CHANNELS,
        out,
        (3, 3),
        strides=stride,
        padding=1,
        feature_group_count=groups,
        conv_general_dilated=convolve,
        dtype=dtype,
        rngs=nnx.Rngs(0),
    )


def gradients(kind, dtype=jnp.float32):
    """(the gradient of a loss by the layer's parameters, with the one by the images beside it; the
    parameters)."""
    graph, params = nnx.split(layer(kind, dtype))

    def loss(params, x):
        made, back = jax.vjp(lambda x: nnx.merge(graph, params)(x), x)
        return jnp.square(made.astype(jnp.float32)).sum(), {"made": made, "x": back(made)[0]}

    return jax.grad(loss, has_aux=True), params


def images(dtype=jnp.float32):
    return jax.random.normal(jax.random.key(1), (16, 6, 6, CHANNELS)).astype(dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_devices_send_each_other_the_kernels_gradient_alone(kind):
    function, params = gradients(kind)
    x, devices = images(), mesh()
    expected = jax.jit(function)(params, x)
    rows = NamedSharding(devices, PartitionSpec(("data", "fsdp")))
    with jax.set_mesh(devices):
        compiled = jax.jit(function).lower(params, jax.device_put(x, rows)).compile()
        found = compiled(params, jax.device_put(x, rows))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected
    )
    sent = collectives.read(compiled.as_text(), devices.size)
    assert set(sent) == {"all-reduce"}
    assert sent["all-reduce"].bytes == 4 * sum(p.size for p in jax.tree.leaves(params))


def test_gradients_of_bfloat16_are_added_up_over_devices_in_float32():
    function, params = gradients("groups", jnp.bfloat16)
    devices = mesh()
    with jax.set_mesh(devices):
        wide = jax.jit(gradient_sums.in_float32(function)).lower(params, images(jnp.bfloat16))
        text = wide.as_text(dialect="hlo")
    assert "f32[3,3,4,16]{3,2,1,0} all-reduce" in text
    assert "bf16[3,3,4,16]{3,2,1,0} all-reduce" not in text
