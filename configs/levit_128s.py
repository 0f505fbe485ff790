"""LeViT-128S on ImageNet (Graham et al., 2021).

    python -m evovit_jax.main --config=configs/levit_128s.py --workdir=DIR

The recipe is `recipes.levit`: 1000 epochs of batch 8192, hard distillation from RegNetY-160.

Published: 76.6 % top-1, 305 M multiply-adds. Expected: the same within 0.3; nobody has run it to
the end with this code.

Cost: about 219 A100-hours, an estimate and not a measurement: 2 x (3 x 0.30 + 15.91) GMACs x 1.281
M images x 1000 epochs at 35 % of 156 TFLOP/s, TF32.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`."""
    c = recipes.levit("levit_128s")
    return config_lib.finish(c, variant)
