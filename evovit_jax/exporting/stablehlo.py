"""A network as StableHLO, as `jax.export` serialises it: one file for CPUs, GPUs and TPUs.

`jax.export.deserialize(content).call(images)` runs it, with JAX and without this library.

Tested in tests/exporting/checked_test.py.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from evovit_jax.exporting.formats import Images, Logits
from evovit_jax.hardware.platforms import SEVERAL, compiling_for

PLATFORMS = ("cpu", "cuda", "tpu")


def exported(
    logits: Logits, images: Images, platforms: tuple[str, ...] = PLATFORMS
) -> jax.export.Exported:
    """The lowered program for a batch of any size."""
    (batch,) = jax.export.symbolic_shape("batch")
    taken = jax.ShapeDtypeStruct((batch, *images.shape), jnp.dtype(images.dtype))
    with compiling_for(SEVERAL):
        return jax.export.export(jax.jit(logits), platforms=platforms)(taken)


def write(logits: Logits, images: Images, path: pathlib.Path) -> dict[str, Any]:
    """Writes the program; returns its platforms and the version of its calling convention."""
    program = exported(logits, images)
    path.write_bytes(program.serialize())
    return {
        "platforms": list(program.platforms),
        "calling_convention_version": program.calling_convention_version,
    }


def read(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """What is in a file, compiled for each size of batch that it is called with."""
    run = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
    return lambda images: np.asarray(run(images))
