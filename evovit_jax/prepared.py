"""A model ready to look at images: its weights loaded, and how its images are prepared.

What the commands (`evaluate`, `compare`, `predict`, `visualize`) share: `--model`, `--weights` and
`--reduction` mean the same in all of them. Weights are a file, a `hf://` name, or the work
directory of a training run, which knows its own model.
"""

import argparse
import dataclasses
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from evovit_jax.convert import load_weights
from evovit_jax.convert.transfer import TRAINED_SETTINGS
from evovit_jax.convert.weights import find_folder
from evovit_jax.data import transforms
from evovit_jax.data.decode import Picture
from evovit_jax.errors import UserError
from evovit_jax.models import EvalTransform, create_model, model_entry
from evovit_jax.reduction import describe, parse
from evovit_jax.workdir import config_file

# What of a run's config is read here; other programs have a config.json too.
RUN_FIELDS = {"model", "reduction", "eval_transform", "mean", "std"}
RANDOM_WEIGHTS = "random weights: give --weights=PATH"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A model and its evaluation transform.

    Attributes:
      name: the model's name.
      reduction: in the form that `--reduction` takes.
      model: with its weights.
      transform: how an image is prepared.
      weights: where they are from; None for random ones.
      notes: what loading had to say (random weights, interpolated positions, ...).
    """

    name: str
    reduction: str
    model: nnx.Module
    transform: EvalTransform
    weights: str | None = None
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
      weights: a file, a directory or `hf://` name; None for random weights, which is noted.
      reduction: as `--reduction` takes it; None for the model's (or the run's) own.
      resize: shorter side before the centre crop, pixels, at least the image size; None for the
        model's own.
      crop_fraction: image size over `resize`, the other way to say it; in (0, 1].
      allow_missing: whether gaps and leftovers in the weights are allowed.
      **overrides: fields of the model's `Config`.

    Raises:
      UserError: what is missing, unknown or does not fit.
    """
    _check_given(weights, resize, crop_fraction)
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
    transform = _with_resize(transform.at(made.config.image_size), resize, crop_fraction)
    notes = [RANDOM_WEIGHTS]
    if weights:
        notes = load_weights(made, weights, allow_missing=allow_missing)
        _check_settings(made, reduction, weights)
    return Prepared(name, describe(reduction), made, transform, weights, tuple(notes))


def _check_settings(model: nnx.Module, spec: str, weights: str) -> None:
    """Refuses weights that have changed what the reduction's specification says."""
    for name, value in parse(spec)[1].items():
        found = getattr(model.reducer.fields, name)
        if name in TRAINED_SETTINGS and found != value:
            raise UserError(
                f"{weights} was trained with {name}={str(found).lower()}: "
                f"leave {name} out of the reduction"
            )


def _check_given(weights: str | None, resize: int | None, crop_fraction: float | None) -> None:
    """Refuses what can be seen to be wrong before a model is made."""
    if weights == "":
        raise UserError("--weights is empty; give a weight file, hf://NAME, or a run's directory")
    if crop_fraction is not None and not 0 < crop_fraction <= 1:
        raise UserError(f"--crop_fraction={crop_fraction} must be more than 0 and at most 1")
    if resize is not None and crop_fraction is not None:
        raise UserError("--resize and --crop_fraction say the same thing; give one of the two")


def _with_resize(
    transform: EvalTransform, resize: int | None, crop_fraction: float | None
) -> EvalTransform:
    if crop_fraction is not None:
        resize = int(transform.image_size / crop_fraction)
    if resize is None:
        return transform
    if resize < transform.image_size:
        raise UserError(
            f"--resize={resize} must be at least the image size, {transform.image_size} pixels"
        )
    return dataclasses.replace(transform, resize=resize)


def read_run(weights: str) -> dict[str, Any] | None:
    """The config of the training run whose work directory `weights` is, else None.

    Raises:
      UserError: the config cannot be read, or is not whole.
    """
    folder = find_folder(weights)
    path = None if folder is None else folder / config_file.FILE
    try:
        if path is None or not path.is_file():
            return None
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:  # UnicodeDecodeError and JSONDecodeError are the latter
        raise UserError(
            f"{path} is damaged or cannot be read ({error}); "
            "resuming the run writes it again, or give a weight file"
        ) from None
    is_run = isinstance(found, dict) and set(found) >= RUN_FIELDS
    model = found["model"] if is_run else None
    return found if isinstance(model, dict) and set(model) >= {"name", "image_size"} else None


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
        print(f"{flags.weights}: {note}" if flags.weights else note, flush=True)
    return prepared
