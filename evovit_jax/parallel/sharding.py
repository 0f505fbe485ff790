"""The mesh, and where the batch and every array of the state live on it.

Two axes, ("data", "fsdp"): the batch is split over both, parameters (their optimiser moments and
averages with them) over "fsdp" alone. `mesh.fsdp = 1` is data parallelism, `mesh.data = 1` fully
sharded data parallelism, anything between a mixture.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from evovit_jax import rules
from evovit_jax.errors import UserError, suggestion
from evovit_jax.parallel.per_device import BATCH_AXES

BATCH = PartitionSpec(BATCH_AXES)
STRATEGIES = ("fsdp", "replicate")


def make_mesh(config: ConfigDict, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh of `config.mesh` over all devices.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or do not divide the batches.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": config.mesh.data, "fsdp": config.mesh.fsdp}
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 for size in sizes.values() if size != -1):
        raise UserError(f"mesh.data and mesh.fsdp must be positive, one of them may be -1: {sizes}")
    given = math.prod(size for size in sizes.values() if size != -1)
    if free:
        sizes[free[0]] = len(devices) // given
    if sizes["data"] * sizes["fsdp"] != len(devices):
        raise UserError(
            f"a mesh of data={config.mesh.data} and fsdp={config.mesh.fsdp} does not fit "
            f"{len(devices)} devices"
        )
    mesh = jax.make_mesh(
        (sizes["data"], sizes["fsdp"]),
        BATCH_AXES,
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices,
    )
    _check_batches(config, len(devices))
    return mesh


def _check_batches(config: ConfigDict, devices: int) -> None:
    per_step = devices * config.accumulate
    if config.batch_size % per_step:
        what = f"{devices} devices" + (
            f" times {config.accumulate} micro-batches" if config.accumulate > 1 else ""
        )
        raise UserError(
            f"batch_size={config.batch_size} does not divide over {what}; "
            f"use a multiple of {per_step}"
        )
    if config.eval_batch_size % devices:
        raise UserError(
            f"eval_batch_size={config.eval_batch_size} does not divide over {devices} devices; "
            f"use a multiple of {devices}"
        )
    augment = config.augment
    group, mixes = augment.mix_group, augment.mixup > 0 or augment.cutmix > 0
    if mixes and group and (config.batch_size % group or group % 2):
        raise UserError(
            f"augment.mix_group={group} must be even and divide batch_size={config.batch_size}; "
            "0 mixes the whole batch alike"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Split along the first dimension, over all devices."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def param_shardings(
    mesh: Mesh, params: Mapping[str, Any], strategy_rules: rules.Rules
) -> dict[str, NamedSharding]:
    """Where each parameter lives, by `mesh.rules`.

    "fsdp" splits the largest dimension that the axis divides, the last of equals; what has none is
    copied.

    Raises:
      UserError: an unknown strategy, or a parameter that no rule matches.
    """
    strategies = rules.match(strategy_rules, params, field="mesh.rules")
    size = mesh.shape["fsdp"]
    found = {}
    for name, strategy in strategies.items():
        if strategy not in STRATEGIES:
            raise UserError(f"mesh.rules: {strategy!r}; {suggestion(str(strategy), STRATEGIES)}")
        shape = params[name].shape
        dims = [i for i, length in enumerate(shape) if length % size == 0]
        spec = [None] * len(shape)
        if strategy == "fsdp" and size > 1 and dims:
            spec[max(dims, key=lambda i: (shape[i], i))] = "fsdp"
        found[name] = NamedSharding(mesh, PartitionSpec(*spec))
    return found


def state_shardings(mesh: Mesh, state: Any, params: dict[str, NamedSharding]) -> Any:
    """A sharding for every leaf of a state (arrays or their shapes).

    Wherever a leaf is filed under a parameter's name (a moment, an average) and has its rank, it
    lives where the parameter does; everything else is copied.
    """
    copied = replicated(mesh)

    def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = getattr(path[-1], "key", None) if path else None
        found = params.get(name, copied)
        return found if len(found.spec) == len(leaf.shape) else copied

    return jax.tree_util.tree_map_with_path(one, state)


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The global batch, of this process's rows of it."""
    sharding = batch_sharding(mesh)
    # Meant, but with several processes JAX counts it as a transfer that nobody asked for.
    with jax.transfer_guard_host_to_device("allow"):
        return {
            name: jax.make_array_from_process_local_data(sharding, rows)
            for name, rows in batch.items()
        }
