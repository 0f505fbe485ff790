"""Constants of a reduction that images decide on: found once, and stored with the weights."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from evovit_jax import flops
from evovit_jax.data import on_device
from evovit_jax.data.source import Drawn
from evovit_jax.errors import UserError
from evovit_jax.inference import evaluation
from evovit_jax.inference.ready_model import ReadyModel
from evovit_jax.models import EvalTransform
from evovit_jax.parallel import sharding
from evovit_jax.reduction import Reducer, describe, parse
from evovit_jax.weights import save_weights


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Batches on the host; each time that they are read, they are normalised on the devices.

    Attributes:
      rows: {"image": uint8 [b h w 3], "label": int32 [b], "mask": bool [b]}, all of one size.
      mesh: of the devices that share a batch.
      transform: of the model.
    """

    rows: list[dict[str, np.ndarray]]
    mesh: Mesh
    transform: EvalTransform

    def __iter__(self) -> Iterator[tuple[Float[Array, "b h w c"], Int[Array, " b"]]]:
        for rows in tqdm(self.rows, desc="calibrate", unit="batch", leave=False, disable=None):
            batch = sharding.put_batch(self.mesh, rows)
            pixels = batch["image"]
            yield (
                on_device.normalize(pixels, self.transform.mean, self.transform.std),
                batch["label"],
            )


def calibrate(
    prepared: ReadyModel,
    data: str,
    output: str,
    *,
    images: int,
    batch_size: int | None = None,
    data_dir: str = "",
) -> dict[str, Any]:
    """Calibrates the reduction of a model, and writes both to a weight file.

    Args:
      prepared: the model, its weights trained without the reduction.
      data: as `--data` takes it.
      output: a `.safetensors` file, which every command takes as `--weights`.
      images: how many to look at, drawn by chance.
      batch_size: images at once, over all devices; None for what suits the hardware.
      data_dir: where TFDS data sets lie.

    Returns:
      `model`, `reduction` in the form that `--reduction` takes, `gmacs` of one image, the number of
      `examples` that were looked at, and `output`.

    Raises:
      UserError: the reduction has nothing to calibrate, or the data or the output cannot be used.
    """
    if not output.endswith(".safetensors"):
        raise UserError(f"--output={output} must end in .safetensors")
    if images < 1:
        raise UserError(f"--images={images} must be at least 1")
    if jax.process_count() > 1:
        raise UserError("a calibration runs on one machine; start it there alone")
    reducer = getattr(prepared.model, "reducer", None)
    if reducer is None or type(reducer).calibrated is Reducer.calibrated:
        raise UserError(f"reduction {prepared.reduction!r} has nothing to calibrate")
    config = evaluation.data_config(prepared, data, batch_size=batch_size, data_dir=data_dir)
    mesh = sharding.make_mesh(config)
    source = Drawn(evaluation.open_images(prepared, config), images)
    with jax.set_mesh(mesh), evaluation.open_batches(prepared, config, source) as batches:
        rows = [batch for batch in batches if batch["mask"].all()]
        if not rows:
            raise UserError(f"{data} does not fill one batch of {config.eval_batch_size} images")
        found = reducer.calibrated(prepared.model, LabelledImages(rows, mesh, prepared.transform))
    spec = specification(parse(prepared.reduction)[0], found)
    prepared.model.reducer = found
    save_weights(prepared.model, output, reduction=spec)
    return {
        "model": prepared.name,
        "reduction": spec,
        "gmacs": float(f"{flops.gmacs(prepared.model):.4g}"),
        "examples": sum(len(batch["label"]) for batch in rows),
        "output": output,
    }


def specification(name: str, reducer: Reducer) -> str:
    """The name and the fields of a reducer that are not the method's own, as `--reduction` has."""
    fields, usual = reducer.fields, type(reducer.fields)()
    given = {
        field.name: getattr(fields, field.name)
        for field in dataclasses.fields(fields)
        if getattr(fields, field.name) != getattr(usual, field.name)
    }
    return describe({"name": name, **given})
