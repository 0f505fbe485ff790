"""The smallest run that has everything: a recipe's smoke form, smaller still."""

import pathlib
import zlib
from collections.abc import Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.models import abstract_model
from evovit_jax.models.variables import Skeleton

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
# As `--config.FIELD=VALUE` or to `update_from_flattened_dict`.
OVERRIDES = {
    "model.image_size": 8,
    "model.patch_size": 2,
    "model.embed_dim": 16,
    "model.num_heads": 2,
    "model.depth": 2,
    "augment.mix_group": 0,
}


def some_slow(values: Iterable[Any], quick: Collection[str]) -> list[Any]:
    """Values of a parameter, those that are not in `quick` for `pytest -m slow` alone."""
    slow = pytest.mark.slow
    return [value if value in quick else pytest.param(value, marks=slow) for value in values]


def run_model(model: nnx.Module, images: Any, **settings: Any) -> Any:
    """`model(images, **settings)` in one program: each operation on its own compiles for longer."""
    return nnx.jit(lambda model, images: model(images, **settings))(model, images)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal values of a shape, in NumPy: no program is compiled to draw, slice or add them."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


_abstract: dict[str, Any] = {}  # what a network was split into, by all that it was made from


def filled(name: str, reduction: Any = None, *, seed: int = 0, **fields: Any) -> nnx.Module:
    """A model with random values of usual size, for which no program was compiled."""
    key = repr((name, reduction, fields))
    if key not in _abstract:
        _abstract[key] = nnx.split(abstract_model(name, reduction, **fields))
    graphdef, shapes = _abstract[key]

    def drawn(path: tuple, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path)  # the same values whatever else there is
        rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
        value = rng.normal(scale=0.3, size=shape.shape)
        at_least = 0.5 if "'var'" in name else -np.inf
        return np.maximum(value, at_least).astype(shape.dtype)

    values = jax.tree_util.tree_map_with_path(drawn, shapes)
    return nnx.merge(graphdef, jax.device_put(values))


def gradients(model: nnx.Module, images: jax.Array, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """Loss, and gradients by name, of a training pass: the sum of its logits' squares."""
    skeleton = Skeleton(model)
    params, stats = Skeleton.variables(model)

    def loss(params: Any) -> jax.Array:
        logits, _ = skeleton.build(params, stats)(images, train=True, **settings)
        return jnp.square(logits).sum()

    return jax.jit(jax.value_and_grad(loss))(params)


def shapes_of(model: nnx.Module, *images: int) -> tuple[Any, dict[str, Any]]:
    """Logits, and everything else by name, of images `[b, h, w, c]`, without values."""
    graphdef, state = nnx.split(model)

    def passed(state: Any, images: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        logits, out = nnx.merge(graphdef, state)(images)
        return logits, vars(out)

    return jax.eval_shape(passed, state, jax.ShapeDtypeStruct(images, jnp.float32))


def tiny_config(recipe: str = "digits_evo.py", **overrides: Any) -> ConfigDict:
    """A recipe's smoke form as three blocks of width 16 on 8 px, with `overrides` (a__b: a.b)."""
    config = config_lib.load(f"{CONFIGS / recipe}:smoke")
    given = {name.replace("__", "."): value for name, value in overrides.items()}
    config.update_from_flattened_dict(OVERRIDES | given)
    return config


def tiny_flags(recipe: str = "digits_evo.py") -> list[str]:
    """The same as flags of the command."""
    fields = [f"--config.{name}={value}" for name, value in OVERRIDES.items()]
    return [f"--config={CONFIGS / recipe}:smoke", *fields]
