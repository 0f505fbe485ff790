"""Swin under timm's names and the official ones, which DynamicViT's code on it shares.

A patch merging belongs to the stage after it in timm, and to the stage before it officially.
tests/weights/state_dict_test.py sends it through a round trip.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from flax import nnx

from evovit_jax.models.bicubic import resize_bicubic
from evovit_jax.weights.families import Family
from evovit_jax.weights.layouts import Renames, Scheme, renamed_scheme, square_side
from evovit_jax.weights.names import reducers

BLOCKS = (r"stages\.(\d+)\.(\d+)\.(.*)", r"layers.\1.blocks.\2.\3")
TIMM_RENAMES = (
    BLOCKS,
    (r"downsamples\.(\d+)\.(.*)", lambda m: f"layers.{int(m[1]) + 1}.downsample.{m[2]}"),
    (r"head\.(.*)", r"head.fc.\1"),
)
OFFICIAL_RENAMES = (BLOCKS, (r"downsamples\.(\d+)\.(.*)", r"layers.\1.downsample.\2"))
# What official files have of windows, which follows from the sizes.
BUFFERS = r"layers\.\d+\.blocks\.\d+\.(attn\.relative_position_index|attn_mask)"
SPARSIFIED = r"layers\.\d+\.(score_predictor\..*|blocks\.\d+\.fastmlp\..*)"


def scheme(model: nnx.Module, renames: Renames) -> Scheme:
    """The names of a kind of checkpoint."""
    own = (*reducers.fast_paths(model, "fastmlp.fc1.0", "fastmlp.fc1.1"), *reducers.renames(model))
    stage = getattr(model.reducer.fields, "stage", None)
    predictors = (r"score_predictor\.(.*)", rf"layers.{stage}.score_predictor.\1")
    plain = renamed_scheme(model, (*own, predictors, *renames))
    windows = model.config.windows()
    tables = (link.path for link in plain.links if link.path.endswith("bias_table"))
    resize = {
        path: functools.partial(_resize, window=windows[int(path.split("/")[1])]) for path in tables
    }
    return dataclasses.replace(plain, resize=resize, spare=f"{BUFFERS}|{SPARSIFIED}")


def _resize(value: np.ndarray, shape: tuple[int, ...], *, window: tuple[int, int]) -> np.ndarray:
    """The biases of a square window for one of another size, interpolated as the authors do."""
    side = square_side(value.shape[0])
    if value.ndim != 2 or not side or value.shape[1] != shape[1]:
        return value
    differences = jnp.asarray(value.reshape(1, side, side, -1))
    rows, columns = window
    resized = resize_bicubic(differences, (2 * rows - 1, 2 * columns - 1))
    return np.asarray(resized).reshape(shape)


FAMILIES = (
    Family(
        "swin",
        functools.partial(scheme, renames=OFFICIAL_RENAMES),
        r"head\.weight|layers\.0\.downsample\..*",
        natural=reducers.has_fast_paths,
    ),
    Family("timm", functools.partial(scheme, renames=TIMM_RENAMES)),
)
