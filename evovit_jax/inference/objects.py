"""Where the objects of a data set lie in what a model sees of its images."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from evovit_jax.data import boxes
from evovit_jax.data.decode import UnreadableImage, open_image
from evovit_jax.data.source import Source
from evovit_jax.models import EvalTransform


class Objects:
    """The boxes of the images of a data set, in pixels of the model's crop."""

    def __init__(self, places: dict[int, Float[np.ndarray, "k 4"]], side: int):
        self._places, self._side = places, side

    def __len__(self) -> int:
        return len(self._places)

    def covered(self, image: int, grid: tuple[int, int]) -> Float[np.ndarray, " p"]:
        """The share of each patch that objects cover; not numbers where none is known."""
        if image not in self._places:
            return np.full(grid[0] * grid[1], np.nan)
        return boxes.coverage(self._places[image], grid, self._side).ravel()


def find(
    table: str,
    whole: Source,
    images: Source,
    transform: EvalTransform,
    most_pixels: int,
    say: Callable[[str], None],
) -> Objects:
    """The objects of `images`, which are some or all of `whole`, by the rows of a boxes.csv.

    The sizes of the images are read here, so that a box that leads out of its image ends the
    command before it has begun. Boxes of which the model sees nothing are said, and left out.

    Raises:
      UserError: as `boxes.read` and `boxes.in_crop`.
    """
    known, side = boxes.read(table, whole), transform.image_size
    places, unseen = {}, []
    for i in range(len(images)):
        own = known.get(images.describe(i))
        size = own and _size(images, i, most_pixels)
        if not size:
            continue
        found = boxes.in_crop(own, size, transform.resize, side)
        seen = np.array([boxes.coverage(one[None], (1, 1), side).any() for one in found])
        unseen += [box.where for box, inside in zip(own, seen, strict=True) if not inside]
        if seen.any():
            places[i] = found[seen]
    if unseen:
        boxes_are = "1 box is" if len(unseen) == 1 else f"{len(unseen)} boxes are"
        say(f"{boxes_are} outside of what the model sees, and left out: {unseen[0]}")
    return Objects(places, side)


def _size(images: Source, index: int, most_pixels: int) -> tuple[int, int] | None:
    """(width, height) of an image; None where it cannot be read, which its batch will say."""
    try:
        return open_image(images[index]["image"], most_pixels).size
    except (UnreadableImage, OSError):
        return None
