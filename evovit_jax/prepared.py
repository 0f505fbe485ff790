"""A model ready to look at images: its weights loaded, and how its images are prepared.

What the commands (`evaluate`, `compare`, `predict`, `visualize`) share: `--model`, `--weights` and
`--reduction` mean the same in all of them. Weights are a file, a `hf://` name, or the work
directory of a training run, which knows its own model.
"""

import argparse
import dataclasses
import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from evovit_jax.convert import load_weights
from evovit_jax.data import transforms
from evovit_jax.data.decode import Picture
from evovit_jax.errors import UserError
from evovit_jax.models import EvalTransform, create_model, model_entry
from evovit_jax.reduction import describe

RUN_CONFIG = "config.json"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A model and its evaluation transform.

    Attributes:
      name: the model's name.
      reduction: in the form that `--reduction` takes.
      model: with its weights.
      transform: how an image is prepared.
      notes: what loading had to say (interpolated positions, ...).
    """

    name: str
    reduction: str
    model: nnx.Module
    transform: EvalTransform
    notes: tuple[str, ...] = ()

    def crop(self, picture: Picture) -> UInt8[np.ndarray, "s s 3"]:
        """The part of an opened image that the model sees.

        Raises:
          UnreadableImage: it cannot be decoded.
        """
        t = self.transform
        pixels = transforms.resize_center_crop(
            picture.whole(), t.resize, t.image_size, t.interpolation
        )
        grey = pixels.ndim == 2
        return np.broadcast_to(pixels[..., None], (*pixels.shape, 3)) if grey else pixels

    def normalise(self, images: UInt8[np.ndarray, "b s s 3"]) -> Float[Array, "b s s 3"]:
        """What the model takes, float32."""
        mean, std = np.float32(self.transform.mean), np.float32(self.transform.std)
        return jnp.asarray((images.astype(np.float32) / 255 - mean) / std)


def prepare(
    model: str | None = None,
    weights: str | None = None,
    reduction: str | None = None,
    *,
    resize: int | None = None,
    crop_fraction: float | None = None,
    allow_missing: bool = False,
    **overrides: Any,
) -> Prepared:
    """Makes a model, loads its weights, and finds its transform.

    Args:
      model: a name of `list_models()`; None where `weights` is a run's work directory.
      weights: a file, a directory or `hf://` name; None for random weights.
      reduction: as `--reduction` takes it; None for the model's (or the run's) own.
      resize: shorter side before the centre crop, pixels; None for the model's own.
      crop_fraction: image size over `resize`, the other way to say it.
      allow_missing: whether gaps and leftovers in the weights are allowed.
      **overrides: fields of the model's `Config`.

    Raises:
      UserError: what is missing, unknown or does not fit.
    """
    run = read_run(weights) if weights else None
    if run:
        saved = {key: value for key, value in run["model"].items() if value is not None}
        name = saved.pop("name")
        if model not in (None, name):
            raise UserError(f"{weights} is a run of {name}, not of {model}; leave --model out")
        overrides = saved | {key: value for key, value in overrides.items() if value is not None}
        reduction = run["reduction"] or None if reduction is None else reduction
        transform = _transform_of_run(run)
    elif model is None:
        raise UserError("say which model (--model=NAME); only a run's work directory knows its own")
    else:
        name, transform = model, model_entry(model).transform
    reduction = model_entry(name).reduction if reduction is None else reduction
    made = create_model(name, reduction, **overrides)
    notes = load_weights(made, weights, allow_missing=allow_missing) if weights else []
    transform = transform.at(made.config.image_size)
    if crop_fraction:
        resize = int(transform.image_size / crop_fraction)
    if resize:
        transform = dataclasses.replace(transform, resize=resize)
    return Prepared(name, describe(reduction), made, transform, tuple(notes))


def read_run(weights: str) -> dict[str, Any] | None:
    """The config of the training run whose work directory `weights` is, else None."""
    path = pathlib.Path(weights).expanduser() / RUN_CONFIG
    return json.loads(path.read_text()) if path.is_file() else None


def _transform_of_run(run: dict[str, Any]) -> EvalTransform:
    size, fields = run["model"]["image_size"], run["eval_transform"]
    return EvalTransform(
        image_size=size,
        resize=fields["resize"] or int(size / fields["crop_fraction"]),
        interpolation=fields["interpolation"],
        mean=tuple(run["mean"]),
        std=tuple(run["std"]),
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `prepare_from` reads."""
    parser.add_argument("--model", help="a name of evovit_jax.list_models()")
    parser.add_argument("--weights", help="a weight file, hf://NAME, or a run's work directory")
    parser.add_argument("--reduction", help="such as evit,keep_rate=0.7 (default: the model's own)")
    parser.add_argument("--image_size", type=int, help="pixels (default: the model's own)")
    parser.add_argument("--num_classes", type=int, help="of the head (default: the model's own)")
    parser.add_argument("--resize", type=int, help="shorter side before the centre crop, pixels")
    parser.add_argument("--crop_fraction", type=float, help="image size over resize")
    parser.add_argument("--dtype", help="compute dtype, float32 or bfloat16")
    parser.add_argument(
        "--allow_missing", action="store_true", help="load weights with gaps or leftovers"
    )


def prepare_from(flags: argparse.Namespace) -> Prepared:
    """The model that the flags ask for; what loading has to say goes to the console.

    Raises:
      UserError: as `prepare`.
    """
    prepared = prepare(
        flags.model,
        flags.weights,
        flags.reduction,
        resize=flags.resize,
        crop_fraction=flags.crop_fraction,
        allow_missing=flags.allow_missing,
        image_size=flags.image_size,
        num_classes=flags.num_classes,
        dtype=flags.dtype,
    )
    for note in prepared.notes:
        print(f"{flags.weights}: {note}", flush=True)
    return prepared
