"""DynamicViT on LV-ViT-S, ImageNet, keep rate 0.7 (Rao et al., 2021).

    python -m evovit_jax.main --config=configs/lvvit_s_dynamicvit.py --workdir=DIR

The recipe is `recipes.dynamicvit`: 30 epochs from LV-ViT's weights, the dense network the teacher,
the backbone frozen for 5 epochs. The weights are a file of github.com/zihangJiang/TokenLabeling
(releases); say where it lies with `--config.init_weights=FILE`.

Published: 83.08 % top-1 at 4.6 GFLOPs, at keep rate 0.5 81.97 % at 3.7 (the authors' README).
Expected: the same within 0.3; nobody has run it to the end with this code.

Cost: about 10 A100-hours, an estimate and not a measurement: 2 x (3 x 6.55 + 6.55) GMACs x 1.281 M
images x 30 epochs at 35 % of 156 TFLOP/s, TF32.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`, `keep50` (keep rate 0.5)."""
    c = recipes.dynamicvit("lvvit_s", "lvvit_s-26M-224-83.3.pth.tar", keep_rate=0.7)
    c.eval_transform.crop_fraction = 224 / 248  # LV-ViT's own
    return config_lib.finish(c, variant, keep50={"reduction": "dynamicvit,keep_rate=0.5"})
