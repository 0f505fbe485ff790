"""Shows which tokens each stage of a model kept, merged or skipped, over the image, as PNG.

python -m evovit_jax.visualize --model=NAME --weights=PATH IMAGE... --output=DIR
python -m evovit_jax.visualize --weights=WORKDIR --data=tfds:digits:test --output=DIR
"""

import argparse
import contextlib
import functools
import json
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Int, UInt8
from tqdm import tqdm

from evovit_jax.data.decode import Picture, UnreadableImage, open_image
from evovit_jax.data.source import open_source
from evovit_jax.errors import UserError, run_command
from evovit_jax.inference import model_flags, output_folder, token_pictures
from evovit_jax.inference.ready_model import ReadyModel


def parse_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(prog="python -m evovit_jax.visualize", description=__doc__)
    model_flags.add_flags(parser)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files")
    parser.add_argument("--data", help="tfds:NAME[:SPLIT] or folder:PATH, instead of files")
    parser.add_argument("--count", type=int, default=8, help="how many images of --data")
    parser.add_argument("--data_dir", default="", help="where TFDS data sets lie")
    parser.add_argument("--output", required=True, help="folder for the PNG files, made if need be")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args(arguments)


def check(flags: argparse.Namespace) -> pathlib.Path:
    """The folder to write to.

    Raises:
      UserError: for a value that cannot be used, before anything is loaded.
    """
    if bool(flags.images) == bool(flags.data):
        raise UserError("give image files, or --data=SPEC, one of the two")
    if flags.count < 1:
        raise UserError(f"--count={flags.count} must be at least 1")
    return output_folder.open_folder(flags.output)


def named_pictures(flags: argparse.Namespace) -> Iterator[tuple[str, Picture]]:
    """The images that the flags ask for, opened, with a name for each one's picture.

    Raises:
      UserError: the data cannot be used, or an image cannot be read.
    """
    names: dict[str, int] = {}
    for file in flags.images:
        path = pathlib.Path(file)
        with readable(file):
            picture = open_image(path.expanduser().read_bytes())
        seen = names[path.stem] = names.get(path.stem, 0) + 1
        yield (path.stem if seen == 1 else f"{path.stem}_{seen}"), picture
    if flags.data:
        source = open_source(flags.data, "test", flags.data_dir)
        for i in range(min(flags.count, len(source))):
            with readable(source.describe(i)):
                example = source[i]
                picture = open_image(example["image"])
            yield f"{i:05d}_{source.class_names[example['label']]}", picture


@contextlib.contextmanager
def readable(image: str) -> Iterator[None]:
    """Names the image that cannot be read.

    Raises:
      UserError: it is not there, or cannot be decoded.
    """
    try:
        yield
    except (OSError, RuntimeError, UnreadableImage) as error:  # no home directory: RuntimeError
        raise UserError(f"cannot read image {image}: {error}") from None


@functools.partial(jax.jit, static_argnums=0)
def _token_maps(graphdef, state, images):
    from flax import nnx

    logits, out = nnx.merge(graphdef, state)(images)
    return logits.argmax(axis=-1), out.token_maps


def token_maps(
    prepared: ReadyModel, images: UInt8[np.ndarray, "b s s 3"]
) -> tuple[Int[np.ndarray, "b"], list[Int[np.ndarray, "b N"]]]:
    """The predicted class of each image, and the source map of each block."""
    from flax import nnx

    graphdef, state = nnx.split(prepared.model)
    classes, maps = _token_maps(graphdef, state, prepared.normalise(images))
    return np.asarray(classes), [np.asarray(token_map) for token_map in maps[:-1]]


def draw(prepared: ReadyModel, name: str, picture: Picture, folder: pathlib.Path) -> pathlib.Path:
    """Writes the picture of one image; returns its path.

    Raises:
      UserError: the image cannot be decoded, or its picture not be written.
    """
    with readable(name):
        crop = prepared.crop(picture)
    classes, maps = token_maps(prepared, crop[None])
    model = prepared.model
    shown = token_pictures.panels(
        [token_map[0] for token_map in maps],
        prefix=maps[0].shape[1] - model.grid[0] * model.grid[1],
        grid=model.grid,
    )
    title = f"{name}: class {classes[0]} ({prepared.name}, {prepared.reduction})"
    path = folder / f"{name}.png"
    with output_folder.refusing(folder):
        token_pictures.figure(crop, shown, title=title).savefig(path, dpi=110)
    return path


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    Raises:
      UserError: bad flags, weights or images.
    """
    flags = parse_flags(arguments)
    folder = check(flags)
    prepared = model_flags.prepare_from(flags)
    total = len(flags.images) or flags.count
    pictures = tqdm(named_pictures(flags), total=total, desc="visualize", unit="image")
    paths = [str(draw(prepared, name, picture, folder)) for name, picture in pictures]
    print(f"{len(paths)} pictures in {folder}")
    if flags.json:
        print(json.dumps({"model": prepared.name, "pictures": paths}))
    return 0


if __name__ == "__main__":
    run_command(main)
