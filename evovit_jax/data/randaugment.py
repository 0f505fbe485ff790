"""RandAugment on Pillow, in timm's variant and notation.

Cubuk et al. 2020, "RandAugment: Practical automated data augmentation with a reduced search
space" (https://arxiv.org/abs/1909.13719), with timm's noise on the magnitude and its operations
that grow with it ("inc1"): what `rand-m9-mstd0.5-inc1` means in the recipes of DeiT and after.
"""

import dataclasses
import random
import re
from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps

from evovit_jax.errors import UserError

MAX_MAGNITUDE = 10.0
ROTATE_DEGREES = 30.0
SHEAR = 0.3
TRANSLATE = 0.45  # of the side
ENHANCE = 0.9
SOLARIZE_ADD = 110
SOLARIZE_ADD_BELOW = 128  # only darker values are raised


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How pixels that come from between or outside the image are made."""

    fill: tuple[int, int, int] = (124, 116, 104)
    resample: Image.Resampling = Image.Resampling.BICUBIC


def _affine(image: Image.Image, matrix: tuple[float, ...], drawing: Drawing) -> Image.Image:
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        resample=drawing.resample,
        fillcolor=drawing.fill,
    )


def _posterize(image: Image.Image, bits: int) -> Image.Image:
    if bits == 0:  # Pillow 13 refuses; what it did before is a black image
        return Image.new(image.mode, image.size)
    return ImageOps.posterize(image, bits)


def _solarize_add(image: Image.Image, amount: int) -> Image.Image:
    table = [min(255, v + amount) if v < SOLARIZE_ADD_BELOW else v for v in range(256)]
    return image.point(table * len(image.getbands()))


# Operation -> what it does to (image, argument, drawing).
OPERATIONS: dict[str, Callable[[Image.Image, float, Drawing], Image.Image]] = {
    "AutoContrast": lambda im, v, d: ImageOps.autocontrast(im),
    "Equalize": lambda im, v, d: ImageOps.equalize(im),
    "Invert": lambda im, v, d: ImageOps.invert(im),
    "Rotate": lambda im, v, d: im.rotate(v, resample=d.resample, fillcolor=d.fill),
    "Posterize": lambda im, v, d: _posterize(im, int(v)),
    "Solarize": lambda im, v, d: ImageOps.solarize(im, int(v)),
    "SolarizeAdd": lambda im, v, d: _solarize_add(im, int(v)),
    "Color": lambda im, v, d: ImageEnhance.Color(im).enhance(v),
    "Contrast": lambda im, v, d: ImageEnhance.Contrast(im).enhance(v),
    "Brightness": lambda im, v, d: ImageEnhance.Brightness(im).enhance(v),
    "Sharpness": lambda im, v, d: ImageEnhance.Sharpness(im).enhance(v),
    "ShearX": lambda im, v, d: _affine(im, (1, v, 0, 0, 1, 0), d),
    "ShearY": lambda im, v, d: _affine(im, (1, 0, 0, v, 1, 0), d),
    "TranslateXRel": lambda im, v, d: _affine(im, (1, 0, v * im.width, 0, 1, 0), d),
    "TranslateYRel": lambda im, v, d: _affine(im, (1, 0, 0, 0, 1, v * im.height), d),
}
_ENHANCING = ("Color", "Contrast", "Brightness", "Sharpness")


def argument(operation: str, magnitude: float, sign: int, increasing: bool = True) -> float | None:
    """What a magnitude of 0..10 means to an operation.

    Args:
        operation: a key of `OPERATIONS`.
        magnitude: 0..10.
        sign: 1 or -1, for the operations that go both ways.
        increasing: whether posterising, solarising and enhancing grow with the magnitude.

    Returns:
        The operation's argument, None where it has none.
    """
    share = magnitude / MAX_MAGNITUDE
    if operation in ("AutoContrast", "Equalize", "Invert"):
        return None
    if operation == "Posterize":  # the bits that are kept
        return 4 - int(share * 4) if increasing else int(share * 4)
    if operation == "Solarize":  # the value from which on pixels are inverted
        threshold = min(256, int(share * 256))
        return 256 - threshold if increasing else threshold
    if operation == "SolarizeAdd":
        return min(128, int(share * SOLARIZE_ADD))
    if operation in _ENHANCING:
        return max(0.1, 1.0 + sign * share * ENHANCE) if increasing else share * 1.8 + 0.1
    full = {"Rotate": ROTATE_DEGREES, "ShearX": SHEAR, "ShearY": SHEAR}
    return sign * share * full.get(operation, TRANSLATE)


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Draws `layers` operations with replacement and applies each with probability `prob`."""

    magnitude: float = MAX_MAGNITUDE
    layers: int = 2
    prob: float = 0.5
    noise: float = 0.0  # standard deviation of the magnitude
    largest: float = MAX_MAGNITUDE  # the magnitude is clipped to 0..largest
    increasing: bool = False

    def __call__(self, image: Image.Image, rng: random.Random, drawing: Drawing) -> Image.Image:
        names = list(OPERATIONS)
        for name in [rng.choice(names) for _ in range(self.layers)]:
            if rng.random() < self.prob:
                magnitude = rng.gauss(self.magnitude, self.noise) if self.noise else self.magnitude
                magnitude = max(0.0, min(magnitude, self.largest))
                sign = -1 if rng.random() < 0.5 else 1
                value = argument(name, magnitude, sign, self.increasing)
                image = OPERATIONS[name](image, value, drawing)
        return image


_SECTION = re.compile(r"(mstd|mmax|inc|m|n|p)([0-9]{1,9}(?:\.[0-9]{1,9})?)")
# The largest number of each; a magnitude is at most 10 wherever it is used.
MOST = {"magnitude": 100, "layers": 14, "prob": 1, "noise": 100, "largest": 10, "increasing": 1}
_FIELDS = {
    "m": ("magnitude", float),
    "n": ("layers", int),
    "p": ("prob", float),
    "mstd": ("noise", float),
    "mmax": ("largest", float),
    "inc": ("increasing", lambda text: bool(int(text))),
}


def parse(notation: str) -> RandAugment:
    """Reads timm's notation, such as `rand-m9-mstd0.5-inc1`.

    m: magnitude, n: operations an image, p: probability of each, mstd: noise, mmax: largest
    magnitude, inc: whether all operations grow with the magnitude.

    Raises:
        UserError: a section that is not one of these.
    """
    head, *sections = notation.split("-")
    fields = {}
    for section in sections:
        match = _SECTION.fullmatch(section)
        if match is None or head != "rand":
            break
        name, convert = _FIELDS[match[1]]
        try:
            fields[name] = convert(match[2])
        except ValueError:
            break
        if fields[name] > MOST[name]:
            raise UserError(f"augment.randaugment: {section!r} is more than {MOST[name]}")
    else:
        if head == "rand":
            return RandAugment(**fields)
    raise UserError(
        f"augment.randaugment={notation!r}: write it as rand-m9-mstd0.5-inc1 "
        "(m, n, p, mstd, mmax, inc), or leave it empty"
    )
