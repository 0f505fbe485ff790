"""Refuses values that no run can use, by the field's name."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from evovit_jax.config.fields import field_names, value_of
from evovit_jax.errors import UserError

# Where numbers have to be, as intervals are written; "inf)" refuses infinity itself, and NaN.
INTERVALS = {
    "[1, inf)": (
        "batch_size", "eval_batch_size", "accumulate", "keep_rate_levels", "augment.repeats",
        "model.image_size", "model.patch_size", "model.num_classes", "model.key_dim",
    ),
    "[0, inf)": (
        "data_threads", "data_processes", "data_limit_unreadable", "keep_checkpoints", "keep_best",
        "optim.learning_rate", "optim.warmup_learning_rate", "optim.min_learning_rate",
        "optim.reference_batch", "optim.eps", "optim.weight_decay", "optim.clip_norm", "optim.agc",
        "augment.pad", "augment.color_jitter", "augment.mixup", "augment.cutmix",
        "augment.mix_group", "eval_transform.resize",
    ),
    "[0, 1]": (
        "augment.flip", "augment.erasing_prob", "augment.mix_prob", "augment.mix_switch_prob",
        "loss.label_smoothing", "loss.cls_weight", "distill.alpha",
    ),
    "[0, 1)": ("ema.decay", "optim.beta1", "optim.beta2", "model.drop_path_rate"),
    "(0, 1]": ("eval_transform.crop_fraction",),
    "(0, inf)": ("distill.tau", "model.mlp_ratio"),
}  # fmt: skip


# The same of every number of a tuple, and how many they are.
TUPLES = {
    "mean": (3, "[0, 1]"),
    "std": (3, "(0, inf)"),
    "augment.scale": (2, "(0, inf)"),
    "augment.ratio": (2, "(0, inf)"),
}


def check(config: ConfigDict) -> None:
    """Refuses values that no run can use.

    Raises:
      UserError: naming the field.
    """
    values = {name: value_of(config, name) for name in field_names(config)}
    for interval, names in INTERVALS.items():
        for name in names:
            if values[name] is not None and not _is_in(values[name], interval):
                raise UserError(f"{name}={values[name]} must be {_in_words(interval)}")
    for name, (length, interval) in TUPLES.items():
        value = values[name]
        if not isinstance(value, Sequence) or len(value) != length:
            raise UserError(f"{name}={value} must have {length} numbers")
        if not all(_is_in(one, interval) for one in value):
            raise UserError(f"{name}={value}: each must be {_in_words(interval)}")
    if config.batch_size % config.accumulate:
        raise UserError(
            f"batch_size={config.batch_size} does not divide into accumulate="
            f"{config.accumulate} micro-batches"
        )


def _is_in(value: Any, interval: str) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    low, high = map(float, interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    return above and (value <= high if interval[-1] == "]" else value < high)


def _in_words(interval: str) -> str:
    """What an interval asks for: "at least 1", "above 0", "in [0, 1)"."""
    low, high = interval[1:-1].split(", ")
    if high != "inf":
        return f"in {interval}"
    return f"at least {low}" if interval[0] == "[" else f"above {low}"
