"""Attention as a TPU computes it beside the same elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from both_platforms import assert_close, on_both
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from evovit_jax.hardware.platforms import compiling_for
from evovit_jax.models.attention import attend, attend_tokens_first
from evovit_jax.models.layers import LayerNorm
from evovit_jax.models.self_attention import Attention
from evovit_jax.plan import collectives
from evovit_jax.reduction.base import AttentionRequest


def layer_norm(dim):
    """One whose scale and bias are not those that it starts with."""
    norm = LayerNorm(dim, epsilon=1e-6, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    norm.scale[...] = jnp.linspace(0.5, 1.5, dim)
    norm.bias[...] = jnp.linspace(-0.2, 0.3, dim)
    return norm


@pytest.mark.parametrize(("qkv_bias", "normed"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize("case", ["plain", "row", "bias", "edited", "normalised", "all"])
def test_attention_of_three_products_is_attention(case, qkv_bias, normed):
    attn = Attention(12, 3, qkv_bias=qkv_bias, rngs=nnx.Rngs(0))
    attn.qkv.kernel[...] = 30 * attn.qkv.kernel[...]
    norm = layer_norm(12) if normed else None
    x = jax.random.normal(jax.random.key(1), (2, 7, 12)) + (3.0 if normed else 0.0)
    bias = jnp.where(jnp.arange(7) == 5, -jnp.inf, jnp.arange(7.0))[None, None, None]
    request = {
        "plain": AttentionRequest(),
        "row": AttentionRequest(needs=frozenset({"class_row", "keys", "values"})),
        "bias": AttentionRequest(needs=frozenset({"class_row"}), bias=bias),
        "edited": AttentionRequest(
            needs=frozenset({"class_row", "inputs"}),
            edit=lambda x: x * jnp.arange(12.0)[None, None] / 9,
        ),
        "normalised": AttentionRequest(
            needs=frozenset({"class_row"}), normalise=lambda x: jax.nn.softmax(2 * x, axis=-1)
        ),
        "all": AttentionRequest(needs=frozenset({"class_row", "weights"}), bias=bias),
    }[case]
    graphdef, state = nnx.split((attn, norm))

    def attend(state, x):
        attn, norm = nnx.merge(graphdef, state)
        return attn(x, request, norm=norm)

    assert_close(on_both(attend, state, x), atol=2e-6)

    def loss(state, x):
        mixed, view = attend(state, x)
        row = 0.0 if view.class_row is None else (view.class_row**2).sum()
        return (mixed**3).sum() + row

    assert_close(on_both(jax.grad(loss, argnums=(0, 1)), state, x), rtol=1e-4, atol=1e-4)


def test_the_bias_of_recomputed_attention_has_its_gradient():
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 5, 3, 4)) for i in range(3))
    bias = jax.random.normal(jax.random.key(4), (1, 3, 1, 5))

    def loss(bias):
        request = AttentionRequest(bias=bias)
        return (attend_tokens_first(q, k, v, scale=0.5, request=request)[0] ** 3).sum()

    def plain(bias):
        request = AttentionRequest(bias=bias)
        heads_first = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
        return (attend(*heads_first, scale=0.5, request=request)[0] ** 3).sum()

    np.testing.assert_allclose(jax.grad(loss)(bias), jax.grad(plain)(bias), rtol=1e-4, atol=1e-5)


def test_attention_for_tpus_trains_on_several_devices_without_communication():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    q, k, v = (jax.random.normal(jax.random.key(i), (8, 5, 3, 4)) for i in range(3))

    def loss(q, k, v):
        return (attend_tokens_first(q, k, v, scale=0.5, request=AttentionRequest())[0] ** 2).sum()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    expected = gradients(q, k, v)
    sharded = jax.device_put((q, k, v), rows)
    with jax.set_mesh(mesh):
        compiled = gradients.lower(*sharded).compile()
    assert not collectives.read(compiled.as_text(), mesh.size)
    for found, wanted in zip(compiled(*sharded), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("tokens", "channels", "needs", "bound"),
    [(17, 12, (), 1), (10, 12, (), 0), (10, 12, ("class_row",), 1)],
)
def test_tokens_are_bound_to_rows_where_the_compiler_would_lay_them_out_otherwise(
    tokens, channels, needs, bound
):
    attention = Attention(channels, 3, rngs=nnx.Rngs(0))
    look = lambda x: attention(x, AttentionRequest(needs=frozenset(needs)))  # noqa: E731
    x = jnp.ones((2, tokens, channels))
    for platform, wanted in (("tpu", bound), ("gpu", 1), ("cpu", 0)):
        with compiling_for(platform):
            program = str(jax.make_jaxpr(look)(x))
        assert program.count(f"f32[2,{tokens},{channels}] = layout_constraint") == wanted
