"""ToMe on DeiT-S, ImageNet, r = 13, trained with it (Bolya et al., 2023).

    python -m evovit_jax.main --config=configs/deit_s_tome.py --workdir=DIR

The recipe is `recipes.deit` with 13 tokens merged in every block from the first step on; attention
is proportional, in training too.

Published: 79.36 % top-1 (dense 79.8). Expected: the same within 0.3; nobody has run it to the end
with this code.

Cost: about 16 A100-hours, an estimate and not a measurement: 2 x 3 x 2.71 GMACs x 1.281 M images x
300 epochs at 35 % of 312 TFLOP/s, bfloat16.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`."""
    c = recipes.deit("deit_small_patch16_224", "tome,r=13")
    return config_lib.finish(c, variant)
