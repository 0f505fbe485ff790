"""Functions of a batch that run on each device's own rows, without communication.

Tested by `tests/parallel/sharding_test.py`.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

BATCH_AXES = ("data", "fsdp")


def per_device(function: Callable[..., Any], *arrays: Any, shared: tuple = ()) -> Any:
    """`function` of the arrays, of each device's part of the batch on its own when a mesh is set.

    Without a mesh the function is called as it is.

    Args:
      function: of (*shared, *arrays); its results have the batch as their first dimension.
      arrays: arrays, or pytrees of them, whose first dimension is the batch, which the mesh's
        devices must divide.
      shared: what every device has whole: a layer's parameters.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = set(mesh.axis_names) - set(mesh.manual_axes)
    axes = tuple(axis for axis in BATCH_AXES if axis in free)
    # XLA takes what is empty for a constant, and refuses a device's part of constants alone.
    empty = any(x.size == 0 for x in jax.tree.leaves(arrays))
    if not axes or mesh.size == 1 or empty:
        return function(*shared, *arrays)
    spec = PartitionSpec(axes)
    specs = (PartitionSpec(),) * len(shared) + (spec,) * len(arrays)
    return jax.shard_map(function, in_specs=specs, out_specs=spec)(*shared, *arrays)
