"""DTEM on DeiT-S, ImageNet, r = 16: the embeddings alone learn (Lee and Hong, 2024).

    python -m evovit_jax.main --config=configs/deit_s_dtem.py --workdir=DIR

30 epochs from DeiT's weights, all of which are frozen, with DeiT's augmentation. The learning rate
and its schedule are DeiT's, for the authors' were not at hand.

Published: 30 epochs are enough for the embeddings (the paper). Expected: above ToMe without
training at the same r; nobody has run it to the end with this code.

Cost: about 1.4 A100-hours, an estimate and not a measurement: 2 x 3 x 2.33 GMACs x 1.281 M images x
30 epochs at 35 % of 312 TFLOP/s, bfloat16.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`."""
    c = recipes.deit("deit_small_patch16_224", "dtem,r=16", drop_path_rate=0.0)
    c.init_weights, c.init_allow_missing = recipes.DEIT_WEIGHTS["s"], "reducer/.*"
    c.total_epochs, c.freeze_epochs, c.eval_epochs = 30, 30, 1
    c.optim.freeze_rules = (("reducer/.*", False), (".*", True))
    c.ema.decay = 0.0
    return config_lib.finish(c, variant)
