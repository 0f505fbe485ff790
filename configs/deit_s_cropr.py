"""Cropr on DeiT-S, ImageNet, 8 tokens a block (Bergner et al., 2025).

    python -m evovit_jax.main --config=configs/deit_s_cropr.py --workdir=DIR

30 epochs from DeiT's weights as `recipes.evit_finetune`, with the auxiliary classifiers' losses.
The authors' recipes are for networks of masked autoencoders.

Published: MAE ViT-L 85.3 % top-1 fine-tuned (dense 85.8); nothing for DeiT-S. Expected: within a
point of the dense network; nobody has run it to the end with this code.

Cost: about 2.1 A100-hours, an estimate and not a measurement: 2 x 3 x 3.51 GMACs x 1.281 M images x
30 epochs at 35 % of 312 TFLOP/s, bfloat16.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`."""
    c = recipes.evit_finetune("deit_small_patch16_224", recipes.DEIT_WEIGHTS["s"], keep_rate=0.7)
    c.reduction, c.init_allow_missing = "cropr,r=8", "reducer/.*"
    c.optim.learning_rate_rules = (("reducer/.*", 10.0), (".*", 1.0))
    c.loss.reducer_weights = (("cropr_.*", 1.0),)
    return config_lib.finish(c, variant)
