"""DynamicViT on DeiT-B, ImageNet, keep rate 0.7 (Rao et al., 2021).

    python -m evovit_jax.main --config=configs/deit_b_dynamicvit.py --workdir=DIR

The recipe is `recipes.dynamicvit`: 30 epochs from DeiT's weights, the dense network the teacher,
the backbone frozen for 5 epochs. The ratio loss has weight 5 for this size.

Published: 81.43 % top-1 at 11.4 GFLOPs (the authors' README). Expected: the same within 0.3; nobody
has run it to the end with this code.

Cost: about 27 A100-hours, an estimate and not a measurement: 2 x (3 x 17.56 + 17.56) GMACs x 1.281
M images x 30 epochs at 35 % of 156 TFLOP/s, TF32.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`."""
    c = recipes.dynamicvit(
        "deit_base_patch16_224", recipes.DEIT_WEIGHTS["b"], keep_rate=0.7, ratio_weight=5.0
    )
    return config_lib.finish(c, variant)
