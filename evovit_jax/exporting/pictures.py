"""The images on which an export is compared with its network.

Tested in tests/exporting/checked_test.py.
"""

import random

import numpy as np
from jaxtyping import UInt8

from evovit_jax.data.decode import open_image
from evovit_jax.data.source import open_source
from evovit_jax.data.transforms import random_resized_crop
from evovit_jax.inference.prediction import readable
from evovit_jax.inference.ready_model import ReadyModel

COUNT = 50


def of_data(
    prepared: ReadyModel, data: str, data_dir: str = ""
) -> tuple[UInt8[np.ndarray, "n s s 3"], str]:
    """The first images of a data set as the network sees them, and what they are.

    Raises:
      UserError: the data cannot be used, or an image cannot be read.
    """
    source = open_source(data, "test", data_dir, labels_needed=False)
    crops = []
    for i in range(min(COUNT, len(source))):
        with readable(source.describe(i)):
            crops.append(prepared.crop(open_image(source[i]["image"], prepared.max_image_pixels)))
    name = data.rstrip("/").rsplit("/", 1)[-1]  # a manifest that is shown around needs no path
    return np.stack(crops), f"the first of {name}"


def of_two_photographs(prepared: ReadyModel) -> tuple[UInt8[np.ndarray, "n s s 3"], str]:
    """Parts of the two photographs that scikit-learn brings, the same ones every time."""
    from sklearn.datasets import load_sample_images

    photographs = [open_image(photograph) for photograph in load_sample_images().images]
    rng, t = random.Random(0), prepared.transform
    crops = [
        random_resized_crop(
            photographs[i % 2], rng, t.image_size, (0.1, 1.0), (3 / 4, 4 / 3), t.interpolation
        )
        for i in range(COUNT)
    ]
    return np.stack(crops), "parts of the two photographs of scikit-learn"
