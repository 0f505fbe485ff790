"""A LeViT on scikit-learn's scanned digits: LeViT's recipe, shrunk by configuration alone.

    python -m evovit_jax.main --config=configs/levit_digits.py --workdir=DIR

Three stages of two blocks on 16, 4 and 1 tokens: the stem makes one token of 16x16 pixels, so the
8x8 scans are shown at 64. The optimiser, adaptive clipping and schedule are `recipes.levit`'s,
the learning rate that of a batch of 64, the augmentation a shift. There is no teacher: both heads
learn the labels. A trained network of this library teaches with `--config.distill.kind=hard
--config.distill.teacher=NAME --config.distill.teacher_weights=ITS_WORKDIR`.

Published: none. Expected: 99.2 % top-1 on the 360 held-out digits (seed 0), measured on 2 CPU
cores, 2026-11-21.

Cost: 1 min 37 s on 2 CPU cores, measured in the same run.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`."""
    c = recipes.levit("levit_128s")
    recipes.on_digits(c, image_size=64)
    c.model.update(embed_dim=(64, 96, 128), depth=(2, 2, 2), num_heads=(4, 6, 8))
    return config_lib.finish(c, variant)
