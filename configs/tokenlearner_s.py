"""TokenLearner on ViT-S without class token, ImageNet (Ryoo et al., 2021), eight tokens at half.

    python -m evovit_jax.main --config=configs/tokenlearner_s.py --workdir=DIR

DeiT's recipe from scratch: the paper's own begins with JFT-300M, which is not public. Before the
seventh of twelve blocks the patches become 8 learned tokens; with
`--config.reduction=tokenlearner,fuse=true` they come back after each block.

Published: for networks that had seen JFT-300M alone, none after ImageNet only. Expected: below
DeiT-S (79.8 %) at about half of its cost; nobody has run it to the end with this code.

Cost: about 14.1 A100-hours, an estimate and not a measurement: 2 x 3 x 2.41 GMACs x 1.281 M images
x 300 epochs at 35 % of 312 TFLOP/s, bfloat16.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`."""
    c = recipes.deit("tokenlearner_vit_small_patch16_224", "tokenlearner")
    return config_lib.finish(c, variant)
