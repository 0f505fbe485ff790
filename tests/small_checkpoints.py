"""A small training state, and checkpoints of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tiny import tiny_config

from evovit_jax.parallel import sharding
from evovit_jax.train.state import new_state
from evovit_jax.workdir import checkpoints
from evovit_jax.workdir.checkpoints import Checkpointer

SHAPES = {"blocks/0/kernel": (16, 8), "blocks/0/bias": (8,), "head/kernel": (8, 3)}


def make_state(step=0, shapes=None, tx=None, keep_average=True):
    rng = np.random.default_rng(step)
    params = {
        name: jnp.asarray(rng.normal(size=shape).astype(np.float32))
        for name, shape in (shapes or SHAPES).items()
    }
    stats = {"norm/mean": jnp.asarray(rng.normal(size=4).astype(np.float32))}
    meter = {"sums": {"loss": jnp.float32(step)}, "bad": jnp.int32(-1)}
    state = new_state(params, stats, tx or optax.adam(1e-3), meter, keep_average=keep_average)
    return state.replace(step=jnp.int32(step))


def like(state, mesh=None):
    mesh = mesh or sharding.make_mesh(tiny_config(mesh__data=1), jax.devices()[:1])
    placed = sharding.param_shardings(mesh, state.params, ((".*", "fsdp"),))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        state,
        sharding.state_shardings(mesh, state, placed),
    )


def save(tmp_path, *steps, keep=2, metrics=None, **settings):
    checkpointer = Checkpointer(tmp_path, keep=keep, **settings)
    for step in steps:
        scores = {s: top1 for s, top1 in (metrics or {}).items() if s <= step}
        checkpointer.save(step, make_state(step), {"next_index": step}, scores)
    checkpointer.wait()
    return checkpointer


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def kept(tmp_path):
    names = [p.name for p in (tmp_path / checkpoints.FOLDER).iterdir()]
    return sorted(int(name) for name in names if name.isdigit())
