"""Stored images to arrays, decoded no larger than what is used of them.

JPEG files are decoded by simplejpeg (libjpeg-turbo, as Pillow's, to the same pixels): for a file
of 299 pixels it takes 60 % of Pillow's time, for one of 32 pixels 15 %.
"""

import errno
import io
import math
from typing import Protocol, runtime_checkable

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from evovit_jax.data.resize import resize
from evovit_jax.data.source import Source
from evovit_jax.data.stored_files import MOST_PIXELS
from evovit_jax.errors import first_line

# Images up to this side are kept decoded where the whole data set fits (see `SmallImages`).
SMALL_SIDE = 64
SMALL_BYTES = 256 * 2**20
# Errors that say nothing about the file: to skip it would change the training.
OF_THE_SYSTEM = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}
# What Pillow may decode: it knows many more formats, one of which runs a program (PostScript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
STRIP = 1 << 22  # pixels that are converted at a time
MOST_SIDE = 65_535  # pixels, as JPEG and GIF have at most
# A progressive JPEG tells its pixels in passes, each over all of them; usual are ten.
MOST_PASSED = 100 * MOST_PIXELS
_SCAN = b"\xff\xda"
_SMALLEST_SCAN = 8  # bytes
Box = tuple[int, int, int, int]  # left, upper, right, lower


class UnreadableImage(Exception):
    """The bytes of one example are no image; the message says why."""


@runtime_checkable
class Picture(Protocol):
    """An image that is not decoded yet. Its methods raise `UnreadableImage`.

    Grey images are uint8 [h w], all others [h w 3], transparency dropped; of 16 bits a value the
    upper 8 count. As in torchvision's loaders the EXIF orientation is not applied.
    """

    size: tuple[int, int]  # width, height

    def whole(self) -> np.ndarray:
        """The image at its own size."""
        ...

    def part(self, box: Box, size: int, filter_name: str) -> np.ndarray:
        """What is in the box, resized to size x size.

        A JPEG is decoded at 1/2, 1/4 or 1/8 where the box then still holds `size` pixels a side.
        """
        ...


def open_image(stored: bytes | np.ndarray | Image.Image, most_pixels: int = MOST_PIXELS) -> Picture:
    """Opens a file in memory, or wraps an array [h w] or [h w c] of uint8 or uint16.

    Nothing is decoded yet, and nothing large allocated.

    Args:
        stored: a file's bytes, an array, or an image that Pillow opened.
        most_pixels: width times height that an image may have.

    Raises:
        UnreadableImage: not an image, or one with more pixels.
    """
    picture = _opened(stored)
    width, height = picture.size
    if not width * height:
        raise UnreadableImage("it has no pixels")
    if max(width, height) > MOST_SIDE:
        raise UnreadableImage(f"{width} x {height} pixels, more than {MOST_SIDE} a side")
    if width * height > most_pixels:
        raise UnreadableImage(
            f"{width} x {height} pixels, more than max_image_pixels={most_pixels}"
        )
    if isinstance(stored, bytes):
        _refuse_passes(stored, width * height)
    return picture


def _opened(stored: bytes | np.ndarray | Image.Image) -> Picture:
    if isinstance(stored, np.ndarray):
        return _Decoded(stored)
    if isinstance(stored, bytes) and stored[:2] == b"\xff\xd8":
        try:
            height, width, colors, _ = simplejpeg.decode_jpeg_header(stored)
        except ValueError as error:
            raise UnreadableImage(str(error)) from None
        if colors in ("YCbCr", "RGB", "Gray"):
            return _Jpeg(stored, (width, height), colors == "Gray")
    return _Pillow(stored)


def _refuse_passes(data: bytes, pixels: int) -> None:
    """Refuses a JPEG that takes hours, by its passes, which few files are large enough to have."""
    if data[:2] != b"\xff\xd8" or len(data) // _SMALLEST_SCAN * pixels <= MOST_PASSED:
        return
    passes = data.count(_SCAN)
    if passes * pixels > MOST_PASSED:
        raise UnreadableImage(f"a JPEG of {pixels} pixels in {passes} passes")


class _Decoded:
    """An array."""

    def __init__(self, pixels: np.ndarray):
        if pixels.dtype == np.uint16:  # PNG files of 16 bits, where TFDS has decoded them
            pixels = (pixels >> 8).astype(np.uint8)
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
            raise UnreadableImage(f"an array {pixels.shape} of {pixels.dtype} is no image")
        if pixels.ndim == 3:  # transparency is the last of two or four
            if pixels.shape[2] not in (1, 2, 3, 4):
                raise UnreadableImage(f"an image of {pixels.shape[2]} channels")
            pixels = pixels[..., 0] if pixels.shape[2] < 3 else pixels[..., :3]
        self._pixels = pixels
        self.size = (pixels.shape[1], pixels.shape[0])

    def whole(self) -> np.ndarray:
        return self._pixels

    def part(self, box: Box, size: int, filter_name: str) -> np.ndarray:
        left, upper, right, lower = box
        return resize(self._pixels[upper:lower, left:right], size, filter_name)


