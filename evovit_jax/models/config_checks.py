"""What no network can be made with, told by the field's name before anything is computed."""

from collections.abc import Mapping
from typing import Any

from evovit_jax.errors import UserError
from evovit_jax.models.layers import REMAT_POLICIES

COUNTS = ("image_size", "patch_size", "in_channels", "embed_dim", "num_heads",
          "key_dim", "depth", "stem_width", "widths", "group_width", "stride", "sr_ratios",
          "patch_stride", "qkv_kernel", "kv_stride", "layers", "embed_dims", "stem_hidden_dim",
          "compressed_grid", "head_dim", "cross_num_heads", "cross_head_dim",
          "patch_kernel_size")  # fmt: skip
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
      UserError: a count is not a whole number from 1 (classes: from 0), a choice is unknown, or
        stochastic depth is outside [0, 1).
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
    if not _is_whole(config.num_classes) or config.num_classes < 0:
        raise UserError(f"num_classes must be a whole number from 0, got {config.num_classes!r}")
    rate = getattr(config, "drop_path_rate", 0.0)
    if not 0 <= rate < 1:
        raise UserError(f"drop_path_rate must be in [0, 1), got {rate}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
