"""PiT under timm's names and under the official ones.

tests/weights/state_dict_test.py sends it through a round trip.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from flax import nnx

from evovit_jax.models.positions import resize_positions
from evovit_jax.weights.families import Family
from evovit_jax.weights.layouts import Layout, Renames, Scheme, renamed_scheme
from evovit_jax.weights.names import reducers

# (1, rows, columns, width) here, (1, width, rows, columns) there.
MAP = Layout(
    lambda s: (s[0], s[3], s[1], s[2]),
    lambda a: a.transpose(0, 2, 3, 1),
    lambda a: a.transpose(0, 3, 1, 2),
)
BLOCKS = (r"stages\.(\d+)\.(\d+)\.(.*)", r"transformers.\1.blocks.\2.\3")
OFFICIAL_RENAMES = (BLOCKS, (r"downsamples\.(.*)", r"pools.\1"))
# timm keeps a pool with the stage after it.
TIMM_RENAMES = (
    BLOCKS,
    (r"downsamples\.(\d+)\.(.*)", lambda m: f"transformers.{int(m[1]) + 1}.pool.{m[2]}"),
)


def scheme(model: nnx.Module, renames: Renames) -> Scheme:
    """The names of a kind of checkpoint."""
    plain = renamed_scheme(model, (*renames, *reducers.renames(model)))
    links = (
        dataclasses.replace(link, layout=MAP) if link.path == "pos_embed" else link
        for link in plain.links
    )
    return Scheme(tuple(links), resize={"pos_embed": _resize})


def _resize(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Positions that were learned for another grid, interpolated."""
    if value.ndim != 4 or value.shape[:2] != shape[:2]:
        return value
    places = jnp.asarray(MAP.from_torch(value)).reshape(1, -1, shape[1])
    resized = resize_positions(places, value.shape[2:], shape[2:])
    return MAP.to_torch(np.asarray(resized).reshape(1, *shape[2:], shape[1]))


FAMILIES = (
    Family("pit", functools.partial(scheme, renames=OFFICIAL_RENAMES), r"pools\.0\.conv\.weight"),
    Family("timm", functools.partial(scheme, renames=TIMM_RENAMES)),
)
