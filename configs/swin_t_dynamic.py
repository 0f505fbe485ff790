"""DynamicViT on Swin-T, ImageNet, keep rate 0.7 (Rao et al., 2023).

    python -m evovit_jax.main --config=configs/swin_t_dynamic.py --workdir=DIR

The recipe is `recipes.dynamic_spatial`: 120 epochs from Swin's weights, the dense network the
teacher, the backbone frozen for 5 epochs. Of 196 positions in the third stage 137, 97 and 58 take
the slow path.

Published: 80.91 % top-1 at 4.0 GFLOPs (the authors' README). Expected: the same within 0.3; nobody
has run it to the end with this code.

Cost: about 29 A100-hours, an estimate and not a measurement: 2 x (3 x 4.78 + 4.49) GMACs x 1.281 M
images x 120 epochs at 35 % of 156 TFLOP/s, TF32.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`, `keep90` (keep rate 0.9)."""
    model = "swin_tiny_patch4_window7_224.ms_in1k"
    c = recipes.dynamic_spatial(model, f"hf://timm/{model}", keep_rate=0.7)
    c.eval_transform.crop_fraction = 0.9  # that of these weights
    return config_lib.finish(c, variant, keep90={"reduction": "dynamicvit,keep_rate=0.9"})
