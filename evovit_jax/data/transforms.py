"""Geometry and colour of one image, on the host with Pillow.

Random choices come from a `random.Random` that is seeded for the example; nothing else is random.
"""

import math
import random

import numpy as np
from PIL import Image, ImageEnhance

from evovit_jax.data.decode import Box, Picture
from evovit_jax.errors import UserError, suggestion

INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
CROPS = ("rrc", "pad", "shift", "none")


def interpolation(name: str) -> Image.Resampling:
    """Pillow's filter by its name.

    Raises:
        UserError: an unknown name.
    """
    if name not in INTERPOLATIONS:
        raise UserError(f"interpolation {name!r}: {suggestion(name, tuple(INTERPOLATIONS))}")
    return INTERPOLATIONS[name]


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
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def random_resized_crop(
    picture: Picture,
    rng: random.Random,
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    resample: Image.Resampling,
) -> Image.Image:
    """A random part of an image, resized to size x size."""
    return picture.part(random_box(rng, *picture.size, scale, ratio), size, resample)


def resize_center_crop(
    image: Image.Image, resize: int, size: int, resample: Image.Resampling
) -> Image.Image:
    """Resizes the shorter side to `resize` and crops the centre, zeros where the image is smaller.

    Sizes and offsets are rounded as torchvision's Resize and CenterCrop round them.
    """
    width, height = image.size
    short = min(width, height)
    if short != resize:
        width, height = int(resize * width / short), int(resize * height / short)
        image = image.resize((width, height), resample)
    if (width, height) == (size, size):
        return image
    left, upper = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, upper, left + size, upper + size))


def pad_crop(image: Image.Image, rng: random.Random, size: int, pad: int) -> Image.Image:
    """Moves a size x size image by up to `pad` whole pixels; zeros come in from outside."""
    left, upper = rng.randint(-pad, pad), rng.randint(-pad, pad)
    return image.crop((left, upper, left + size, upper + size))


def random_shift(
    image: Image.Image, rng: random.Random, size: int, pad: float, resample: Image.Resampling
) -> Image.Image:
    """The centred square moved by up to `pad` pixels of the result, resized to size x size.

    The shift is not rounded to pixels: one resampling moves and resizes. Where the moved square
    leaves the image, the edge is repeated.
    """
    width, height = image.size
    side = min(width, height)
    reach = pad * side / size
    left = (width - side) / 2 + rng.uniform(-reach, reach)
    upper = (height - side) / 2 + rng.uniform(-reach, reach)
    margin = math.ceil(reach)
    pixels = np.asarray(image)
    pixels = np.pad(pixels, ((margin, margin),) * 2 + ((0, 0),) * (pixels.ndim - 2), "edge")
    box = (left + margin, upper + margin, left + margin + side, upper + margin + side)
    return Image.fromarray(pixels).resize((size, size), resample, box=box)


def color_jitter(image: Image.Image, rng: random.Random, strength: float) -> Image.Image:
    """Brightness, contrast and saturation, each times 1 +- strength, in random order.

    torchvision's ColorJitter with three equal strengths, as timm's recipes use it.
    """
    enhancers = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    rng.shuffle(enhancers)
    for enhancer in enhancers:
        image = enhancer(image).enhance(rng.uniform(max(0.0, 1 - strength), 1 + strength))
    return image
