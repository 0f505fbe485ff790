"""ATS on DeiT-S, ImageNet, as in the token-reduction study (Haurum et al., 2023).

    python -m evovit_jax.main --config=configs/deit_s_ats.py --workdir=DIR

The recipe is `recipes.study`: 30 epochs from DeiT's weights, keep rate 0.7 at blocks 3, 6 and 9.
Another size: `--config.model.name` and `--config.init_weights`.

Published: the study's tables are in the paper, not with its code; dense 79.8 % top-1. Expected:
below the dense model, the more so the fewer tokens are kept; nobody has run it to the end with this
code.

Cost: about 1.7 A100-hours, an estimate and not a measurement: 2 x 3 x 2.98 GMACs x 1.281 M images x
30 epochs at 35 % of 312 TFLOP/s, bfloat16.
"""

from ml_collections import ConfigDict

from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`, `keep90`, `keep70`, `keep50`, `keep25`."""
    reduction = "ats"
    c = recipes.study("deit_small_patch16_224", reduction, weights=recipes.DEIT_WEIGHTS["s"])
    return recipes.finish_study(c, variant, reduction)
