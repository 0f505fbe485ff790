"""Gradients of bfloat16 layers: their sums over a batch and over devices are made in float32."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tiny import tiny_config

from evovit_jax.parallel import sharding
from evovit_jax.plan import memory
from evovit_jax.train import gradient_sums
from evovit_jax.train.program import build

ROWS = 1024
PARAMS = {
    "kernel": jax.random.normal(jax.random.key(0), (8, 4)),
    "bias": jnp.zeros(4),
    "scale": jnp.ones(4),
    "conv": jax.random.normal(jax.random.key(1), (3, 1, 4)),
    "plain": jnp.ones(4),
}
# Values that bfloat16 holds, so that the sums alone are rounded.
X = jax.random.normal(jax.random.key(2), (ROWS, 8)).astype(jnp.bfloat16)
UP = jax.random.normal(jax.random.key(3), (ROWS, 4)).astype(jnp.bfloat16)


def loss(params, x, up):
    """Linear in the parameters: products, sums, programs inside it, and what is moved."""
    p = {name: value.astype(jnp.bfloat16) for name, value in params.items() if name != "plain"}
    halves = [0.5 * half for half in jnp.split(p["kernel"].T.reshape(4, 8).T, 2, axis=1)]
    first = jax.checkpoint(lambda x, w: x @ w)(x, halves[0])
    second = jax.jit(lambda x, w: x @ w)(x, halves[1])
    y = jnp.concatenate([first, second], axis=1) + p["bias"][None]
    y = y + up * p["scale"][None]
    y = y + jax.lax.conv_general_dilated(
        x[:, :, None], p["conv"], (8,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    ).reshape(-1, 4)
    wide = up.astype(jnp.float32) * params["plain"][None]
    return (y * up).astype(jnp.float32).sum() + wide.sum(), {"y": y}


NARROW = jax.grad(loss, has_aux=True)
WIDE = gradient_sums.in_float32(NARROW)


def expected():
    """By hand, in float64."""
    x, up = (np.asarray(a, np.float64) for a in (X, UP))
    return {
        "kernel": 0.5 * x.T @ up,
        "bias": up.sum(axis=0),
        "scale": np.square(up).sum(axis=0),
        "conv": (x[:, :3].T @ up)[:, None],
        "plain": up.sum(axis=0),
    }


def errors(found):
    return {
        name: np.abs(np.asarray(found[name], np.float64) - value).max() / np.abs(value).max()
        for name, value in expected().items()
    }


def test_sums_have_the_bits_of_float32():
    grads, aux = jax.jit(WIDE)(PARAMS, X, UP)
    narrow, narrow_aux = jax.jit(NARROW)(PARAMS, X, UP)
    assert {name: x.dtype for name, x in grads.items()} == dict.fromkeys(PARAMS, jnp.float32)
    assert max(errors(grads).values()) < 1e-5
    assert min(errors(narrow)[name] for name in ("kernel", "bias")) > 1e-4
    np.testing.assert_array_equal(aux["y"], narrow_aux["y"])
    assert aux["y"].dtype == jnp.bfloat16


def test_float32_is_left_as_it_is():
    wide = [jax.tree.map(lambda x: x.astype(jnp.float32), a) for a in (X, UP)]

    def plain(params, x, up):
        return jnp.square(x @ params["kernel"] * up + params["bias"][None]).sum(), {}

    differentiate = jax.grad(plain, has_aux=True)
    given = {name: PARAMS[name] for name in ("kernel", "bias")}
    before = jax.make_jaxpr(differentiate)(given, *wide)
    after = gradient_sums.widen(before.jaxpr, [True, True])
    assert str(after) == str(before.jaxpr)


@pytest.fixture
def summed(tmp_path, without_cache):
    """The dtypes of a lowered program's all-reduces as the partitioner puts them in.

    The CPU's compiler widens them later, and a program from the cache would not be compiled.
    """

    def dtypes(lowered):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        dump = {"xla_dump_to": str(folder), "xla_dump_hlo_pass_re": "spmd.*"}
        lowered.compile(compiler_options=memory.COMPILER | dump)
        (program,) = folder.glob("*after_spmd-partitioning*")
        return set(re.findall(r" = (\w+)\[[^ ]* all-reduce\(", program.read_text()))

    return dtypes


def test_devices_send_float32(summed):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows = [jax.device_put(a, NamedSharding(mesh, PartitionSpec("data"))) for a in (X, UP)]
    assert summed(jax.jit(lambda *given: NARROW(*given)[0]).lower(PARAMS, *rows)) == {"bf16", "f32"}
    wide = jax.jit(lambda *given: WIDE(*given)[0])
    assert summed(wide.lower(PARAMS, *rows)) == {"f32"}
    assert max(errors(wide(PARAMS, *rows)).values()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "sent"), [("float32", ["f32"]), ("bfloat16", ["bf16", "f32"])], ids=str
)
@pytest.mark.parametrize("fsdp", [1, 4])
def test_a_step_adds_up_over_devices_as_it_is_told_to(summed, field, sent, fsdp):
    given = {"model__dtype": "bfloat16", "model__depth": 1, "reduction": "none"}
    config = tiny_config(**given, grad_reduce_dtype=field, mesh__fsdp=fsdp)
    run = build(config, jax.devices(), examples=1000)
    with jax.set_mesh(run.mesh):
        found = summed(run.step_at(0).lower(run.like, memory.abstract_batch(run)))
    assert sorted(found) == sent


@pytest.mark.slow
def test_a_step_runs_here():
    """CPUs have no product of bfloat16 that gives float32 for every shape."""
    config = tiny_config("deit_s_evo.py", model__dtype="bfloat16")
    run = build(config, jax.devices()[:1], examples=16)
    batch = {
        "image": np.zeros((config.batch_size, 8, 8, 3), np.uint8),
        "label": np.zeros(config.batch_size, np.int32),
    }
    with jax.set_mesh(run.mesh):
        state = run.step_at(0)(run.fresh_state(), sharding.put_batch(run.mesh, batch))
    assert np.isfinite(float(state.meter["sums"]["loss"]))
