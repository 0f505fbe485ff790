"""The images that are asked for, and a picture of each with the tokens that a model kept.

Tested in tests/visualize_test.py.
"""

import itertools
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Int, UInt8

from evovit_jax.data.decode import Picture, open_image
from evovit_jax.data.source import open_source
from evovit_jax.data.stored_files import MOST_PIXELS, expanded, read_regular
from evovit_jax.errors import UserError
from evovit_jax.inference import output_folder, token_pictures
from evovit_jax.inference.prediction import readable
from evovit_jax.inference.ready_model import ReadyModel

LONGEST_NAME = 200  # bytes of a picture's name; most file systems take 255


def pictures_of_files(
    files: Sequence[str], most_pixels: int = MOST_PIXELS
) -> Iterator[tuple[str, Picture]]:
    """The images of files, opened, with the name of each.

    Raises:
      UserError: an image cannot be read.
    """
    for file in files:
        with readable(file):
            path = expanded(file, "image")
            picture = open_image(read_regular(path), most_pixels)
        yield path.stem, picture


def pictures_of_data(
    data: str, count: int, data_dir: str = "", most_pixels: int = MOST_PIXELS
) -> Iterator[tuple[str, Picture]]:
    """The first images of a data set, opened, with number and class as the name of each.

    Raises:
      UserError: the data cannot be used, or an image cannot be read.
    """
    source = open_source(data, "test", data_dir)
    for i in range(min(count, len(source))):
        with readable(source.describe(i)):
            example = source[i]
            picture = open_image(example["image"], most_pixels)
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


class FreeNames:
    """Names for the pictures in a folder: none is given twice, and none is of a file to be kept."""

    def __init__(self, folder: pathlib.Path, kept: Sequence[str] = ()):
        self._folder = folder
        self._taken = {_place(expanded(path, "image")) for path in kept}

    def path(self, name: str) -> pathlib.Path:
        """The file of a picture that is called `name`, a number behind it where need be."""
        stem = re.sub(r"[/\\\0]", "_", name)
        while len(os.fsencode(stem)) > LONGEST_NAME:
            stem = stem[:-1]
        for number in itertools.count(1):
            path = self._folder / f"{stem if number == 1 else f'{stem}_{number}'}.png"
            if _place(path) not in self._taken:
                break
        self._taken.add(_place(path))
        return path


def _place(path: pathlib.Path) -> str:
    """Where a path leads; the same for names that differ in case, as some file systems have it."""
    return os.path.realpath(path).casefold()


def draw(prepared: ReadyModel, name: str, picture: Picture, path: pathlib.Path) -> None:
    """Writes the picture of one image.

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
    drawing = token_pictures.figure(crop, panels, title=title)
    with output_folder.refusing(path.parent), tempfile.TemporaryDirectory(dir=path.parent) as made:
        whole = pathlib.Path(made) / "picture.png"
        drawing.savefig(whole, dpi=110)
        whole.replace(path)  # a link of that name is replaced, not what it leads to
