"""SViTE's selection of data on DeiT-S, ImageNet, 177 of 197 tokens (Chen et al., 2021).

    python -m evovit_jax.main --config=configs/deit_s_svite.py --workdir=DIR

30 epochs from DeiT's weights as `recipes.evit_finetune`, masked. The authors train for 600 epochs
from scratch, with sparse weights beside it.

Published: 0.28 points over the dense 79.8 % top-1 with both kinds of sparsity. Expected: within
half a point of the dense network; nobody has run it to the end with this code.

Cost: about 2.7 A100-hours, an estimate and not a measurement: 2 x 3 x 4.60 GMACs x 1.281 M images x
30 epochs at 35 % of 312 TFLOP/s, bfloat16.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`."""
    c = recipes.evit_finetune("deit_small_patch16_224", recipes.DEIT_WEIGHTS["s"], keep_rate=0.7)
    c.reduction, c.init_allow_missing = "svite,kept=177", "reducer/.*"
    c.optim.learning_rate_rules = (("reducer/.*", 10.0), (".*", 1.0))
    return config_lib.finish(c, variant)
