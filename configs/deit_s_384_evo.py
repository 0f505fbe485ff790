"""Evo-ViT on DeiT-S at 384 pixels, ImageNet, from scratch (Xu et al., 2022).

    python -m evovit_jax.main --config=configs/deit_s_384_evo.py --workdir=DIR

The recipe is `recipes.evo_deit`: DeiT's, half of the patch tokens on the slow path from block 4 on,
selection in every block for 200 epochs, then at blocks 4 and 8. The placeholders follow the
representative token, as in the paper; `--config.reduction=evo,representative_token=false` is the
official DeiT code.

Published: nothing of this size was released; 9.88 GMACs (dense 15.49). Expected: above the 79.4 %
of 224 pixels; nobody has run it to the end with this code.

Cost: about 58 A100-hours, an estimate and not a measurement: 2 x 3 x 9.88 GMACs x 1.281 M images x
300 epochs at 35 % of 312 TFLOP/s, bfloat16.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`."""
    c = recipes.evo_deit("evo_deit_small_patch16_384", image_size=384)
    return config_lib.finish(c, variant)
