"""The maps of a pyramid's stages, as the descriptions of golden outputs name them."""

import re

import jax
import jax.numpy as jnp

from evovit_jax.models.outputs import Outputs

ORDINALS = ("first", "second", "third", "fourth", "fifth")


def stage_map(words: str, out: Outputs) -> jax.Array | None:
    """The map that "... of the second stage ..., NCHW" is, None where it is something else."""
    found = re.search(r"\bof the (\w+) stage\b.*\b(NCHW|NHWC)\b", words)
    if found is None:
        return None
    ordinal, layout = found.groups()
    stages = sum(name.startswith("stage") for name in out.aux)
    number = stages - 1 if ordinal == "last" else ORDINALS.index(ordinal)
    places = out.aux[f"stage{number}"]
    return jnp.moveaxis(places, 3, 1) if layout == "NCHW" else places
