"""The smallest run that has everything: a recipe's smoke form, smaller still."""

import pathlib
from collections.abc import Collection, Iterable
from typing import Any

import pytest
from flax import nnx
from ml_collections import ConfigDict

from evovit_jax import config as config_lib

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
# As `--config.FIELD=VALUE` or to `update_from_flattened_dict`.
OVERRIDES = {
    "model.image_size": 8,
    "model.patch_size": 2,
    "model.embed_dim": 16,
    "model.num_heads": 2,
    "model.depth": 3,
    "augment.mix_group": 0,
}


def some_slow(values: Iterable[Any], quick: Collection[str]) -> list[Any]:
    """Values of a parameter, those that are not in `quick` for `pytest -m slow` alone."""
    slow = pytest.mark.slow
    return [value if value in quick else pytest.param(value, marks=slow) for value in values]


def run_model(model: nnx.Module, images: Any, **settings: Any) -> Any:
    """`model(images, **settings)` in one program: each operation on its own compiles for longer."""
    return nnx.jit(lambda model, images: model(images, **settings))(model, images)


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
