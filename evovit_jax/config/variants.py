"""The variants of a recipe: its own by name, and any recipe in two steps as `:smoke`."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from evovit_jax import reduction
from evovit_jax.config import durations
from evovit_jax.config.fields import RANDOM
from evovit_jax.errors import UserError, suggestion
from evovit_jax.models import model_entry


def smoke(config: ConfigDict) -> None:
    """Shrinks any recipe to two steps of a tiny network on digits, in place.

    What makes the recipe itself stays: its reduction, its losses, its augmentation, its schedules
    (shortened with the training), its precision.
    """
    short = {}
    for name in durations.NAMES:
        given = [config[f"{name}_{unit}"] is not None for unit in durations.UNITS]
        if any(given) and name in ("keep_rate_warmup", "freeze"):
            short[f"{name}_steps"] = 1
        for unit in durations.UNITS:
            config[f"{name}_{unit}"] = None
    config.update_from_flattened_dict(
        {
            "data": "tfds:digits:train[:64]",
            "eval_data": "tfds:digits:test[:24]",
            "data_limit_unreadable": 0,
            "batch_size": 16,
            "eval_batch_size": 16,
            "total_steps": 2,
            "warmup_steps": 1,
            "checkpoint_steps": 2,
            "eval_steps": 2,
            "log_steps": 1,
            "model.num_classes": None,
            "keep_rate_levels": 1,
            "init_weights": "",
            **short,
            **network(config.model.name),
        }
    )
    if config.distill.kind != "none":
        config.distill.update(teacher=teacher(config.distill.teacher), teacher_weights=RANDOM)
    config.augment.mix_group = min(config.augment.mix_group, config.batch_size)


def network(name: str) -> dict[str, Any]:
    """The fields of `config.model` that make a family's smallest sensible network."""
    return {f"model.{field}": value for field, value in model_entry(name).model.smoke.items()}


def teacher(spec: str) -> str:
    """`distill.teacher` as small as can be."""
    name = spec.partition(",")[0]
    return reduction.describe({"name": name, **model_entry(name).model.smoke}) if name else ""


def finish(config: ConfigDict, variant: str, /, **variants: Mapping[str, Any]) -> ConfigDict:
    """Applies a recipe's variant.

    Args:
      config: the recipe.
      variant: what follows the colon of `configs/x.py:VARIANT`; "" = the recipe as it is.
      **variants: this recipe's own variants, {field: value}, nested fields with dots.

    Raises:
      UserError: an unknown variant.
    """
    for name in filter(None, variant.split(",")):
        if name in variants:
            config.update_from_flattened_dict(variants[name])
            durations.settle(config, variants[name])
        elif name == "smoke":
            smoke(config)
        else:
            raise UserError(
                f"unknown variant {name!r} of this config; "
                + suggestion(name, ["smoke", *variants])
            )
    return config
