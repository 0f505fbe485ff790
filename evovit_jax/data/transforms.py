"""Geometry and colour of one image, on the host.

Random choices come from a `random.Random` that is seeded for the example; nothing else is random.
Images are uint8 arrays [h w] (grey) or [h w 3].
"""

import math
import random

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance

from evovit_jax.data.decode import Box, Picture
from evovit_jax.data.resize import PILLOW, resize

CROPS = ("rrc", "src", "pad", "shift", "none")
# Pixels of a resized image up to which all of it is made before a part is cut out.
MOST_RESIZED = 1 << 24


def random_box(
    rng: random.Random,
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """A random part of an image (left, upper, right, lower): Szegedy et al. 2015, section 6.

    The area is uniform in `scale` (a share of the image), the aspect ratio log-uniform in `ratio`;
    ten tries, then the largest centred part whose aspect ratio is allowed, as in torchvision.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, upper = rng.randint(0, width - w), rng.randint(0, height - h)
            return left, upper, left + w, upper + h
    w, h = width, height
    if width / height < ratio[0]:
        h = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = max(1, round(height * ratio[1]))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def random_resized_crop(
    picture: Picture,
    rng: random.Random,
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    filter_name: str,
) -> np.ndarray:
    """A random part of an image, resized to size x size."""
    return picture.part(random_box(rng, *picture.size, scale, ratio), size, filter_name)


def resize_center_crop(pixels: np.ndarray, shorter: int, size: int, filter_name: str) -> np.ndarray:
    """Resizes the shorter side and crops the centre, zeros where the image is smaller.

    By Pillow, with sizes and offsets rounded as torchvision's Resize and CenterCrop round them, so
    that published weights meet the pixels that they were measured on.
    """
    height, width = pixels.shape[:2]
    if min(width, height) == shorter and (width, height) == (size, size):
        return pixels
    resized, (left, upper) = center_crop_place(width, height, shorter, size)
    return resized_part(pixels, resized, (left, upper, left + size, upper + size), filter_name)


def center_crop_place(
    width: int, height: int, shorter: int, size: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """What `resize_center_crop` makes of an image of `width` x `height` pixels.

    Returns:
        (width, height) to which it is resized, and (left, upper) of the crop in that; negative
        where the crop reaches over the edge.
    """
    short = min(width, height)
    if short != shorter:
        width, height = int(shorter * width / short), int(shorter * height / short)
    return (width, height), (round((width - size) / 2), round((height - size) / 2))


def resized_part(
    pixels: np.ndarray, size: tuple[int, int], box: Box, filter_name: str
) -> np.ndarray:
    """What a box holds of an image that is resized to `size` (width, height), zeros outside it.

    Of an image whose sides differ so much that it would be huge, only what is in the box is made;
    rounding then differs, by one of 255 here and there.
    """
    image, (left, upper, right, lower) = Image.fromarray(pixels), box
    if size[0] * size[1] > MOST_RESIZED:
        seen = max(0, left), max(0, upper), min(size[0], right), min(size[1], lower)
        x, y = image.width / size[0], image.height / size[1]
        ends = min(image.width, seen[2] * x), min(image.height, seen[3] * y)
        seen_size = seen[2] - seen[0], seen[3] - seen[1]
        image = image.resize(seen_size, PILLOW[filter_name], (seen[0] * x, seen[1] * y, *ends))
        left, upper, right, lower = (a - b for a, b in zip(box, seen[:2] * 2, strict=True))
    elif image.size != size:
        image = image.resize(size, PILLOW[filter_name])
    return np.asarray(image.crop((left, upper, right, lower)))


def evaluation_pixels(
    picture: Picture, shorter: int, size: int, filter_name: str
) -> UInt8[np.ndarray, "s s 3"]:
    """What a model is evaluated on: every command prepares an image here.

    Decoded in full, since what is measured must not depend on a JPEG's shortcuts.

    Raises:
        UnreadableImage: the image cannot be decoded.
    """
    return three_channels(resize_center_crop(picture.whole(), shorter, size, filter_name))


def three_channels(pixels: np.ndarray) -> np.ndarray:
    """[h w] or [h w 3] to [h w 3]."""
    return np.broadcast_to(pixels[..., None], (*pixels.shape, 3)) if pixels.ndim == 2 else pixels


def pad_crop(pixels: np.ndarray, rng: random.Random, pad: int) -> np.ndarray:
    """Moves a square image by up to `pad` whole pixels; zeros come in from outside."""
    size = pixels.shape[0]
    x, y = rng.randint(0, 2 * pad), rng.randint(0, 2 * pad)
    padded = np.pad(pixels, ((pad, pad),) * 2 + ((0, 0),) * (pixels.ndim - 2))
    return padded[y : y + size, x : x + size]


def simple_random_crop(
    pixels: np.ndarray, rng: random.Random, size: int, pad: int, filter_name: str
) -> np.ndarray:
    """DeiT III's: the shorter side resized, then a random square of the image padded by `pad`.

    Touvron et al. 2022 (https://arxiv.org/abs/2204.07118), section 3.1: nearly all of the image is
    kept, where a random resized crop may leave out the object. The padding mirrors the image.
    """
    height, width = pixels.shape[:2]
    short = min(height, width)
    width, height = int(size * width / short), int(size * height / short)
    x, y = rng.randint(0, width + 2 * pad - size), rng.randint(0, height + 2 * pad - size)
    columns, rows = _mirrored(x - pad, size, width), _mirrored(y - pad, size, height)
    left, upper = int(columns.min()), int(rows.min())
    box = (left, upper, int(columns.max()) + 1, int(rows.max()) + 1)
    part = resized_part(pixels, (width, height), box, filter_name)
    return part[np.ix_(rows - upper, columns - left)]


def _mirrored(first: int, count: int, length: int) -> np.ndarray:
    """The places of `count` pixels from `first` on in a row of `length` that goes on mirrored."""
    if length == 1:
        return np.zeros(count, int)
    period = 2 * (length - 1)
    places = np.arange(first, first + count) % period
    return np.minimum(places, period - places)


def random_shift(
    pixels: np.ndarray, rng: random.Random, size: int, pad: float, filter_name: str
) -> np.ndarray:
    """The centred square moved by up to `pad` pixels of the result, resized to size x size.

    The shift is not rounded to pixels: one resampling moves and resizes. Where the moved square
    leaves the image, the edge is repeated.
    """
    height, width = pixels.shape[:2]
    side = min(width, height)
    reach = pad * side / size
    left = (width - side) / 2 + rng.uniform(-reach, reach)
    upper = (height - side) / 2 + rng.uniform(-reach, reach)
    margin = math.ceil(reach)
    pixels = np.pad(pixels, ((margin, margin),) * 2 + ((0, 0),) * (pixels.ndim - 2), "edge")
    left, upper = left + margin, upper + margin
    return resize(pixels, size, filter_name, (left, upper, left + side, upper + side))


def mirror(pixels: np.ndarray) -> np.ndarray:
    """[h w 3] flipped left to right; channel by channel is five times as fast as all at once."""
    flipped = np.empty(pixels.shape, np.uint8)
    for channel in range(pixels.shape[2]):
        flipped[..., channel] = pixels[:, ::-1, channel]
    return flipped


def color_jitter(image: Image.Image, rng: random.Random, strength: float) -> Image.Image:
    """Brightness, contrast and saturation, each times 1 +- strength, in random order.

    torchvision's ColorJitter with three equal strengths, as timm's recipes use it.
    """
    enhancers = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    rng.shuffle(enhancers)
    for enhancer in enhancers:
        image = enhancer(image).enhance(rng.uniform(max(0.0, 1 - strength), 1 + strength))
    return image
