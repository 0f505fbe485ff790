"""Top-1 and top-5 of a model on labelled images, its speed, and its multiply-adds."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict
from tqdm import tqdm

from evovit_jax import config as config_lib
from evovit_jax import flops
from evovit_jax.data import pipeline
from evovit_jax.data.on_device import Batch
from evovit_jax.data.source import Source, numbered_by
from evovit_jax.data.spec import DataSpec
from evovit_jax.errors import UserError
from evovit_jax.hardware import limits, platforms
from evovit_jax.inference import scoring
from evovit_jax.inference.ready_model import ReadyModel
from evovit_jax.parallel import inference_program, sharding

# Images a device takes at once: more do not fit a CPU's cache, and fewer leave a GPU idle.
DEVICE_BATCH = {"cpu": 8}
OTHER_DEVICE_BATCH = 64
MOST_BATCH = 2**24  # as in training
MADE_AHEAD = 4  # batches: in use, and being made


def data_config(
    prepared: ReadyModel, data: str, *, batch_size: int | None = None, data_dir: str = ""
) -> ConfigDict:
    """The fields that reading labelled `data` for a model takes.

    Raises:
      UserError: the model has no classes, or the batch does not divide over the devices or is
        larger than the memory.
    """
    config = images_config(prepared, data, batch_size=batch_size, data_dir=data_dir)
    spec = DataSpec.parse(data)
    # A TFDS data set without a split is evaluated on its validation, else on its test split.
    config.eval_data = "" if spec.kind == "tfds" and not spec.split else data
    config.model.num_classes = len(prepared.class_names())
    return config


def images_config(
    prepared: ReadyModel, data: str, *, batch_size: int | None = None, data_dir: str = ""
) -> ConfigDict:
    """The fields that reading `data` takes where its labels do not count.

    Raises:
      UserError: the batch does not divide over the devices or is larger than the memory.
    """
    config, transform = config_lib.get_config(), prepared.transform
    config.data, config.data_dir, config.eval_data = data, data_dir, data
    config.max_image_pixels = prepared.max_image_pixels
    config.model.image_size = transform.image_size
    config.eval_transform.resize = transform.resize
    config.eval_transform.interpolation = transform.interpolation
    config.mean, config.std = transform.mean, transform.std
    check_batch_size(batch_size)
    each = DEVICE_BATCH.get(platforms.platform(), OTHER_DEVICE_BATCH)
    config.eval_batch_size = each * jax.device_count() if batch_size is None else batch_size
    config.batch_size = config.eval_batch_size
    size, side = config.eval_batch_size, transform.image_size
    needed = MADE_AHEAD * 3 * size * side**2
    limits.check_memory(f"batches of {size} x {side} px need", needed)
    return config


def check_batch_size(batch_size: int | None) -> None:
    """Refuses a batch that the devices cannot share; None is what suits the hardware.

    Raises:
      UserError: it is less than 1, too large, or does not divide over the devices.
    """
    devices = jax.device_count()
    if batch_size is not None and not 1 <= batch_size <= MOST_BATCH:
        raise UserError(f"batch_size={batch_size} must be at least 1 and at most {MOST_BATCH}")
    if batch_size is not None and batch_size % devices:
        raise UserError(f"batch_size={batch_size} does not divide over {devices} devices")


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
    with jax.set_mesh(mesh), open_batches(prepared, config) as batches:
        step = compiled_step(prepared, config, mesh)
        shown = tqdm(batches, desc="evaluate", unit="batch", disable=quiet or None)
        start = time.perf_counter()
        accuracy = scoring.evaluate(step, shown, mesh)
        seconds = time.perf_counter() - start
    return {
        "model": prepared.name,
        "reduction": prepared.reduction,
        "top1": round(accuracy["top1"], 3),
        "top5": round(accuracy["top5"], 3),
        "examples": accuracy["examples"],
        "images_per_second": round(accuracy["examples"] / seconds, 1),
        "gmacs": float(f"{flops.gmacs(prepared.model):.4g}"),
    }


def open_images(prepared: ReadyModel, config: ConfigDict, *, labels_needed: bool = True) -> Source:
    """The images of `config.eval_data`, their classes numbered as the model's.

    Raises:
      UserError: the data cannot be used, or has other classes than the model.
    """
    source = pipeline.eval_source(config, labels_needed=labels_needed)
    return numbered_by(prepared.class_names(), source) if source.has_names else source


def open_batches(
    prepared: ReadyModel, config: ConfigDict, source: Source | None = None
) -> pipeline.EvalBatches:
    """This process's batches of `source`, by default of `open_images`.

    Raises:
      UserError: as `open_images`.
    """
    return pipeline.make_eval_batches(
        config,
        local_batch_size=config.eval_batch_size // jax.process_count(),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        source=source or open_images(prepared, config),
    )


def compiled_step(prepared: ReadyModel, config: ConfigDict, mesh: Mesh) -> Callable[..., dict]:
    """`step(sums, batch) -> sums`, compiled for batches of `config.eval_batch_size`."""
    look, state = prepared.program
    state, sums = jax.device_put((state, scoring.new_sums()), sharding.replicated(mesh))
    step = scoring.make_step(lambda state, pixels: look(state, pixels)[0], mesh)
    return functools.partial(step.lower(state, sums, _shapes(config, mesh)).compile(), state)


def compiled_outcomes(
    prepared: ReadyModel, config: ConfigDict, mesh: Mesh
) -> Callable[[Batch], dict[str, jax.Array]]:
    """`scoring.outcomes` and `mask` of a batch of `config.eval_batch_size`, compiled."""
    look, state = prepared.program
    state = jax.device_put(state, sharding.replicated(mesh))

    def outcomes(state: Any, batch: Batch) -> dict[str, jax.Array]:
        found = scoring.outcomes(look(state, batch["image"])[0], batch["label"])
        return found | {"mask": batch["mask"]}

    step = inference_program.jitted(outcomes, mesh)
    return functools.partial(step.lower(state, _shapes(config, mesh)).compile(), state)


def compiled_of_pixels(
    look: Callable[[Any, Array], Any], states: Sequence[Any], config: ConfigDict, mesh: Mesh
) -> list[Callable[[Array], Any]]:
    """`look(state, pixels)` for each of some states that are alike: one program, compiled once.

    The pixels are uint8 `[b, s, s, 3]`, `config.eval_batch_size` of `config.model.image_size`.
    """
    states = [jax.device_put(state, sharding.replicated(mesh)) for state in states]
    program = inference_program.jitted(look, mesh)
    program = program.lower(states[0], _shapes(config, mesh)["image"]).compile()
    return [functools.partial(program, state) for state in states]


def _shapes(config: ConfigDict, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of `config.eval_batch_size`, without its values."""
    size, side = config.eval_batch_size, config.model.image_size
    shapes = {"image": ((size, side, side, 3), np.uint8), "label": ((size,), np.int32)}
    shapes["mask"] = ((size,), np.bool_)
    split = sharding.batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(*of, sharding=split) for name, of in shapes.items()}
