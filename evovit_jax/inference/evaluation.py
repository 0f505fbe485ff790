"""Top-1 and top-5 of a model on labelled images, its speed, and its multiply-adds."""

import collections
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from evovit_jax import config as config_lib
from evovit_jax import flops
from evovit_jax.data import on_device, pipeline
from evovit_jax.data.source import numbered_by
from evovit_jax.errors import UserError
from evovit_jax.inference import compiled, scoring
from evovit_jax.inference.class_names import class_names
from evovit_jax.inference.ready_model import ReadyModel
from evovit_jax.parallel import sharding

# Images a device takes at once: more do not fit a CPU's cache, and fewer leave a GPU idle.
DEVICE_BATCH = {"cpu": 8}


OTHER_DEVICE_BATCH = 64


AHEAD = 2  # batches that wait for the device


def data_config(
    prepared: ReadyModel, data: str, *, batch_size: int | None = None, data_dir: str = ""
) -> ConfigDict:
    """The fields that reading `data` for a model takes.

    Raises:
      UserError: the batch is empty or does not divide over the devices.
    """
    config, transform = config_lib.get_config(), prepared.transform
    config.data, config.data_dir = data, data_dir
    # A TFDS data set without a split is evaluated on its validation, else on its test split.
    config.eval_data = "" if _is_whole(data) else data
    config.model.num_classes = prepared.model.config.num_classes
    config.model.image_size = transform.image_size
    config.eval_transform.resize = transform.resize
    config.eval_transform.interpolation = transform.interpolation
    config.mean, config.std = transform.mean, transform.std
    check_batch_size(batch_size)
    each = DEVICE_BATCH.get(jax.default_backend(), OTHER_DEVICE_BATCH)
    config.eval_batch_size = each * jax.device_count() if batch_size is None else batch_size
    config.batch_size = config.eval_batch_size
    return config


def check_batch_size(batch_size: int | None) -> None:
    """Refuses a batch that the devices cannot share; None is what suits the hardware.

    Raises:
      UserError: it is less than 1, or does not divide over the devices.
    """
    devices = jax.device_count()
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size={batch_size} must be at least 1")
    if batch_size is not None and batch_size % devices:
        raise UserError(f"batch_size={batch_size} does not divide over {devices} devices")


def _is_whole(data: str) -> bool:
    kind, _, rest = data.partition(":")
    if kind != "tfds":
        return False
    from evovit_jax.data import tfds_source  # folders do without TFDS

    return not tfds_source.parse(rest)[1]


def evaluate(
    prepared: ReadyModel,
    data: str,
    *,
    batch_size: int | None = None,
    data_dir: str = "",
    quiet: bool = False,
) -> dict[str, Any]:
    """Evaluates a model on all devices.

    Args:
      prepared: the model.
      data: as `--data` takes it.
      batch_size: images at once, over all devices; None for what suits the hardware.
      data_dir: where TFDS data sets lie.
      quiet: no progress bar.

    Returns:
      `model`, `reduction`, `top1` and `top5` in percent, `examples`, `images_per_second` without
      compilation, and `gmacs` of one image.

    Raises:
      UserError: the data cannot be used, or has other classes than the model.
    """
    config = data_config(prepared, data, batch_size=batch_size, data_dir=data_dir)
    mesh = sharding.make_mesh(config)
    batches = open_batches(prepared, config)
    with jax.set_mesh(mesh):
        step = compiled_step(prepared, config, mesh)
        shown = tqdm(batches, desc="evaluate", unit="batch", disable=quiet or None)
        start = time.perf_counter()
        found = scoring.evaluate(step, shown, mesh)
        seconds = time.perf_counter() - start
    return {
        "model": prepared.name,
        "reduction": prepared.reduction,
        "top1": round(found["top1"], 3),
        "top5": round(found["top5"], 3),
        "examples": found["examples"],
        "images_per_second": round(found["examples"] / seconds, 1),
        "gmacs": float(f"{flops.gmacs(prepared.model):.4g}"),
    }


def open_batches(prepared: ReadyModel, config: ConfigDict) -> pipeline.EvalBatches:
    """This process's batches of `config.eval_data`, its classes numbered as the model's.

    Raises:
      UserError: the data cannot be used, or has other classes than the model.
    """
    source = pipeline.eval_source(config)
    if getattr(source, "has_names", False):
        names = class_names(config.model.num_classes, weights=prepared.weights)
        source = numbered_by(names, source)
    return pipeline.make_eval_batches(
        config,
        local_batch_size=config.eval_batch_size // jax.process_count(),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        source=source,
    )


def compiled_step(prepared: ReadyModel, config: ConfigDict, mesh: Mesh) -> Callable[..., dict]:
    """`step(sums, batch) -> sums`, compiled for batches of `config.eval_batch_size`."""
    chunk = compiled.default_chunk(config.model.image_size)
    logits_of, state = compiled.program(prepared.model, chunk=chunk)
    copied, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)

    def add(state: Any, sums: dict, batch: dict) -> dict:
        images = on_device.normalize(batch["image"], config.mean, config.std)
        found = scoring.score(logits_of(state, images), batch)
        return jax.tree.map(jax.numpy.add, sums, found)

    size, side = config.eval_batch_size, config.model.image_size
    shapes = {"image": ((size, side, side, 3), np.uint8), "label": ((size,), np.int32)}
    shapes["mask"] = ((size,), np.bool_)
    batch = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
    state = jax.device_put(state, copied)
    run = jax.jit(add, in_shardings=(copied, copied, split), out_shardings=copied)
    return Paced(functools.partial(run.lower(state, scoring.new_sums(), batch).compile(), state))


class Paced:
    """Calls `step`, and waits when the device is more than `AHEAD` calls behind.

    Without it the host would put a whole data set into the device's memory.
    """

    def __init__(self, step: Callable[[dict, dict], dict]):
        self._step, self._pending = step, collections.deque()

    def __call__(self, sums: dict, batch: dict) -> dict:
        """The step's result, perhaps not computed yet."""
        sums = self._step(sums, batch)
        self._pending.append(sums)
        if len(self._pending) > AHEAD:
            jax.block_until_ready(self._pending.popleft())
        return sums
