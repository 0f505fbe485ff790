"""Stored images to Pillow images."""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from evovit_jax.data.source import Source

# Images up to this side are kept decoded where the whole data set fits (see `SmallImages`).
SMALL_SIDE = 64
SMALL_BYTES = 256 * 2**20


class UnreadableImage(Exception):
    """The bytes of one example are no image; the message says why."""


def open_image(stored: bytes | np.ndarray) -> Image.Image:
    """Opens a file in memory, without decoding it yet, or wraps an array [h w] or [h w c].

    Raises:
        UnreadableImage: not an image.
    """
    try:
        if isinstance(stored, np.ndarray):
            return Image.fromarray(stored[..., 0] if stored.shape[2:] == (1,) else stored)
        return Image.open(io.BytesIO(stored))
    except UnidentifiedImageError:
        raise UnreadableImage("not an image file") from None
    except Exception as error:  # Pillow's formats raise many kinds on bytes that are none
        raise UnreadableImage(str(error).partition("\n")[0]) from None


def load(image: Image.Image, keep_grey: bool = False) -> Image.Image:
    """Decodes an opened image to RGB, transparency dropped (or to "L" where it is so stored).

    As in torchvision's loaders the EXIF orientation is not applied.

    Raises:
        UnreadableImage: damaged or cut off.
    """
    try:
        if image.mode == "RGB" or (keep_grey and image.mode == "L"):
            image.load()
            return image
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert("RGB")
    except Exception as error:
        raise UnreadableImage(str(error).partition("\n")[0]) from None


def draft(image: Image.Image, box: tuple[int, int, int, int], size: int) -> tuple[float, ...]:
    """Lets a JPEG decode at 1/2, 1/4 or 1/8 where the box still holds `size` pixels a side.

    Args:
        image: opened, not decoded; changed in place.
        box: (left, upper, right, lower) in pixels of the full image.
        size: pixels of the result that the box will be resized to.

    Returns:
        The box in pixels of what will be decoded.
    """
    width, height = image.size
    shrink = min(box[2] - box[0], box[3] - box[1]) // size
    factor = max(f for f in (1, 2, 4, 8) if f <= max(1, shrink))
    if factor == 1 or image.format != "JPEG":
        return box
    image.draft(None, (width // factor, height // factor))
    across, down = image.size[0] / width, image.size[1] / height
    return (box[0] * across, box[1] * down, box[2] * across, box[3] * down)


class SmallImages:
    """A source whose small images (digits, CIFAR) stay decoded in memory once they were read.

    What is decoded is the same the first time and later, so that an example does not depend on
    what was read before.
    """

    def __init__(self, source: Source):
        self._source = source
        self._kept: dict[int, tuple[np.ndarray, int]] = {}
        self._budget = SMALL_BYTES

    def __len__(self) -> int:
        return len(self._source)

    def get(self, index: int) -> tuple[Image.Image, int]:
        """An opened image and its label.

        Raises:
            UnreadableImage: not an image, or a file that cannot be read.
        """
        kept = self._kept.get(index)
        if kept is not None:
            return Image.fromarray(kept[0]), kept[1]
        try:
            example = self._source[index]
        except OSError as error:
            raise UnreadableImage(str(error)) from None
        image = open_image(example["image"])
        if max(image.size) <= SMALL_SIDE:
            image = load(image, keep_grey=True)
            pixels = np.asarray(image)
            if pixels.nbytes * len(self._source) <= self._budget:
                self._kept[index] = (pixels, example["label"])
        return image, example["label"]
