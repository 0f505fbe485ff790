"""What the backbones share: its own tests are those that no whole network shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from evovit_jax.hardware.platforms import compiling_for
from evovit_jax.models import activations, layers
from evovit_jax.models.attention import attend, attend_tokens_first
from evovit_jax.plan import collectives
from evovit_jax.reduction.base import AttentionRequest

X = jax.random.normal(jax.random.key(0), (5, 7))


def test_gelu_keeps_its_input_alone_for_the_backward_pass():
    _, pull = jax.vjp(activations.gelu, X)
    kept = [leaf for leaf in jax.tree.leaves(pull) if jnp.shape(leaf) == X.shape]
    assert len(kept) == 1
    np.testing.assert_array_equal(kept[0], X)


def test_gelu_is_the_exact_one():
    def exact(x):
        return jax.nn.gelu(x, approximate=False)

    np.testing.assert_allclose(activations.gelu(X), exact(X), rtol=1e-6, atol=3e-7)
    slope, wanted = (jax.grad(lambda x, f=f: f(x).sum())(X) for f in (activations.gelu, exact))
    np.testing.assert_allclose(slope, wanted, rtol=1e-5, atol=1e-7)
    # In bfloat16 what is near -1 must not be rounded before 1 is added.
    low = jnp.asarray([-3.0, -2.5, -2.0], jnp.bfloat16)
    np.testing.assert_allclose(
        activations.gelu(low).astype(jnp.float32), exact(low.astype(jnp.float32)), rtol=4e-3
    )


def on_both(function, *arrays):
    """`function` as a TPU computes it, and as everything else does."""
    answers = []
    for platform in ("tpu", "cpu"):
        with compiling_for(platform):
            answers.append(jax.jit(function)(*arrays))
    return answers


def assert_close(answers, **tolerance):
    ours, theirs = answers
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(*map(jax.tree.leaves, answers), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, **tolerance)


def test_gelu_of_bfloat16_on_a_tpu_is_exact_to_rounding():
    x = jnp.linspace(-12, 12, 20001).astype(jnp.bfloat16)
    ours, _ = on_both(activations.gelu, x)
    exact = jax.nn.gelu(x.astype(jnp.float32), approximate=False)
    assert ours.dtype == jnp.bfloat16
    error = np.abs(np.asarray(ours, np.float32) - exact)
    assert (error <= 3e-5 + 2**-8 * np.abs(exact)).all()
    slope, wanted = on_both(jax.grad(lambda x: activations.gelu(x).astype(jnp.float32).sum()), x)
    np.testing.assert_allclose(slope.astype(np.float32), wanted.astype(np.float32), atol=0.01)


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("case", ["plain", "row", "bias", "normalised", "all"])
def test_attention_of_three_products_is_attention(case, qkv_bias):
    attn = layers.Attention(12, 3, qkv_bias=qkv_bias, rngs=nnx.Rngs(0))
    attn.qkv.kernel[...] = 30 * attn.qkv.kernel[...]
    x = jax.random.normal(jax.random.key(1), (2, 7, 12))
    bias = jnp.where(jnp.arange(7) == 5, -jnp.inf, jnp.arange(7.0))[None, None, None]
    request = {
        "plain": AttentionRequest(),
        "row": AttentionRequest(needs=frozenset({"class_row", "keys", "values"})),
        "bias": AttentionRequest(needs=frozenset({"class_row"}), bias=bias),
        "normalised": AttentionRequest(
            needs=frozenset({"class_row"}), normalise=lambda x: jax.nn.softmax(2 * x, axis=-1)
        ),
        "all": AttentionRequest(needs=frozenset({"class_row", "weights"}), bias=bias),
    }[case]
    graphdef, state = nnx.split(attn)

    def attend(state, x):
        return nnx.merge(graphdef, state)(x, request)

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


def test_patches_are_a_convolution():
    embed = layers.PatchEmbed(4, 3, 6, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(embed)
    images = jax.random.normal(jax.random.key(2), (2, 8, 12, 3))
    assert_close(on_both(lambda s, x: nnx.merge(graphdef, s)(x), state, images), atol=1e-6)


@pytest.mark.parametrize(("tokens", "channels", "bound"), [(17, 12, 1), (10, 12, 0)])
def test_tokens_are_bound_to_rows_where_they_outnumber_channels(tokens, channels, bound):
    attention = layers.Attention(channels, 3, rngs=nnx.Rngs(0))
    look = lambda x: attention(x, AttentionRequest())[0]  # noqa: E731
    x = jnp.ones((2, tokens, channels))
    with compiling_for("tpu"):
        program = str(jax.make_jaxpr(look)(x))
    assert program.count(f"f32[2,{tokens},{channels}] = layout_constraint") == bound
    with compiling_for("cpu"):
        assert "layout_constraint" not in str(jax.make_jaxpr(look)(x))
