"""The flags that every command which looks through a model shares.

Tested in tests/inference/ready_model_test.py.
"""

import argparse

from evovit_jax.data.stored_files import MOST_PIXELS
from evovit_jax.errors import UserError
from evovit_jax.inference.ready_model import ReadyModel, prepare
from evovit_jax.reduction import method_table


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `prepare_from` reads."""
    parser.add_argument("--model", help="a name of evovit_jax.list_models()")
    parser.add_argument("--weights", help="a weight file, hf://NAME, or a run's work directory")
    parser.add_argument(
        "--reduction",
        help="such as evit,keep_rate=0.7 (default: the weights' or the model's own): "
        f"{method_table.words()}",
    )
    parser.add_argument("--image_size", type=int, help="pixels (default: the model's own)")
    parser.add_argument("--num_classes", type=int, help="of the head (default: the model's own)")
    parser.add_argument("--classes", help="class embeddings (.npz) that features are compared with")
    parser.add_argument("--resize", type=int, help="shorter side before the centre crop, pixels")
    parser.add_argument("--crop_fraction", type=float, help="image size over resize")
    parser.add_argument("--dtype", help="compute dtype, float32 or bfloat16")
    parser.add_argument(
        "--max_image_pixels", type=int, default=MOST_PIXELS, help="that an image may have"
    )
    parser.add_argument(
        "--allow_missing", action="store_true", help="load weights with gaps or leftovers"
    )
    parser.add_argument(
        "--allow_nonfinite", action="store_true", help="load weights that are NaN or Inf"
    )


def prepare_from(flags: argparse.Namespace) -> ReadyModel:
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
        allow_nonfinite=flags.allow_nonfinite,
        image_size=flags.image_size,
        num_classes=flags.num_classes,
        classes=flags.classes,
        dtype=flags.dtype,
        max_image_pixels=flags.max_image_pixels,
    )
    for note in prepared.notes:
        print(f"{flags.weights}: {note}" if flags.weights else note, flush=True)
    return prepared


def split(flags: argparse.Namespace) -> list[str]:
    """The reductions that `--reductions` names; it may be empty where `--at_gmacs` is given.

    Raises:
      UserError: one stands there twice, or none, or `--reduction` is given beside it.
    """
    if flags.reduction is not None:
        raise UserError('--reduction is for one; name them all in --reductions="SPEC;SPEC"')
    specs = [spec.strip() for spec in flags.reductions.split(";") if spec.strip()]
    if len(set(specs)) < len(specs) or not (specs or getattr(flags, "at_gmacs", None)):
        raise UserError(f"--reductions must name each reduction once, got {flags.reductions!r}")
    return specs


def prepare_one(flags: argparse.Namespace, spec: str) -> ReadyModel:
    """The model that the flags ask for with one of several reductions.

    Raises:
      UserError: a bad reduction, or weights that do not fit.
    """
    try:
        return prepare_from(argparse.Namespace(**vars(flags) | {"reduction": spec}))
    except UserError as error:
        raise UserError(f"reduction {spec}: {error}") from None


def prepare_weights(flags: argparse.Namespace, spec: str) -> list[ReadyModel]:
    """The model with one reduction and each of the weights that `--weights="A;B"` names.

    Raises:
      UserError: as `prepare_one`; weights that are there twice, or are of different networks.
    """
    files = [None]
    if flags.weights is not None:
        files = [name.strip() for name in flags.weights.split(";") if name.strip()] or [""]
    if len(set(files)) < len(files):
        raise UserError(f"--weights must name each file once, got {flags.weights!r}")
    models = [
        prepare_one(argparse.Namespace(**vars(flags) | {"weights": file}), spec) for file in files
    ]
    first = models[0]
    for model in models[1:]:
        same = (model.name, model.model.config, model.transform)
        if same != (first.name, first.model.config, first.transform):
            raise UserError(
                f"--weights: {model.weights} and {first.weights} are of different networks; name "
                "trainings of one"
            )
    return models
