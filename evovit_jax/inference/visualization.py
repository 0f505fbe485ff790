"""The images that are asked for, and a picture of each with the tokens that a model kept.

Tested in tests/visualize_test.py.
"""

import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Int, UInt8

from evovit_jax.data.decode import Picture, open_image
from evovit_jax.data.source import open_source
from evovit_jax.errors import UserError
from evovit_jax.inference import output_folder, token_pictures
from evovit_jax.inference.prediction import readable
from evovit_jax.inference.ready_model import ReadyModel


def pictures_of_files(files: Sequence[str]) -> Iterator[tuple[str, Picture]]:
    """The images of files, opened, with a name for each one's picture.

    Raises:
      UserError: an image cannot be read.
    """
    names: dict[str, int] = {}
    for file in files:
        path = pathlib.Path(file)
        with readable(file):
            picture = open_image(path.expanduser().read_bytes())
        times = names[path.stem] = names.get(path.stem, 0) + 1
        yield (path.stem if times == 1 else f"{path.stem}_{times}"), picture


def pictures_of_data(data: str, count: int, data_dir: str = "") -> Iterator[tuple[str, Picture]]:
    """The first images of a data set, opened, with a name for each one's picture.

    Raises:
      UserError: the data cannot be used, or an image cannot be read.
    """
    source = open_source(data, "test", data_dir)
    for i in range(min(count, len(source))):
        with readable(source.describe(i)):
            example = source[i]
            picture = open_image(example["image"])
        yield f"{i:05d}_{source.class_names[example['label']]}", picture


def check_has_tokens(prepared: ReadyModel) -> None:
    """Refuses a network without tokens.

    Raises:
      UserError: the model has none.
    """
    side = prepared.transform.image_size
    look, state = prepared.program
    _, maps = jax.eval_shape(look, state, jax.ShapeDtypeStruct((1, side, side, 3), np.uint8))
    if not maps:
        raise UserError(f"{prepared.name} has no tokens to show: choose a vision transformer")


def token_maps(
    prepared: ReadyModel, images: UInt8[np.ndarray, "b s s 3"]
) -> tuple[Int[np.ndarray, "b"], list[Int[np.ndarray, "b N"]]]:
    """The predicted class of each image, and the source map of each block."""
    logits, maps = prepared.look(images)
    return np.asarray(logits).argmax(axis=-1), [np.asarray(token_map) for token_map in maps[:-1]]


def draw(prepared: ReadyModel, name: str, picture: Picture, folder: pathlib.Path) -> pathlib.Path:
    """Writes the picture of one image; returns its path.

    Raises:
      UserError: the image cannot be decoded, or its picture not be written.
    """
    with readable(name):
        crop = prepared.crop(picture)
    classes, maps = token_maps(prepared, crop[None])
    model = prepared.model
    panels = token_pictures.panels(
        [token_map[0] for token_map in maps], prefix=model.prefix, grid=model.grid
    )
    title = f"{name}: class {classes[0]} ({prepared.name}, {prepared.reduction})"
    path = folder / f"{name}.png"
    with output_folder.refusing(folder):
        token_pictures.figure(crop, panels, title=title).savefig(path, dpi=110)
    return path
