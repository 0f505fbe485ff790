"""One device against eight: where arrays live, what is communicated, and that nothing changes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tiny import filled, some_slow, tiny_config

from evovit_jax.errors import UserError
from evovit_jax.models import list_models, model_entry
from evovit_jax.models.variables import Skeleton
from evovit_jax.parallel import sharding
from evovit_jax.plan import collectives as plan_collectives
from evovit_jax.train.prepare_batch import prepare
from evovit_jax.train.program import build

# Everything random is on: mixing, erasing, stochastic depth.
FIELDS = {
    "model__drop_path_rate": 0.2,
    "augment__mixup": 0.8,
    "augment__cutmix": 1.0,
    "augment__erasing_prob": 0.25,
    "layer_to_stage_steps": 0,
    "total_steps": 10,
    "ema__decay": 0.9,
}
MESHES = {"one": (1, 1), "data": (8, 1), "fsdp": (1, 8), "both": (2, 4)}


@functools.cache
def make_run(mesh, **fields):
    data, fsdp = MESHES[mesh]
    config = tiny_config(mesh__data=data, mesh__fsdp=fsdp, **{**FIELDS, **fields})
    return build(config, jax.devices()[: data * fsdp])


def batches(run, count):
    rng = np.random.default_rng(0)
    size = (run.config.batch_size, 8, 8, 3)
    for _ in range(count):
        batch = {
            "image": rng.integers(0, 256, size, np.uint8),
            "label": rng.integers(0, 10, size[0], np.int32),
        }
        yield sharding.put_batch(run.mesh, batch)


def ten_steps(run):
    """The loss of each of ten steps, and the tokens that the trained network keeps."""
    with jax.set_mesh(run.mesh):
        state, losses = run.fresh_state(), []
        for i, batch in enumerate(batches(run, 10)):
            state = run.step_at(i)(state, batch)
            losses.append(float(state.meter["sums"]["loss"]))
        images, _ = jax.jit(lambda b: prepare(run.config, jax.random.key(0), b, 10))(batch)
        model = run.skeleton.build(*state.evaluated())
        maps = jax.jit(lambda x: model(x, reduction={"selection": "stage"})[1].token_maps)(images)
    return np.diff(losses, prepend=0), np.stack(maps)


@functools.cache
def on_one_device(switch):
    return ten_steps(make_run("one", layer_to_stage_steps=switch))


@pytest.mark.parametrize("switch", some_slow([0, 5], {0}))
@pytest.mark.parametrize("mesh", some_slow(["data", "fsdp"], {"fsdp"}))
def test_eight_devices_train_as_one_does(mesh, switch):
    expected, expected_maps = on_one_device(switch)
    losses, maps = ten_steps(make_run(mesh, layer_to_stage_steps=switch))
    np.testing.assert_allclose(losses, expected, atol=1e-5)
    np.testing.assert_array_equal(maps, expected_maps)
    assert (maps != np.arange(maps.shape[-1])).any()  # something was selected


def collectives(text):
    """What a compiled program communicates: (operation, elements of its largest result)."""
    found = []
    for shapes, name in re.findall(
        r"= (.*?) (all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter)"
        r"(?:-start)?\(",
        text,
    ):
        sizes = [
            int(np.prod([int(d) for d in dims.split(",") if d]))
            for dims in re.findall(r"\w+\[([\d,]*)\]", shapes)
        ]
        found.append((name, max(sizes)))
    return found


@pytest.mark.parametrize("phase", ["layer", "stage"])
@pytest.mark.slow
def test_data_parallel_evo_gathers_no_activations(phase):
    # Groups that share a draw and micro-batches may not bring communication either.
    fields = {"batch_size": 64, "accumulate": 2, "layer_to_stage_steps": 5}
    run = make_run("data", augment__mix_group=4, **fields)
    with jax.set_mesh(run.mesh):
        batch = next(batches(run, 1))
        step = run.step_at({"layer": 0, "stage": 5}[phase])
        text = step.lower(run.like, batch).compile().as_text()
    found = collectives(text)
    largest = max(leaf.size for leaf in run.like.params.values())
    assert {name for name, _ in found} == {"all-reduce"}
    assert max(size for _, size in found) <= largest, "an activation is reduced"


# A name for each class of networks.
FAMILIES = {model_entry(name).model: name for name in reversed(list_models())}


@pytest.mark.parametrize("name", some_slow(FAMILIES.values(), {"regnety_160"}))
def test_data_parallel_gathers_no_activations_of_any_network(name):
    smoke = model_entry(name).model.smoke
    model = filled(name, **smoke)
    variables, skeleton = Skeleton.variables(model), Skeleton(model)
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def loss(params, stats, images):
        logits, out = skeleton.build(params, stats)(images, train=True, key=jax.random.key(0))
        made = [x for x in (logits, out.features) if x is not None]
        return sum(jnp.square(x.astype(jnp.float32)).mean() for x in made)

    def shapes(x, spec):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    size = smoke.get("image_size") or 32
    images = shapes(np.empty((16, size, size, 3), np.float32), sharding.BATCH)
    with jax.set_mesh(mesh):
        whole = jax.tree.map(lambda x: shapes(x, PartitionSpec()), variables)
        text = jax.jit(jax.grad(loss)).lower(*whole, images).compile().as_text()
    sent = plan_collectives.read(text, mesh.size)
    assert set(sent) == {"all-reduce"}
    # Gradients, and what batch norm sums up of a batch.
    assert sent["all-reduce"].bytes < 1.2 * 4 * sum(x.size for x in variables[0].values())


def test_fsdp_splits_parameters_moments_and_averages():
    run = make_run("fsdp")
    with jax.set_mesh(run.mesh):
        state = run.fresh_state()
    name = "blocks/0/mlp/fc1/kernel"
    pieces = [state.params, state.opt_state[0].mu, state.opt_state[0].nu, state.ema["params"]]
    for tree in pieces:
        assert tree[name].sharding.spec == PartitionSpec(None, "fsdp")
        assert tree[name].addressable_shards[0].data.size == tree[name].size // 8
    assert state.step.sharding.is_fully_replicated


def shapes(**sizes):
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in sizes.items()}


def test_the_largest_dimension_that_divides_is_split():
    mesh = make_run("both").mesh
    params = shapes(a=(8, 12), b=(12, 8, 2), c=(3, 5), d=(), e=(8, 8), f=(16, 4))
    found = sharding.param_shardings(mesh, params, ((r"f", "replicate"), (r".*", "fsdp")))
    assert {name: tuple(s.spec) for name, s in found.items()} == {
        "a": (None, "fsdp"),
        "b": ("fsdp", None, None),
        "c": (None, None),
        "d": (),
        "e": (None, "fsdp"),
        "f": (None, None),
    }


def test_an_unknown_strategy_is_named():
    mesh = make_run("one").mesh
    with pytest.raises(UserError, match=r"mesh\.rules: 'fsdb'; did you mean 'fsdp'"):
        sharding.param_shardings(mesh, shapes(a=(2,)), ((".*", "fsdb"),))


def test_a_leaf_lives_where_its_parameter_does():
    mesh = make_run("both").mesh
    params = {"a/b": NamedSharding(mesh, PartitionSpec("fsdp", None))}
    state = {
        "mu": shapes(**{"a/b": (4, 4)}),
        "count": jnp.zeros(()),
        "rows": shapes(**{"a/b": (4,)}),
    }
    found = sharding.state_shardings(mesh, state, params)
    assert found["mu"]["a/b"] == params["a/b"]
    assert found["count"].spec == found["rows"]["a/b"].spec == PartitionSpec()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mesh__data": 3}, "data=3 and fsdp=1 does not fit 8 devices"),
        ({"mesh__data": 0}, "must be positive"),
        ({"mesh__fsdp": -1}, "one of them may be -1"),
        ({"batch_size": 12}, "batch_size=12 does not divide over 8 devices; use a multiple of 8"),
        ({"batch_size": 24, "accumulate": 2}, "over 8 devices times 2 micro-batches"),
        ({"eval_batch_size": 4}, "eval_batch_size=4 does not divide over 8 devices"),
        ({"augment__mixup": 0.8, "augment__mix_group": 6}, "augment.mix_group=6 must be even and"),
    ],
)
def test_what_does_not_fit_the_devices_is_refused(fields, message):
    with pytest.raises(UserError, match=re.escape(message)):
        sharding.make_mesh(tiny_config(**fields), jax.devices())


def test_a_mesh_of_more_devices_than_can_be_counted():
    config = tiny_config(mesh__data=2**62, mesh__fsdp=-1)
    with pytest.raises(UserError, match="does not fit 8 devices"):
        sharding.make_mesh(config)
    with pytest.raises(UserError, match=r"mesh\.rules: 5; known: fsdp, replicate"):
        sharding.param_shardings(
            sharding.make_mesh(tiny_config()), {"a": jnp.zeros(8)}, ((".*", 5),)
        )
