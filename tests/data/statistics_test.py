"""The whole train transform against timm's, by its statistics over 2,000 draws.

tests/data/golden/make_timm_train_transform.py made the record.
"""

import pathlib
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from evovit_jax.config import get_config
from evovit_jax.data import decode, on_device, transforms
from evovit_jax.data.augment import TrainTransform

GOLDEN = pathlib.Path(__file__).parent / "golden" / "timm_train_transform.npz"


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN))


@pytest.fixture(scope="module")
def image(golden):
    return Image.fromarray(golden["tiny"]).resize((500, 375), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def draws(golden, image):
    """Normalised and erased images, float32 [n h w c]."""
    config = get_config()
    config.model.image_size = int(golden["size"])
    transform = TrainTransform(config)
    picture = decode.open_image(np.asarray(image))
    pixels = np.stack(
        [transform(picture, random.Random(seed)) for seed in range(int(golden["draws"]))]
    )
    images = on_device.normalize(jnp.asarray(pixels), config.mean, config.std)
    erased = on_device.random_erasing(jax.random.key(0), images, prob=config.augment.erasing_prob)
    return np.asarray(erased)


@pytest.mark.parametrize("name", ["mean", "variance", "slope"])
@pytest.mark.slow
def test_moments(golden, draws, name):
    values = {
        "mean": lambda: draws.mean((1, 2)),
        "variance": lambda: draws.var((1, 2)),
        "slope": lambda: np.square(np.diff(draws, axis=2)).mean((1, 2)),
    }[name]()
    error = np.hypot(golden[f"{name}_error"], values.std(0) / np.sqrt(len(values)))
    assert (np.abs(values.mean(0) - golden[name]) < 3 * error).all()
    # The spread over the draws is the same too, within its own uncertainty.
    spread = values.std(0) / (golden[f"{name}_error"] * np.sqrt(len(values)))
    assert (np.abs(np.log(spread)) < 0.15).all()


def test_boxes(golden):
    config = get_config()
    count = int(golden["draws"])
    boxes = np.array(
        [
            transforms.random_box(
                random.Random(seed), 500, 375, config.augment.scale, config.augment.ratio
            )
            for seed in range(count)
        ]
    )
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    for name, values in {"area": width * height / (500 * 375), "aspect": width / height}.items():
        share = np.histogram(values, golden[f"{name}_bins"])[0] / count
        assert share.sum() == pytest.approx(1)  # no box beyond the bins
        both = share + golden[name]
        # Chi-squared of two samples of equal size, and its 99.9 % quantile for 10 bins (9 degrees).
        distance = count * np.sum(np.square(share - golden[name])[both > 0] / both[both > 0])
        assert distance < 27.9
