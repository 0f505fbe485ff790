"""The images that are asked for, and names for what is drawn of them.

Tested in tests/visualize_test.py.
"""

import itertools
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from evovit_jax.data.decode import Picture, open_image
from evovit_jax.data.source import open_source
from evovit_jax.data.stored_files import MOST_PIXELS, expanded, read_regular
from evovit_jax.errors import UserError
from evovit_jax.inference import output_folder
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


def free_file(output: str, flag: str, ending: str, kept: Sequence[str]) -> pathlib.Path:
    """The file that `flag` names, as `output_folder.open_file`, which is none of those to be kept.

    Raises:
      UserError: it is one, or cannot be used.
    """
    path = output_folder.open_file(output, flag, ending)
    if _place(path) in {_place(expanded(image, "image")) for image in kept}:
        raise UserError(f"{flag}={output} is one of the images; choose another name")
    return path


def _place(path: pathlib.Path) -> str:
    """Where a path leads; the same for names that differ in case, as some file systems have it."""
    return os.path.realpath(path).casefold()
