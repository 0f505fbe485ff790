"""DynamicViT on LV-ViT-M, ImageNet, keep rate 0.7 (Rao et al., 2021).

    python -m evovit_jax.main --config=configs/lvvit_m_dynamicvit.py --workdir=DIR

The recipe is `recipes.dynamicvit`: 30 epochs from LV-ViT's weights, the dense network the teacher,
the backbone frozen for 5 epochs. The weights are a file of github.com/zihangJiang/TokenLabeling
(releases); say where it lies with `--config.init_weights=FILE`.

Published: 83.82 % top-1 at 8.5 GFLOPs (the authors' README). Expected: the same within 0.3; nobody
has run it to the end with this code.

Cost: about 20 A100-hours, an estimate and not a measurement: 2 x (3 x 12.68 + 12.68) GMACs x 1.281
M images x 30 epochs at 35 % of 156 TFLOP/s, TF32.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`, `keep50` (keep rate 0.5)."""
    c = recipes.dynamicvit("lvvit_m", "lvvit_m-56M-224-84.0.pth.tar", keep_rate=0.7)
    c.eval_transform.crop_fraction = 224 / 248  # LV-ViT's own
    return config_lib.finish(c, variant, keep50={"reduction": "dynamicvit,keep_rate=0.5"})
