"""Evo-ViT on LeViT-192 at 384 pixels, ImageNet (Xu et al., 2022).

    python -m evovit_jax.main --config=configs/levit_192_384_evo.py --workdir=DIR

The recipe is `recipes.evo_levit` at 384 pixels: 300 epochs of batch 1024, hard distillation on two
of four heads, half of each stage's tokens on the slow path.

Published: nothing of this size was released. Expected: above the top-1 of the same network at 224
pixels; nobody has run it to the end with this code.

Cost: about 202 A100-hours, an estimate and not a measurement: 2 x (3 x 1.60 + 46.76) GMACs x 1.281
M images x 300 epochs at 35 % of 156 TFLOP/s, TF32.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`."""
    c = recipes.evo_levit("evo_levit_192_384", image_size=384, gpu_batch=128)
    return config_lib.finish(c, variant)
