"""Evo-ViT on LeViT-128, ImageNet (Xu et al., 2022).

    python -m evovit_jax.main --config=configs/levit_128_evo.py --workdir=DIR

The recipe is `recipes.evo_levit`: a class token and learned positions in LeViT, 300 epochs of batch
2048, hard distillation on two of four heads, half of each stage's tokens on the slow path.

Published: 74.4 % top-1 (the authors' README). Expected: the same within 0.3; nobody has run it to
the end with this code.

Cost: about 66 A100-hours, an estimate and not a measurement: 2 x (3 x 0.30 + 15.91) GMACs x 1.281 M
images x 300 epochs at 35 % of 156 TFLOP/s, TF32.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`."""
    c = recipes.evo_levit("evo_levit_128")
    return config_lib.finish(c, variant)
