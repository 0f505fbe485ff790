"""DeiT-T on ImageNet, dense (Touvron et al., 2021).

    python -m evovit_jax.main --config=configs/deit_t.py --workdir=DIR

The recipe is `recipes.deit`: 300 epochs of batch 1024. Stochastic depth is off.

Published: 72.2 % top-1. Expected: the same within 0.3; nobody has run it to the end with this code.

Cost: about 7.4 A100-hours, an estimate and not a measurement: 2 x 3 x 1.25 GMACs x 1.281 M images x
300 epochs at 35 % of 312 TFLOP/s, bfloat16.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`."""
    c = recipes.deit("deit_tiny_patch16_224", drop_path_rate=0.0, gpu_batch=256)
    return config_lib.finish(c, variant)
