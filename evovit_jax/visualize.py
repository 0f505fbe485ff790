"""Shows which tokens each stage of a model kept, merged or skipped, over the image, as PNG.

python -m evovit_jax.visualize --model=NAME --weights=PATH IMAGE... --output=DIR
python -m evovit_jax.visualize --weights=WORKDIR --data=tfds:digits:test --output=DIR
"""

import argparse
import functools
import json
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Int, UInt8
from tqdm import tqdm

from evovit_jax import prepared as prepared_lib
from evovit_jax import token_pictures
from evovit_jax.data.decode import Picture, UnreadableImage, open_image
from evovit_jax.data.source import open_source
from evovit_jax.errors import UserError, run_command
from evovit_jax.prepared import Prepared


def parse_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(prog="python -m evovit_jax.visualize", description=__doc__)
    prepared_lib.add_flags(parser)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files")
    parser.add_argument("--data", help="tfds:NAME[:SPLIT] or folder:PATH, instead of files")
    parser.add_argument("--count", type=int, default=8, help="how many images of --data")
    parser.add_argument("--data_dir", default="", help="where TFDS data sets lie")
    parser.add_argument("--output", required=True, help="folder for the PNG files, made if need be")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args(arguments)


def named_pictures(flags: argparse.Namespace) -> Iterator[tuple[str, Picture]]:
    """The images that the flags ask for, opened, with a name for each one's picture.

    Raises:
      UserError: no images, or one that cannot be read.
    """
    if bool(flags.images) == bool(flags.data):
        raise UserError("give image files, or --data=SPEC, one of the two")
    names: dict[str, int] = {}
    for file in flags.images:
        path = pathlib.Path(file)
        try:
            picture = open_image(path.read_bytes())
        except (OSError, UnreadableImage) as error:
            raise UserError(f"cannot read image {file}: {error}") from None
        seen = names[path.stem] = names.get(path.stem, 0) + 1
        yield (path.stem if seen == 1 else f"{path.stem}_{seen}"), picture
    if flags.data:
        source = open_source(flags.data, "test", flags.data_dir)
        for i in range(min(flags.count, len(source))):
            example = source[i]
            label = source.class_names[example["label"]]
            yield f"{i:05d}_{label}", open_image(example["image"])


@functools.partial(jax.jit, static_argnums=0)
def _token_maps(graphdef, state, images):
    from flax import nnx

    logits, out = nnx.merge(graphdef, state)(images)
    return logits.argmax(axis=-1), out.token_maps


def token_maps(
    prepared: Prepared, images: UInt8[np.ndarray, "b s s 3"]
) -> tuple[Int[np.ndarray, "b"], list[Int[np.ndarray, "b N"]]]:
    """The predicted class of each image, and the source map of each block."""
    from flax import nnx

    graphdef, state = nnx.split(prepared.model)
    classes, maps = _token_maps(graphdef, state, prepared.normalise(images))
    return np.asarray(classes), [np.asarray(token_map) for token_map in maps[:-1]]


def draw(prepared: Prepared, name: str, picture: Picture, folder: pathlib.Path) -> pathlib.Path:
    """Writes the picture of one image; returns its path.

    Raises:
      UserError: the image cannot be decoded.
    """
    try:
        crop = prepared.crop(picture)
    except UnreadableImage as error:
        raise UserError(f"cannot read image {name}: {error}") from None
    classes, maps = token_maps(prepared, crop[None])
    model = prepared.model
    shown = token_pictures.panels(
        [token_map[0] for token_map in maps],
        prefix=maps[0].shape[1] - model.grid[0] * model.grid[1],
        grid=model.grid,
    )
    title = f"{name}: class {classes[0]} ({prepared.name}, {prepared.reduction})"
    path = folder / f"{name}.png"
    token_pictures.figure(crop, shown, title=title).savefig(path, dpi=110)
    return path


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    Raises:
      UserError: bad flags, weights or images.
    """
    flags = parse_flags(arguments)
    prepared = prepared_lib.prepare_from(flags)
    folder = pathlib.Path(flags.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to --output={flags.output}: {error.strerror}") from None
    total = len(flags.images) or flags.count
    pictures = tqdm(named_pictures(flags), total=total, desc="visualize", unit="image")
    paths = [str(draw(prepared, name, picture, folder)) for name, picture in pictures]
    print(f"{len(paths)} pictures in {folder}")
    if flags.json:
        print(json.dumps({"model": prepared.name, "pictures": paths}))
    return 0


if __name__ == "__main__":
    run_command(main)
