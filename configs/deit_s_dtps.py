"""dTPS on DeiT-S, ImageNet, keep rate 0.7 (Wei et al., 2023).

    python -m evovit_jax.main --config=configs/deit_s_dtps.py --workdir=DIR

The recipe is `recipes.dynamicvit` at a learning rate of 2.5e-4: 30 epochs from DeiT's weights, the
dense network the teacher.

Published: one to six points over what it squeezes for, at a third of the compute (the paper's
abstract). Expected: above DynamicViT's 79.3 % top-1; nobody has run it to the end with this code.

Cost: about 7.2 A100-hours, an estimate and not a measurement: 2 x (3 x 4.60 + 4.60) GMACs x 1.281 M
images x 30 epochs at 35 % of 156 TFLOP/s, TF32.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`."""
    c = recipes.dynamicvit("deit_small_patch16_224", recipes.DEIT_WEIGHTS["s"], keep_rate=0.7)
    c.reduction = "dtps,keep_rate=0.7"
    c.optim.learning_rate = 2.5e-4
    return config_lib.finish(c, variant)
