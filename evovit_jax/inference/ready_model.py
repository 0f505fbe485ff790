"""A model ready to look at images: its weights loaded, and how its images are prepared.

What the commands (`evaluate`, `compare`, `predict`, `visualize`) share: `--model`, `--weights` and
`--reduction` mean the same in all of them. Weights are a file, a `hf://` name, or the work
directory of a training run, which knows its own model.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array, UInt8

from evovit_jax.data import transforms
from evovit_jax.data.decode import Picture
from evovit_jax.data.resize import interpolation
from evovit_jax.data.stored_files import MOST_PIXELS
from evovit_jax.errors import UserError, first_line
from evovit_jax.inference import compiled
from evovit_jax.inference.class_names import class_names
from evovit_jax.inference.zero_shot import ZeroShotClasses, read_classes
from evovit_jax.models import EvalTransform, create_model, model_entry
from evovit_jax.models.variables import Skeleton
from evovit_jax.parallel import inference_program
from evovit_jax.reduction import describe, parse
from evovit_jax.reduction.typed_fields import checked
from evovit_jax.weights import Loaded
from evovit_jax.weights.files import find_folder, stored_reduction
from evovit_jax.weights.load_save import load
from evovit_jax.workdir import config_file

LEAST_CROP, MOST_RESIZE = 1e-4, 2**16  # as a training's fields have them
RANDOM_WEIGHTS = "random weights: give --weights=PATH"


@dataclasses.dataclass(frozen=True)
class ReadyModel:
    """A model and its evaluation transform.

    Attributes:
      name: the model's name.
      reduction: in the form that `--reduction` takes.
      model: with its weights.
      transform: how an image is prepared.
      weights: where they are from; None for random ones.
      notes: what loading had to say (random weights, interpolated positions, ...).
      classes: what its features are compared with in place of a head; None for its own head.
      max_image_pixels: width times height that an image may have.
    """

    name: str
    reduction: str
    model: nnx.Module
    transform: EvalTransform
    weights: str | None = None
    notes: tuple[str, ...] = ()
    classes: ZeroShotClasses | None = None
    max_image_pixels: int = MOST_PIXELS

    @property
    def num_classes(self) -> int:
        """The number of its logits."""
        return len(self.classes.embeddings) if self.classes else self.model.config.num_classes

    def class_names(self, file: str | None = None) -> list[str]:
        """What its classes are called; `file`, with a name a line, knows best.

        Raises:
          UserError: there are none, or the file cannot be read or has another number of names.
        """
        if self.classes and self.classes.names and file is None:
            return list(self.classes.names)
        return class_names(self.num_classes, file=file, weights=self.weights)

    def crop(self, picture: Picture) -> UInt8[np.ndarray, "s s 3"]:
        """The part of an opened image that the model sees.

        Raises:
          UnreadableImage: it cannot be decoded.
        """
        t = self.transform
        return transforms.evaluation_pixels(picture, t.resize, t.image_size, t.interpolation)

    @functools.cached_property
    def program(self) -> tuple[Callable[[Any, Array], tuple[Array, tuple[Array, ...]]], Any]:
        """`compiled.of_pixels` of this model, not jitted yet, and the state that it takes."""
        look, fold = compiled.of_pixels(self.model, self.transform.mean, self.transform.std)
        state = fold(*Skeleton.variables(self.model))
        if self.classes is None:
            return look, state
        return self.classes.in_place_of_head(look), (state, self.classes.embeddings)

    @functools.cached_property
    def look(self) -> Callable[[UInt8[np.ndarray, "b s s 3"]], tuple[Array, tuple[Array, ...]]]:
        """Pixels to float32 logits `[b, k]` and token maps, compiled once a size of batch."""
        look, state = self.program
        return functools.partial(inference_program.jitted(look), state)


def prepare(
    model: str | None = None,
    weights: str | None = None,
    reduction: str | None = None,
    *,
    resize: int | None = None,
    crop_fraction: float | None = None,
    allow_missing: bool | str = False,
    allow_nonfinite: bool = False,
    classes: str | None = None,
    max_image_pixels: int = MOST_PIXELS,
    **overrides: Any,
) -> ReadyModel:
    """Makes a model, loads its weights, and finds its transform.

    Args:
      model: a name of `list_models()`; None where `weights` is a run's work directory.
      weights: a file, a directory or `hf://` name; None for random weights, which is noted.
      reduction: as `--reduction` takes it; None for what the weights are for, else the model's own.
      resize: shorter side before the centre crop, pixels, at least the image size; None for the
        model's own.
      crop_fraction: image size over `resize`, the other way to say it; in (0, 1].
      allow_missing: whether gaps and leftovers in the weights are allowed.
      allow_nonfinite: whether weights may be NaN or Inf.
      classes: an `.npz` file of class embeddings, see `read_classes`; None for the model's head.
      max_image_pixels: width times height that an image may have.
      **overrides: fields of the model's `Config`.

    Raises:
      UserError: what is missing, unknown or does not fit.
    """
    _check_given(weights, resize, crop_fraction)
    zero_shot = None if classes is None else read_classes(classes)
    if max_image_pixels < 1:
        raise UserError(f"--max_image_pixels={max_image_pixels} must be at least 1")
    run = config_file.read_run(find_folder(weights)) if weights else None
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
    if reduction is None:
        reduction = (weights and stored_reduction(weights)) or model_entry(name).reduction
    made = create_model(name, reduction, **overrides)
    transform = _with_resize(transform.at(made.config.image_size), resize, crop_fraction)
    notes = [RANDOM_WEIGHTS]
    if weights:
        allowed = {"allow_missing": allow_missing, "allow_nonfinite": allow_nonfinite}
        loaded = load(made, weights, **allowed)
        _check_settings(loaded, reduction, weights)
        notes = loaded.notes
    notes, described = tuple(notes), describe(reduction)
    return ReadyModel(name, described, made, transform, weights, notes, zero_shot, max_image_pixels)


def _check_settings(loaded: Loaded, spec: str, weights: str) -> None:
    """Refuses weights that have changed what the reduction's specification says."""
    given = parse(spec)[1]
    for name, value in loaded.settings.items():
        if given.get(name, value) != value:
            raise UserError(
                f"{weights} was trained with {name}={str(value).lower()}: "
                f"leave {name} out of the reduction"
            )


def _check_given(weights: str | None, resize: int | None, crop_fraction: float | None) -> None:
    """Refuses what can be seen to be wrong before a model is made."""
    if weights == "":
        raise UserError("--weights is empty; give a weight file, hf://NAME, or a run's directory")
    if crop_fraction is not None and not LEAST_CROP <= crop_fraction <= 1:
        raise UserError(
            f"--crop_fraction={crop_fraction} must be at least {LEAST_CROP} and at most 1"
        )
    if resize is not None and resize > MOST_RESIZE:
        raise UserError(f"--resize={resize} must be at most {MOST_RESIZE} pixels")
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


def _transform_of_run(run: dict[str, Any]) -> EvalTransform:
    try:
        size, fields = run["model"]["image_size"], run["eval_transform"]
        given = {
            "image_size": size,
            "resize": fields["resize"] or int(size / fields["crop_fraction"]),
            "interpolation": interpolation(fields["interpolation"]),
            "mean": tuple(run["mean"]),
            "std": tuple(run["std"]),
        }
    except (TypeError, KeyError, ValueError, ArithmeticError) as error:
        raise UserError(f"the run's {config_file.FILE} is damaged ({first_line(error)})") from None
    return EvalTransform(**checked(f"the run's {config_file.FILE}", EvalTransform, given))
