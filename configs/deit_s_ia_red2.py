"""IA-RED2 on DeiT-S, ImageNet, keep rate 0.7 a group of four blocks (Pan et al., 2021).

    python -m evovit_jax.main --config=configs/deit_s_ia_red2.py --workdir=DIR

30 epochs from DeiT's weights, masked, with the gradient straight through the draws and a loss on
the budget in the place of the paper's REINFORCE; the backbone learns at 0.01 of the interpreters'
rate, as in `recipes.dynamicvit`.

Published: up to 1.4 times faster at 0.7 points less (the paper's abstract, another training).
Expected: below DynamicViT's 79.3 % top-1; nobody has run it to the end with this code.

Cost: about 5.4 A100-hours, an estimate and not a measurement: 2 x 3 x 4.60 GMACs x 1.281 M images x
30 epochs at 35 % of 156 TFLOP/s, TF32.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`."""
    c = recipes.dynamicvit("deit_small_patch16_224", recipes.DEIT_WEIGHTS["s"], keep_rate=0.7)
    c.reduction = "ia_red2,keep_rate=0.7"
    c.distill.kind = "none"
    c.loss.reducer_weights = (("ratio", 2.0),)
    return config_lib.finish(c, variant)
