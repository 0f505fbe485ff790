"""boxes.csv: where the objects are in the images of a folder.

The columns `file`, `x0`, `y0`, `x1`, `y1`, each once, others are ignored; in UTF-8. A file is an
image of the data by its path from the data folder, as labels.csv has it, or CLASS/NAME. The box is
its left, upper, right and lower edge in pixels of the image file, from its upper left corner on. An
image may have several rows: its object is what they cover together.
"""

import dataclasses
import math
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from evovit_jax.data import csv_rows
from evovit_jax.data.source import Source
from evovit_jax.data.stored_files import expanded
from evovit_jax.data.transforms import center_crop_place
from evovit_jax.errors import UserError, shortened

EDGES = ("x0", "y0", "x1", "y1")
# Pixels that a box may reach over its image's edge: some annotations count pixels from 1.
OVER = 1.0


@dataclasses.dataclass(frozen=True)
class Box:
    """A row of boxes.csv.

    Attributes:
      edges: left, upper, right and lower, in pixels of the image file.
      where: the table and the line, for messages.
    """

    edges: tuple[float, float, float, float]
    where: str


def read(table: str, source: Source) -> dict[str, list[Box]]:
    """The boxes of each image that has some, by the image's path as `source` describes it.

    Raises:
        UserError: naming the first row that is not as it must be, or data that is no folder.
    """
    folder = getattr(source, "folder", None)
    if folder is None:
        raise UserError(f"--boxes goes with --data=folder:PATH, {source.name} has no files")
    path = expanded(table, "--boxes")
    names = _names(source, str(folder))
    found: dict[str, list[Box]] = {}
    for line, row in csv_rows.read(path, ("file", *EDGES)):
        where = f"{path} line {line}"
        given = row["file"] or ""
        image = names.get(os.path.normpath(given))
        if image is None:
            raise UserError(
                f"{where}: no image {shortened(given, 200)!r} in {source.name}; give its path from "
                f"there, such as {next(iter(names), '')!r}, or take the row out"
            )
        found.setdefault(image, []).append(Box(_edges(row, where), where))
    if not found:
        raise UserError(f"{path} has no boxes; give a row for each, or leave --boxes out")
    return found


def _names(source: Source, folder: str) -> dict[str, str]:
    """What boxes.csv may call each image, and its path."""
    paths = dict.fromkeys(source.describe(i) for i in range(len(source)))
    names = {os.path.relpath(path, folder): path for path in paths}
    # A labels.csv beside the folder images/ names its files from that folder on.
    beside = f"images{os.sep}"
    short = {name.removeprefix(beside): path for name, path in names.items()}
    return short | names


def _edges(row: dict[str, str | None], where: str) -> tuple[float, float, float, float]:
    edges = []
    for column in EDGES:
        text = row[column]
        try:
            edges.append(float(text or ""))
        except ValueError:
            edges.append(math.nan)
        if not 0 <= edges[-1] < math.inf:
            shown = text if text is None else shortened(text, 40)
            raise UserError(
                f"{where}: {column} {shown!r} is not a number from 0; give pixels of the image file"
            )
    x0, y0, x1, y1 = edges
    if not (x0 < x1 and y0 < y1):
        raise UserError(
            f"{where}: the box from {x0:g}, {y0:g} to {x1:g}, {y1:g} is empty; x0 and y0 are its "
            "left and upper edge, x1 and y1 its right and lower one"
        )
    return x0, y0, x1, y1


def in_crop(
    boxes: Sequence[Box], size: tuple[int, int], shorter: int, side: int
) -> Float[np.ndarray, "k 4"]:
    """Boxes in pixels of what a model sees of their image; they may reach over its edges.

    Args:
        boxes: of one image.
        size: (width, height) of the image file.
        shorter: the side to which its shorter edge is resized.
        side: of the square that is cut out of its centre then.

    Raises:
        UserError: a box is not inside of its image.
    """
    width, height = size
    resized, corner = center_crop_place(width, height, shorter, side)
    scale = np.array([resized[0] / width, resized[1] / height])
    places = []
    for box in boxes:
        x0, y0, x1, y1 = box.edges
        if x1 > width + OVER or y1 > height + OVER:
            raise UserError(
                f"{box.where}: the box ends at {x1:g}, {y1:g}, its image at {width}, {height}; "
                "give pixels of the image file"
            )
        inside = np.array([[x0, y0], [min(x1, width), min(y1, height)]])
        places.append((inside * scale - corner).ravel())
    return np.array(places).reshape(-1, 4)


def coverage(
    places: Float[np.ndarray, "k 4"], grid: tuple[int, int], side: int
) -> Float[np.ndarray, "r c"]:
    """The share of each cell of a grid over a square that boxes cover together.

    Pixel by pixel: a pixel is covered where its centre is.

    Args:
        places: of `in_crop`.
        grid: (rows, columns), each with a pixel or more.
        side: of the square, pixels.
    """
    covered = np.zeros((side, side))
    for place in places:
        x0, y0, x1, y1 = np.clip(np.ceil(place - 0.5), 0, side).astype(int)
        covered[y0:y1, x0:x1] = 1
    for axis, count in enumerate(grid):
        starts = np.arange(count) * side // count
        sums = np.add.reduceat(covered, starts, axis=axis)
        pixels = np.diff(starts, append=side)
        covered = sums / (pixels[:, None] if axis == 0 else pixels)
    return covered
