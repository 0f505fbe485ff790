"""EViT on DeiT-B, ImageNet, keep rate 0.7 with fusion, from scratch (Liang et al., 2022).

    python -m evovit_jax.main --config=configs/deit_b_evit.py --workdir=DIR

The recipe is `recipes.evit`: DeiT's at batch 2048, the keep rate 1 for 10 epochs and falling for
100.

Published: the authors' README has no figure of this size; dense 81.8 % top-1. Expected: about half
a point below the dense model; nobody has run it to the end with this code.

Cost: about 68 A100-hours, an estimate and not a measurement: 2 x 3 x 11.61 GMACs x 1.281 M images x
300 epochs at 35 % of 312 TFLOP/s, bfloat16.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`."""
    c = recipes.evit("deit_base_patch16_224", keep_rate=0.7)
    return config_lib.finish(c, variant)
