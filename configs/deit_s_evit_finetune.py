"""EViT on DeiT-S, ImageNet, keep rate 0.7 with fusion, from DeiT's weights
(Liang et al., 2022, and the authors' `finetune.sh`).

    python -m evovit_jax.main --config=configs/deit_s_evit_finetune.py --workdir=DIR

The recipe is `recipes.evit_finetune`: 30 epochs, neither learning rate nor keep rate warmed up.

Published: the authors' README gives no figure for fine-tuning; from scratch 79.5 % top-1. Expected:
between 79 and 79.5; nobody has run it to the end with this code.

Cost: about 1.8 A100-hours, an estimate and not a measurement: 2 x 3 x 3.03 GMACs x 1.281 M images x
30 epochs at 35 % of 312 TFLOP/s, bfloat16.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`."""
    c = recipes.evit_finetune("deit_small_patch16_224", recipes.DEIT_WEIGHTS["s"], keep_rate=0.7)
    return config_lib.finish(c, variant)
