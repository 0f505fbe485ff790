"""What no network can be made with, told by the field's name before anything is computed."""

from collections.abc import Mapping
from typing import Any

from evovit_jax.errors import UserError
from evovit_jax.models.layers import REMAT_POLICIES

COUNTS = ("image_size", "patch_size", "in_channels", "embed_dim", "num_heads",
          "key_dim", "depth", "stem_width", "widths", "group_width", "stride", "sr_ratios",
          "patch_stride", "qkv_kernel", "kv_stride", "layers", "embed_dims", "stem_hidden_dim",
          "compressed_grid", "head_dim", "cross_num_heads", "cross_head_dim",
          "patch_kernel_size", "kernel_size", "window_size")  # fmt: skip
# The largest counts (blocks: all together): no network that was ever published has more, and making
# one takes minutes.
MOST = {"depth": 256, "in_channels": 64, "image_size": 8192}
MOST_WIDTH, MOST_CLASSES = 2**16, 1_000_000
MOST_RATIO = 64  # of a hidden width
MOST_PATCHES = 2**14  # of an image
CHOICES: Mapping[str, tuple[str, ...]] = {
    "pool": ("token", "avg"),
    "remat": tuple(REMAT_POLICIES),
    "attention_kernel": ("auto", "matmul", "fused"),
    "dtype": ("float32", "bfloat16", "float16"),
}


def check_fields(config: Any) -> None:
    """Checks the fields of a model's `Config` that mean the same in all of them.

    A config with other words for some of them, or with more of such fields, has these in `choices`.

    Raises:
      UserError: a count is not a whole number from 1 (classes: from 0) or larger than any
        network's, a choice is unknown, or a share or ratio is none.
    """
    for name, known in {**CHOICES, **getattr(config, "choices", {})}.items():
        value = getattr(config, name, known[0])
        if value not in known:
            raise UserError(f"{name} must be one of {known}, got {value!r}")
    for name in COUNTS:
        value = getattr(config, name, 1)
        for count in value if isinstance(value, tuple) else (value,):
            if isinstance(count, tuple):  # lists of lists are the model's own to check
                continue
            if not _is_whole(count) or count < 1:
                raise UserError(f"{name} must be a whole number from 1, got {value!r}")
        numbers = _numbers(value)
        if (sum(numbers) if name == "depth" else max(numbers)) > MOST.get(name, MOST_WIDTH):
            raise UserError(f"{name} must be at most {MOST.get(name, MOST_WIDTH)}, got {value!r}")
    if not _is_whole(config.num_classes) or config.num_classes < 0:
        raise UserError(f"num_classes must be a whole number from 0, got {config.num_classes!r}")
    if config.num_classes > MOST_CLASSES:
        raise UserError(f"num_classes must be at most {MOST_CLASSES}, got {config.num_classes}")
    rate = getattr(config, "drop_path_rate", 0.0)
    if not 0 <= rate < 1:
        raise UserError(f"drop_path_rate must be in [0, 1), got {rate}")
    for name in ("mlp_ratio", "attn_ratio"):
        value = getattr(config, name, 1.0)
        if not all(0 < number <= MOST_RATIO for number in _numbers(value)):
            raise UserError(f"{name} must be above 0 and at most {MOST_RATIO}, got {value!r}")
    patch = min(_numbers(getattr(config, "patch_size", 16)))
    sides = _numbers(config.image_size)
    if (max(sides) // patch) * (min(sides) // patch) > MOST_PATCHES:
        raise UserError(
            f"image_size={config.image_size} and patches of {patch} px make more than "
            f"{MOST_PATCHES} patches"
        )


def _numbers(value: Any) -> list[Any]:
    """The numbers of a field: itself, or those of a list, or of the lists in it."""
    if not isinstance(value, tuple):
        return [value]
    return [number for part in value for number in _numbers(part)] or [0]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
