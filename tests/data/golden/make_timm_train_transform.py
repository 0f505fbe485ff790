"""Records statistics of timm's train transform, which tests/data/statistics_test.py compares with.

    pip install 'evovit_jax[torch]' && python tests/data/golden/make_timm_train_transform.py

DeiT's recipe (random resized crop, flip, RandAugment, normalisation, random erasing) is drawn 2,000
times on one image. Recorded over the draws: mean and standard error of each channel's mean and
variance, and of its horizontal slope's square (which blurs, shears and posterising change);
the share of drawn boxes in each bin of area and of aspect ratio, and of draws that were erased.
"""

import pathlib
import random

import numpy as np
from PIL import Image

from evovit_jax.benchmarking.pipeline_processes import import_timm

DRAWS, SIZE = 2000, 64
AREA_BINS = np.linspace(0.0, 1.0, 11)
ASPECT_BINS = np.exp(np.linspace(np.log(0.74), np.log(1.35), 9))
OUTPUT = pathlib.Path(__file__).with_name("timm_train_transform.npz")


def main() -> None:
    import_timm()
    import torch
    from timm.data import create_transform, transforms

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    tiny = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    image = Image.fromarray(tiny).resize((500, 375), Image.Resampling.BICUBIC)
    transform = create_transform(
        SIZE,
        is_training=True,
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
    )
    boxes = []
    crop = transforms.RandomResizedCropAndInterpolation
    get_params = crop.get_params

    def record(*args):
        _, _, height, width = found = get_params(*args)
        boxes.append((width, height))
        return found

    crop.get_params = staticmethod(record)
    draws = np.stack([transform(image).numpy() for _ in range(DRAWS)])  # [n c h w]
    width, height = np.array(boxes).T
    slopes = np.square(np.diff(draws, axis=3))
    statistics = {}
    for name, values in {
        "mean": draws.mean((2, 3)),
        "variance": draws.var((2, 3)),
        "slope": slopes.mean((2, 3)),
    }.items():
        statistics[name] = values.mean(0)
        statistics[f"{name}_error"] = values.std(0) / np.sqrt(DRAWS)
    np.savez(
        OUTPUT,
        tiny=tiny,
        draws=DRAWS,
        size=SIZE,
        area_bins=AREA_BINS,
        area=np.histogram(width * height / (500 * 375), AREA_BINS)[0] / DRAWS,
        aspect_bins=ASPECT_BINS,
        aspect=np.histogram(width / height, ASPECT_BINS)[0] / DRAWS,
        **statistics,
    )


if __name__ == "__main__":
    main()
