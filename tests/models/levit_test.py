"""LeViT and Evo-LeViT as a network: batch norm, folding, subsampling, gradients, mesh, errors.

That both compute what their official code computes is in parity_test.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import evovit_jax
from evovit_jax import reduction
from evovit_jax.errors import UserError
from evovit_jax.models.batch_norm import fuse
from evovit_jax.models.levit_layers import bias_index, every_other
from evovit_jax.models.variables import Skeleton, variables
from evovit_jax.reduction.attention_request import key_mask
from evovit_jax.reduction.base import AttentionRequest, Reducer

TINY = {
    "image_size": 80,  # 5x5 tokens, then 3x3: odd sides at the subsampling
    "embed_dim": (16, 24),
    "key_dim": 4,
    "num_heads": (2, 3),
    "depth": (2, 1),
    "num_classes": 5,
}

SHALLOW = {"depth": (1, 1), "image_size": 48}  # for what takes long to compile


def tiny(name="levit_128s", reduction=None, **overrides):
    """A network whose residual branches and statistics are far from their initial values."""
    model = evovit_jax.create_model(name, reduction, **{**TINY, **overrides}, seed=1)
    key = jax.random.key(2)
    for path, module in nnx.iter_modules(model):
        if path and path[-1] == "bn":
            for i, variable in enumerate((module.scale, module.bias, module.mean, module.var)):
                key, part = jax.random.split(key)
                noise = jax.random.uniform(part, variable.shape, minval=-0.3, maxval=0.3)
                variable[...] = noise + (1 if i in (0, 3) else 0)
        if hasattr(module, "attention_bias"):
            key, part = jax.random.split(key)
            module.attention_bias[...] = jax.random.normal(part, module.attention_bias.shape)
    return model


def images(batch=4, size=80):
    return jax.random.normal(jax.random.key(0), (batch, size, size, 3))


def run(model, batch, **settings):
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, batch: nnx.merge(graphdef, state)(batch, **settings))(state, batch)


@pytest.mark.parametrize("name", ["levit_128s", "evo_levit_128s"])
def test_inference_averages_the_two_heads(name):
    model = tiny(name)
    logits, out = run(model, images())
    assert logits.shape == (4, 5)
    assert logits.dtype == jnp.float32
    assert out.aux_logits == {}
    pooled = out.features[:, model.prefix :].mean(axis=1)
    heads = [head(pooled, train=False) for head in (model.head, model.head_dist)]
    np.testing.assert_allclose(logits, (heads[0] + heads[1]) / 2, atol=1e-5)


@pytest.mark.slow
def test_training_has_every_head():
    _, out = run(tiny("evo_levit_128s"), images(), train=True)
    assert sorted(out.aux_logits) == ["cls", "cls_dist", "dist"]
    _, out = run(tiny("levit_128s"), images(), train=True)
    assert sorted(out.aux_logits) == ["dist"]
    _, out = run(tiny("evo_levit_128s", distilled=False), images(), train=True)
    assert sorted(out.aux_logits) == ["cls"]


@pytest.mark.parametrize("name", ["levit_128s", "evo_levit_128s"])
def test_folded_batch_norm_gives_the_same_logits(name):
    model = tiny(name)
    folded = fuse(model)
    np.testing.assert_allclose(run(folded, images())[0], run(model, images())[0], atol=2e-5)
    paths = list(variables(folded))
    assert not any("/bn/" in path for path in paths)
    assert model.head.bn is not None  # the original is as it was


def statistics_after(model, batch, *, train):
    skeleton = Skeleton(model)

    def passed(params, stats):
        model = skeleton.build(params, stats)
        logits, out = model(batch, train=train)
        return Skeleton.variables(model)[1], logits, out.aux_logits

    return jax.jit(passed)(*Skeleton.variables(model))


def test_a_training_pass_moves_the_running_statistics_and_inference_does_not():
    model = tiny(**SHALLOW)
    before = Skeleton.variables(model)[1]
    after = statistics_after(model, images(size=48), train=False)[0]
    jax.tree.map(np.testing.assert_array_equal, after, before)
    for name, value in statistics_after(model, images(size=48), train=True)[0].items():
        assert not np.array_equal(value, before[name]), name


def test_frozen_batch_norm_keeps_its_statistics():
    model = tiny(freeze_norm=True, **SHALLOW)
    stats, logits, others = statistics_after(model, images(size=48), train=True)
    jax.tree.map(np.testing.assert_array_equal, stats, Skeleton.variables(model)[1])
    expected = run(model, images(size=48))[0]
    np.testing.assert_allclose((logits + others["dist"]) / 2, expected, atol=1e-5)


def loss_and_grads(model, batch, mesh=None):
    """((loss, new statistics), gradients), by name, as the training step computes them."""
    skeleton = Skeleton(model)
    params, stats = Skeleton.variables(model)

    def loss(params, stats, batch):
        model = skeleton.build(params, stats)
        logits, out = model(batch, train=True)
        total = jnp.square(logits).sum() + sum(jnp.square(v).sum() for v in out.aux_logits.values())
        return total, Skeleton.variables(model)[1]

    step = jax.value_and_grad(loss, has_aux=True)
    if mesh is None:
        return jax.jit(step)(params, stats, batch)
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    copied = NamedSharding(mesh, PartitionSpec())
    with jax.set_mesh(mesh):
        compiled = jax.jit(step, in_shardings=(copied, copied, split), out_shardings=copied)
        return compiled(params, stats, jax.device_put(batch, split))


@pytest.mark.slow
def test_batch_norm_is_synchronised_over_the_mesh():
    model, batch = tiny("evo_levit_128s", "evo,first_block=1", **SHALLOW), images(8, size=48)
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    (one, stats), grads = loss_and_grads(model, batch)
    (many, mesh_stats), mesh_grads = loss_and_grads(model, batch, mesh)
    np.testing.assert_allclose(many, one, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=1e-5), stats, mesh_stats)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=2e-3), grads, mesh_grads)


@pytest.mark.slow
def test_rematerialisation_changes_memory_only():
    batch = images(size=48)
    (loss, stats), grads = loss_and_grads(tiny(**SHALLOW), batch)
    again = loss_and_grads(tiny(remat="full", **SHALLOW), batch)
    np.testing.assert_allclose(again[0][0], loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=1e-5), stats, again[0][1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=2e-3), grads, again[1])


@pytest.mark.slow
def test_drop_path_follows_the_key_in_training_only():
    model = tiny(drop_path_rate=0.5, freeze_norm=True, **SHALLOW)
    first, again, other = (
        run(model, images(size=48), train=True, key=jax.random.key(k))[0] for k in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    still = run(model, images(size=48), key=jax.random.key(1))[0]
    np.testing.assert_array_equal(still, run(model, images(size=48))[0])


@pytest.mark.slow
def test_half_precision_keeps_parameters_statistics_and_logits_in_float32():
    model = tiny("evo_levit_128s", dtype="bfloat16")
    logits, out = run(model, images(), train=True)
    assert logits.dtype == jnp.float32
    assert out.features.dtype == jnp.bfloat16
    kinds = {v.dtype for _, v in nnx.to_flat_state(nnx.state(model))}
    assert kinds == {jnp.dtype("float32"), jnp.dtype("int32")}


def test_positions_take_another_image_size_and_biases_refuse_it():
    logits, out = run(tiny("evo_levit_128s"), images(size=112))
    assert bool(jnp.isfinite(logits).all())
    assert out.features.shape == (4, 1 + 16, 24)  # 7x7, then 4x4
    with pytest.raises(UserError, match=r"attention biases for images of 80 pixels, got 112x112"):
        run(tiny(), images(size=112))


def test_biases_belong_to_distances():
    index = bias_index((3, 4))
    assert index.shape == (12, 12)
    assert index[0, 0] == 0
    assert index[0, 7] == 1 * 4 + 3  # one row down, three columns to the right
    np.testing.assert_array_equal(index, index.T)
    corner = bias_index((3, 4), stride=2)
    np.testing.assert_array_equal(corner, index[[0, 2, 8, 10]])


def test_subsampling_keeps_every_other_row_and_column():
    x = jnp.arange(15.0).reshape(1, 15, 1)
    np.testing.assert_array_equal(every_other(x, (3, 5))[0, :, 0], [0, 2, 4, 10, 12, 14])


def test_token_maps_follow_tokens_through_the_pyramid():
    model = tiny("evo_levit_128s", "evo,first_block=1")
    _, out = run(model, images())
    assert len(out.token_maps) == 4
    assert all(token_map.shape == (4, 26) for token_map in out.token_maps)
    dense, slow, last = (np.array(out.token_maps[i]) for i in (0, 1, 3))
    np.testing.assert_array_equal(dense[0], np.arange(26))
    assert slow.max() == 1 + 12  # 12 of 25 patches, then the representative token
    assert (slow == 13).sum(axis=1).tolist() == [13] * 4
    assert last.max() == 9


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"image_size": 100}, "image_size 100 is not a multiple of 16"),
        ({"depth": (1,)}, "one number for each stage"),
        ({"depth": 3}, "depth of levit_128s is a list"),
        ({"remat": "some"}, "remat must be one of"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must be in \[0, 1\)"),
    ],
)
def test_bad_settings_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        tiny(**overrides)


def test_evo_wants_a_class_token():
    with pytest.raises(UserError, match="class token"):
        tiny("levit_128s", "evo")


def test_the_config_lists_what_it_is_made_of():
    config = tiny().config
    assert config.grids() == ((5, 5), (3, 3))
    assert dataclasses.asdict(config)["num_heads"] == (2, 3)


class Blind(Reducer):
    """Nothing attends to one patch token, another one in each image; shows all attention."""

    not_in_pyramids = None

    def _request(self, tokens):
        b, n, _ = tokens.x.shape
        seen = jnp.arange(n)[None] != tokens.prefix + jnp.arange(b)[:, None]
        return AttentionRequest(needs=frozenset({"weights"}), bias=key_mask(seen))

    def attention_request(self, block, tokens):
        del block
        return self._request(tokens)

    def after_attention(self, block, tokens, attention):
        return tokens.put_aside(**{f"block{block}": attention.weights})

    def subsample_request(self, stage, tokens):
        del stage
        return self._request(tokens)

    def subsample(self, tokens, attention, stride, *, stage):
        del stride, stage
        return tokens.put_aside(subsampling=attention.weights)

    def aux(self, tokens):
        return tokens.aside


@pytest.mark.parametrize("name", ["levit_128s", "evo_levit_128s"])
def test_a_reducers_bias_is_added_to_the_networks_own(name, monkeypatch):
    monkeypatch.setitem(reduction._registered, "blind", Blind)
    model, batch = tiny(name, "blind", **SHALLOW), images(3, size=48)
    _, out = run(model, batch)
    shown = {name: x for name, x in out.aux.items() if not name.startswith("stage")}
    assert {*shown} == {"block0", "subsampling", "block1"}
    for weights in shown.values():
        for b, image in enumerate(np.asarray(weights)):
            hidden = model.prefix + b
            np.testing.assert_array_equal(image[:, :, hidden], 0)
            assert (np.delete(image, hidden, axis=2) > 0).all()
            np.testing.assert_allclose(image.sum(axis=2), 1, atol=1e-5)
    if not model.prefix:  # the places' own biases still count
        for _, module in nnx.iter_modules(model):
            if hasattr(module, "attention_bias"):
                module.attention_bias[...] = jnp.zeros_like(module.attention_bias[...])
        without = run(model, batch)[1].aux
        for where in shown:
            assert np.abs(out.aux[where] - without[where]).max() > 0.01
