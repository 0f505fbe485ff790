"""Evo-ViT on DeiT-T, ImageNet (Xu et al., 2022).

    python -m evovit_jax.main --config=configs/deit_t_evo.py --workdir=DIR

The recipe is `recipes.evo_deit`: DeiT's, half of the patch tokens on the slow path from block 4 on,
selection in every block for 200 epochs, then at blocks 4 and 8. The placeholders follow the
representative token, as in the paper; `--config.reduction=evo,representative_token=false` is the
official DeiT code.

Published: 72.0 % top-1 (the authors' README; dense 72.2), 0.82 GMACs (dense 1.25). Expected: the
same within 0.3; nobody has run it to the end with this code.

Cost: about 4.8 A100-hours, an estimate and not a measurement: 2 x 3 x 0.82 GMACs x 1.281 M images x
300 epochs at 35 % of 312 TFLOP/s, bfloat16.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`."""
    c = recipes.evo_deit("evo_deit_tiny_patch16_224", drop_path_rate=0.0, gpu_batch=256)
    return config_lib.finish(c, variant)
