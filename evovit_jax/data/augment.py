"""What a config makes of one stored image: the transforms of training and of evaluation.

Tested in tests/data/transforms_test.py.
"""

import random

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from evovit_jax.data import randaugment, transforms
from evovit_jax.data.decode import Picture
from evovit_jax.data.resize import PILLOW, interpolation
from evovit_jax.data.three_augment import three_augment
from evovit_jax.errors import UserError, suggestion


class TrainTransform:
    """Crop, flip and colour as `config.augment` says; called with an image and its random source.

    Returns uint8 [size size 3].
    """

    def __init__(self, config: ConfigDict):
        augment = config.augment
        if augment.crop not in transforms.CROPS:
            raise UserError(
                f"augment.crop={augment.crop!r}: {suggestion(augment.crop, transforms.CROPS)}"
            )
        if augment.randaugment and augment.three_augment:
            raise UserError("augment.randaugment and augment.three_augment: choose one of the two")
        self._augment = augment.to_dict()
        self.size = config.model.image_size
        if augment.interpolation == "random":  # timm's, either for each image
            self._filters = ["bilinear", "bicubic"]
        else:
            self._filters = [interpolation(augment.interpolation)]
        self._eval = EvalTransform(config)
        self._randaugment = randaugment.parse(augment.randaugment) if augment.randaugment else None
        self._fill = tuple(min(255, round(255 * value)) for value in config.mean)
        self._colors = bool(
            augment.randaugment or augment.three_augment or augment.color_jitter > 0
        )

    def __call__(self, picture: Picture, rng: random.Random) -> np.ndarray:
        pixels = transforms.three_channels(self._crop(picture, rng, self._filter(rng)))
        if rng.random() < self._augment["flip"]:
            pixels = transforms.mirror(pixels)
        if self._colors:
            pixels = np.asarray(self._color(Image.fromarray(pixels), rng))
        return pixels

    def _filter(self, rng: random.Random) -> str:
        return self._filters[0] if len(self._filters) == 1 else rng.choice(self._filters)

    def _crop(self, picture: Picture, rng: random.Random, filter_name: str) -> np.ndarray:
        augment, size = self._augment, self.size
        if augment["crop"] == "rrc":
            return transforms.random_resized_crop(
                picture, rng, size, augment["scale"], augment["ratio"], filter_name
            )
        if augment["crop"] == "none":
            return self._eval(picture)
        pad = augment["pad"]  # no name for the whole image, so that it goes as soon as it can
        if augment["crop"] == "shift":
            return transforms.random_shift(picture.whole(), rng, size, pad, filter_name)
        if augment["crop"] == "src":
            return transforms.simple_random_crop(picture.whole(), rng, size, pad, filter_name)
        pixels = transforms.resize_center_crop(picture.whole(), size, size, filter_name)
        return transforms.pad_crop(pixels, rng, pad)

    def _color(self, image: Image.Image, rng: random.Random) -> Image.Image:
        if self._randaugment is not None:  # as in timm, without colour jitter
            drawing = randaugment.Drawing(self._fill, PILLOW[self._filter(rng)])
            return self._randaugment(image, rng, drawing)
        if self._augment["three_augment"]:
            image = three_augment(image, rng)
        if self._augment["color_jitter"] > 0:
            image = transforms.color_jitter(image, rng, self._augment["color_jitter"])
        return image


class EvalTransform:
    """Resize and centre crop as `config.eval_transform` says. Returns uint8 [size size 3]."""

    def __init__(self, config: ConfigDict):
        fields = config.eval_transform
        self.size = config.model.image_size
        self._shorter = fields.resize or int(self.size / fields.crop_fraction)
        self._filter = interpolation(fields.interpolation)

    def __call__(self, picture: Picture) -> np.ndarray:
        return transforms.evaluation_pixels(picture, self._shorter, self.size, self._filter)
