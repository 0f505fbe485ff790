"""3-Augment: three operations, equally often."""

import random

import numpy as np
from PIL import Image, ImageOps

from evovit_jax.data.three_augment import three_augment


def test_one_of_three():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8))
    grey = np.asarray(image.convert("L").convert("RGB"))
    solarised = np.asarray(ImageOps.solarize(image))
    kinds = []
    for seed in range(300):
        got = np.asarray(three_augment(image, random.Random(seed)))
        assert got.shape == (16, 16, 3)
        if (got == grey).all():
            kinds.append("grey")
        elif (got == solarised).all():
            kinds.append("solarise")
        else:
            assert got.std() <= np.asarray(image).std() + 0.5
            kinds.append("blur")
    assert all(70 < kinds.count(kind) < 130 for kind in ("grey", "solarise", "blur"))
