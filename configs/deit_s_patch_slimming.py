"""Patch Slimming on DeiT-S, ImageNet, at 2.6 GMACs (Tang et al., 2022).

    python -m evovit_jax.main --config=configs/deit_s_patch_slimming.py --workdir=DIR

30 epochs from DeiT's weights at 1e-4, weight decay 0.05: the paper's own settings are not known.
Masks are discs around the centre; to begin with a calibration's, name its file in `init_weights`,
and as `reduction` what `evovit_jax.calibrate` said.

Published: 79.4 % top-1 at 2.6 GMACs, each block's mask found and trained one after another.
Expected: below it without a calibration; nobody has run it to the end with this code.

Cost: about 1.5 A100-hours, an estimate and not a measurement: 2 x 3 x 2.64 GMACs x 1.281 M images x
30 epochs at 35 % of 312 TFLOP/s, bfloat16.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`."""
    c = recipes.deit("deit_small_patch16_224", "patch_slimming", drop_path_rate=0.0)
    c.init_weights, c.init_allow_missing = recipes.DEIT_WEIGHTS["s"], "reducer/.*"
    c.total_epochs, c.warmup_epochs, c.eval_epochs = 30, 0, 1
    c.optim.update(learning_rate=1e-4, reference_batch=0)
    c.ema.decay = 0.0
    return config_lib.finish(c, variant)
