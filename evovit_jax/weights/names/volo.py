"""VOLO under the names of the official code, which are timm's.

tests/weights/state_dict_test.py sends it through a round trip.
"""

import bisect
import dataclasses
import itertools
import re

import numpy as np
from flax import nnx

from evovit_jax.models.volo import POOLING
from evovit_jax.weights.families import Family
from evovit_jax.weights.layouts import Scheme, as_convolution, renamed_scheme
from evovit_jax.weights.names import flat, reducers


def _stem(match: re.Match) -> str:
    """A convolution, its batch norm and a ReLU lie one after another."""
    number, layer, leaf = match.groups()
    return f"patch_embed.conv.{3 * int(number) + (layer == 'bn')}.{leaf}"


def scheme(model: nnx.Module) -> Scheme:
    """The official names: a stage a list, the downsampling between the first two."""
    starts = list(itertools.accumulate(model.config.layers[1:-1], initial=0))

    def block(match: re.Match) -> str:
        number, leaf = int(match[1]), match[2]
        stage = bisect.bisect(starts, number) - 1
        return f"network.{stage + 2}.{number - starts[stage]}.{leaf}"

    renames = (
        (r"patch_embed\.convs\.(\d+)\.(conv|bn)\.(.*)", _stem),
        (r"outlookers\.(.*)", r"network.0.\1"),
        (r"downsample\.(.*)", r"network.1.\1"),
        (r"blocks\.(\d+)\.(.*)", block),
        *reducers.renames(model),
    )
    layout = as_convolution(POOLING, model.config.embed_dims[0])
    links = tuple(
        dataclasses.replace(link, layout=layout) if link.path == "downsample/proj/kernel" else link
        for link in renamed_scheme(model, renames).links
    )
    return Scheme(links, resize={"pos_embed": resized_map})


def resized_map(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Positions `[1, rows, columns, d]` that were learned for another grid."""
    if value.ndim != 4 or value.shape[3] != shape[3]:
        return value
    flat_shape = (1, shape[1] * shape[2], shape[3])
    resized = flat.grid_resizer(0)(value.reshape(1, -1, shape[3]), flat_shape)
    return resized.reshape(shape) if resized.shape == flat_shape else value


FAMILIES = (Family("timm", scheme),)
