"""What a config makes of one stored image: the transforms of training and of evaluation."""

import random

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from evovit_jax.data import randaugment, transforms
from evovit_jax.data.decode import Picture
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
        self._augment = augment.to_dict()
        self._size = config.model.image_size
        names = (
            ("bilinear", "bicubic")
            if augment.interpolation == "random"
            else (augment.interpolation,)
        )
        self._resamples = [transforms.interpolation(name) for name in names]
        self._eval = EvalTransform(config)
        if augment.randaugment and augment.three_augment:
            raise UserError("augment.randaugment and augment.three_augment: choose one of the two")
        self._randaugment = randaugment.parse(augment.randaugment) if augment.randaugment else None
        self._fill = tuple(min(255, round(255 * value)) for value in config.mean)

    def __call__(self, picture: Picture, rng: random.Random) -> np.ndarray:
        image = self._crop(picture, rng, self._resample(rng))
        if rng.random() < self._augment["flip"]:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = image.convert("RGB") if image.mode != "RGB" else image
        image = self._color(image, rng)
        return np.asarray(image)

    def _resample(self, rng: random.Random) -> Image.Resampling:
        return self._resamples[0] if len(self._resamples) == 1 else rng.choice(self._resamples)

    def _crop(
        self, picture: Picture, rng: random.Random, resample: Image.Resampling
    ) -> Image.Image:
        augment, size = self._augment, self._size
        if augment["crop"] == "rrc":
            return transforms.random_resized_crop(
                picture, rng, size, augment["scale"], augment["ratio"], resample
            )
        if augment["crop"] == "none":
            return self._eval.crop(picture)
        image = picture.whole()
        if augment["crop"] == "shift":
            return transforms.random_shift(image, rng, size, augment["pad"], resample)
        image = transforms.resize_center_crop(image, size, size, resample)
        return transforms.pad_crop(image, rng, size, augment["pad"])

    def _color(self, image: Image.Image, rng: random.Random) -> Image.Image:
        if self._randaugment is not None:  # as in timm, without colour jitter
            drawing = randaugment.Drawing(self._fill, self._resample(rng))
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
        self._size = config.model.image_size
        self._resize = fields.resize or int(self._size / fields.crop_fraction)
        self._resample = transforms.interpolation(fields.interpolation)

    def __call__(self, picture: Picture) -> np.ndarray:
        image = self.crop(picture)
        return np.asarray(image.convert("RGB") if image.mode != "RGB" else image)

    def crop(self, picture: Picture) -> Image.Image:
        """Decodes in full (what is measured must not depend on a JPEG's shortcuts) and crops."""
        return transforms.resize_center_crop(
            picture.whole(), self._resize, self._size, self._resample
        )
