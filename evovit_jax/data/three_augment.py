"""3-Augment of DeiT III (Touvron et al. 2022, https://arxiv.org/abs/2204.07118, section 3.1)."""

import random

from PIL import Image, ImageFilter, ImageOps

BLUR_RADIUS = (0.1, 2.0)


def three_augment(image: Image.Image, rng: random.Random) -> Image.Image:
    """One of greyscale, solarisation at half of the range, and Gaussian blur; RGB in and out."""
    kind = rng.randrange(3)
    if kind == 0:
        return image.convert("L").convert("RGB")
    if kind == 1:
        return ImageOps.solarize(image)
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR_RADIUS)))
