"""EViT on DeiT-S, ImageNet, keep rate 0.7 with fusion, from scratch (Liang et al., 2022).

    python -m evovit_jax.main --config=configs/deit_s_evit.py --workdir=DIR

The recipe is `recipes.evit`: DeiT's at batch 2048, the keep rate 1 for 10 epochs and falling for
100. Variants set the other published keep rates.

Published: 79.8, 79.8, 79.5, 78.9 and 78.5 % top-1 at keep rates 0.9, 0.8, 0.7, 0.6 and 0.5 (the
authors' README). Expected: the same within 0.3; nobody has run it to the end with this code.

Cost: about 18 A100-hours, an estimate and not a measurement: 2 x 3 x 3.03 GMACs x 1.281 M images x
300 epochs at 35 % of 312 TFLOP/s, bfloat16.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`, `keep90`, `keep80`, `keep60`, `keep50`."""
    c = recipes.evit("deit_small_patch16_224", keep_rate=0.7)
    return config_lib.finish(
        c,
        variant,
        **{
            f"keep{n}": {"reduction": f"evit,keep_rate={n / 100},fuse=true"}
            for n in (90, 80, 60, 50)
        },
    )
