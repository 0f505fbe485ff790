"""Refuses values that no run can use, by the field's name."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from evovit_jax import rules
from evovit_jax.config import durations
from evovit_jax.config.fields import field_names, value_of
from evovit_jax.data.augment import TrainTransform
from evovit_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Interval:
    """The finite numbers between two others.

    Attributes:
      low: the smallest number.
      high: the largest number.
      has_low: whether `low` itself is inside.
      has_high: whether `high` itself is inside.
    """

    low: float
    high: float = math.inf
    has_low: bool = True
    has_high: bool = True

    def __contains__(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        above = value >= self.low if self.has_low else value > self.low
        return above and (value <= self.high if self.has_high else value < self.high)

    def __str__(self) -> str:
        """What it asks for: "at least 1", "above 0", "in [0, 1)"."""
        if self.high == math.inf:
            return f"{'at least' if self.has_low else 'above'} {self.low}"
        return f"in {'(['[self.has_low]}{self.low}, {self.high}{')]'[self.has_high]}"


AT_LEAST_1, NOT_NEGATIVE = Interval(1, has_high=False), Interval(0, has_high=False)
POSITIVE = Interval(0, has_low=False, has_high=False)
SHARE, SHARE_BELOW_1 = Interval(0, 1), Interval(0, 1, has_high=False)
SHARE_ABOVE_0 = Interval(0, 1, has_low=False)
# Where the number in a field has to be; None, where a field may have it, is always allowed.
NUMBERS = {
    AT_LEAST_1: (
        "batch_size", "eval_batch_size", "accumulate", "keep_rate_levels", "augment.repeats",
        "max_image_pixels",
        "model.image_size", "model.patch_size", "model.num_classes", "model.key_dim",
    ),
    NOT_NEGATIVE: (
        "seed", "data_threads", "data_processes", "data_limit_unreadable", "keep_checkpoints",
        "keep_best", "visualize_images",
        "optim.learning_rate", "optim.warmup_learning_rate", "optim.min_learning_rate",
        "optim.reference_batch", "optim.eps", "optim.weight_decay", "optim.clip_norm", "optim.agc",
        "augment.pad", "augment.color_jitter", "augment.mixup", "augment.cutmix",
        "augment.mix_group", "eval_transform.resize",
    ),
    SHARE: (
        "augment.flip", "augment.erasing_prob", "augment.mix_prob", "augment.mix_switch_prob",
        "loss.label_smoothing", "loss.cls_weight", "distill.alpha",
    ),
    SHARE_BELOW_1: ("ema.decay", "optim.beta1", "optim.beta2", "model.drop_path_rate"),
    SHARE_ABOVE_0: ("eval_transform.crop_fraction",),
    POSITIVE: ("distill.tau", "model.mlp_ratio"),
}  # fmt: skip
# The largest number of a field, or of its numbers: no run that anybody wants has more, and some
# machine, or float32, would give way long after the start.
LARGEST = {
    0.9999: ("model.drop_path_rate",),
    0.999999: ("optim.beta1", "optim.beta2"),
    1: ("augment.scale", "optim.eps"),
    100: (
        "keep_rate_levels", "visualize_images", "augment.repeats", "augment.ratio",
        "augment.color_jitter", "augment.mixup", "augment.cutmix", "optim.weight_decay",
        "optim.learning_rate", "optim.warmup_learning_rate", "optim.min_learning_rate",
    ),
    1024: ("data_threads", "data_processes"),
    10_000: ("std", "distill.tau"),
    2**16: ("eval_transform.resize", "accumulate", "keep_checkpoints", "keep_best"),
    1_000_000: ("model.num_classes",),
    2**24: ("batch_size", "eval_batch_size", "optim.reference_batch", "augment.mix_group"),
    2**31 - 1: ("max_image_pixels", "data_limit_unreadable"),
    2**32 - 1: ("seed",),
    1e30: ("optim.clip_norm", "optim.agc"),
}  # fmt: skip
# The smallest number that is not 0.
SMALLEST = {
    1e-30: ("optim.clip_norm", "optim.agc"),
    1e-16: ("optim.eps",),
    1e-4: ("std", "eval_transform.crop_fraction"),
    1e-3: ("augment.mixup", "augment.cutmix", "augment.ratio", "augment.scale", "distill.tau"),
}
MOST_RATE = 100  # of the learning rate, once it is scaled by the batch
# Words that a field may have.
WORDS = {"grad_reduce_dtype": ("float32", "bfloat16")}
# How many numbers a field has, and where each of them has to be.
TUPLES = {
    "mean": (3, SHARE),
    "std": (3, POSITIVE),
    "augment.scale": (2, POSITIVE),
    "augment.ratio": (2, POSITIVE),
}


def check(config: ConfigDict) -> None:
    """Refuses values that no run can use.

    Raises:
      UserError: naming the field.
    """
    values = {name: value_of(config, name) for name in field_names(config)}
    for interval, names in NUMBERS.items():
        for name in names:
            if values[name] is not None and values[name] not in interval:
                raise UserError(f"{name}={values[name]} must be {interval}")
    for name, (length, interval) in TUPLES.items():
        value = values[name]
        if not isinstance(value, Sequence) or len(value) != length:
            raise UserError(f"{name}={value} must have {length} numbers")
        if not all(number in interval for number in value):
            raise UserError(f"{name}={value}: each must be {interval}")
    for name, words in WORDS.items():
        if values[name] not in words:
            raise UserError(f"{name}={values[name]} must be one of {', '.join(words)}")
    _check_sizes(values)
    _check_together(config)
    _check_patterns(config)


def _check_sizes(values: dict[str, Any]) -> None:
    for bounds, words in ((LARGEST, "at most"), (SMALLEST, "0 or at least")):
        for bound, names in bounds.items():
            for name in names:
                value = values[name]
                numbers = value if isinstance(value, Sequence) else (value,)
                if any(n > bound if bounds is LARGEST else 0 < n < bound for n in numbers if n):
                    raise UserError(f"{name}={value} must be {words} {bound}")
    if values["optim.eps"] == 0:
        raise UserError("optim.eps=0 must be above 0: Adam divides by it without a gradient")


def _check_together(config: ConfigDict) -> None:
    """Refuses fields that do not go with each other."""
    augment = config.augment
    for name in ("scale", "ratio"):
        low, high = augment[name]
        if low > high:
            raise UserError(f"augment.{name}={augment[name]}: the first must be the smaller one")
    most = config.model.image_size // 2
    if augment.crop in ("pad", "src", "shift") and augment.pad > most:
        raise UserError(f"augment.pad={augment.pad} must be at most half the image, {most} pixels")
    reference = config.optim.reference_batch or config.batch_size
    rate = config.optim.learning_rate * config.batch_size / reference
    if rate > MOST_RATE:
        raise UserError(
            f"optim.learning_rate={config.optim.learning_rate} for {reference} examples is {rate:g}"
            f" for batch_size={config.batch_size}; it must be at most {MOST_RATE}"
        )
    if config.batch_size % config.accumulate:
        raise UserError(
            f"batch_size={config.batch_size} does not divide into accumulate="
            f"{config.accumulate} micro-batches"
        )


def _check_patterns(config: ConfigDict) -> None:
    """Refuses texts that are parsed long after the start."""
    durations.profile_steps(config.profile_steps)
    rules.compiled(config.init_allow_missing, "init_allow_missing")
    TrainTransform(config)  # refuses what it cannot do