class _Pillow:
    """Whatever Pillow reads."""

    def __init__(self, stored: bytes | Image.Image):
        self._stored = stored
        self.size = self._open().size

    def _open(self) -> Image.Image:
        if not isinstance(self._stored, bytes):
            return self._stored
        try:
            return Image.open(io.BytesIO(self._stored), formats=FORMATS)
        except UnidentifiedImageError:
            raise UnreadableImage(f"not an image file ({', '.join(FORMATS)})") from None
        except Exception as error:  # Pillow's formats raise many kinds on bytes that are none
            raise UnreadableImage(first_line(error)) from None

    def whole(self) -> np.ndarray:
        image = self._open()  # anew, so that what is decoded is not kept
        try:
            if image.mode.startswith("I;16"):  # Pillow would cut every value off at 255
                return (np.asarray(image) >> 8).astype(np.uint8)
            if image.mode in ("I", "F"):
                raise UnreadableImage("the range of its values is unknown: store it with 8 bits")
            return _array(image)
        except UnreadableImage:
            raise
        except Exception as error:
            raise UnreadableImage(first_line(error)) from None

    def part(self, box: Box, size: int, filter_name: str) -> np.ndarray:
        return _Decoded(self.whole()).part(box, size, filter_name)


class _Jpeg:
    """A JPEG file in memory."""

    def __init__(self, data: bytes, size: tuple[int, int], grey: bool):
        self._data = data
        self._colors = "GRAY" if grey else "RGB"
        self.size = size

    def whole(self) -> np.ndarray:
        return self._decode(1)

    def part(self, box: Box, size: int, filter_name: str) -> np.ndarray:
        shrink = min(box[2] - box[0], box[3] - box[1]) // size
        factor = max(f for f in (1, 2, 4, 8) if f <= max(1, shrink))
        pixels = self._decode(factor)
        if factor == 1:
            return _Decoded(pixels).part(box, size, filter_name)
        left, upper, right, lower = (edge / factor for edge in box)
        x, y = math.floor(left), math.floor(upper)
        hull = pixels[y : math.ceil(lower), x : math.ceil(right)]
        return resize(hull, size, filter_name, (left - x, upper - y, right - x, lower - y))

    def _decode(self, factor: int) -> np.ndarray:
        """The image at 1 / factor."""
        try:
            pixels = simplejpeg.decode_jpeg(
                self._data,
                self._colors,
                min_height=-(-self.size[1] // factor),
                min_width=-(-self.size[0] // factor),
                min_factor=factor,
            )
        except (ValueError, MemoryError) as error:
            raise UnreadableImage(first_line(error)) from None
        return pixels[..., 0] if self._colors == "GRAY" else pixels


def _array(image: Image.Image) -> np.ndarray:
    """The values of an image of 8 bits, [h w] of a grey one, else [h w 3].

    A large one is converted some rows at a time, for Pillow takes four bytes a pixel.
    """
    rows = max(1, STRIP // image.width)
    if rows >= image.height:
        return np.asarray(_converted(image))
    image.load()
    pixels = np.empty((image.height, image.width, 1 if image.mode == "L" else 3), np.uint8)
    for top in range(0, image.height, rows):
        part = image.crop((0, top, image.width, min(top + rows, image.height)))
        values = np.asarray(_converted(part))
        pixels[top : top + rows] = values[..., None] if values.ndim == 2 else values
    return pixels[..., 0] if image.mode == "L" else pixels


def _converted(image: Image.Image) -> Image.Image:
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode in ("RGB", "L") else image.convert("RGB")


class SmallImages:
    """A source whose small images (digits, CIFAR) stay decoded in memory once they were read."""

    def __init__(self, source: Source, most_pixels: int = MOST_PIXELS):
        self._source, self._most_pixels = source, most_pixels
        self._kept: dict[int, tuple[np.ndarray, int]] = {}

    def __len__(self) -> int:
        return len(self._source)

    def get(self, index: int) -> tuple[Picture, int]:
        """An opened image and its label.

        Raises:
            UnreadableImage: not an image, or a file that cannot be read.
            OSError: the system cannot read any file now.
        """
        kept = self._kept.get(index)
        if kept is not None:
            return open_image(kept[0]), kept[1]
        try:
            example = self._source[index]
        except OSError as error:
            if error.errno in OF_THE_SYSTEM:
                raise
            raise UnreadableImage(first_line(error)) from None
        picture = open_image(example["image"], self._most_pixels)
        if max(picture.size) <= SMALL_SIDE:
            # The first time as every later time, so that what was read before changes nothing.
            pixels = picture.whole()
            picture = open_image(pixels)
            if pixels.nbytes * len(self._source) <= SMALL_BYTES:
                self._kept[index] = (pixels, example["label"])
        return picture, example["label"]
