"""Prune-and-Merge on DeiT-S, ImageNet, keep rate 0.6 (Mao et al., 2025).

    python -m evovit_jax.main --config=configs/deit_s_prune_and_merge.py --workdir=DIR

30 epochs from DeiT's weights at 1e-4, weight decay 0.001, soft distillation by the dense network
(temperature 20, share 0.8). Matrices begin as evenly spaced centres; to begin with a calibration's,
name its file in `init_weights`, and as `reduction` what `evovit_jax.calibrate` said.

Published: 79.6 % top-1 at 3.0 GMACs after 30 to 60 epochs, from calibrated matrices. Expected:
below it without a calibration; nobody has run it to the end with this code.

Cost: about 2.7 A100-hours, an estimate and not a measurement: 2 x (3 x 3.05 + 4.60) GMACs x 1.281 M
images x 30 epochs at 35 % of 312 TFLOP/s, bfloat16.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`."""
    model, weights = "deit_small_patch16_224", recipes.DEIT_WEIGHTS["s"]
    c = recipes.deit(model, "prune_and_merge,keep_rate=0.6", drop_path_rate=0.0)
    c.init_weights, c.init_allow_missing = weights, "reducer/.*"
    c.total_epochs, c.warmup_epochs, c.eval_epochs = 30, 0, 1
    c.optim.update(learning_rate=1e-4, reference_batch=0, weight_decay=1e-3)
    c.distill.update(kind="soft", teacher=model, teacher_weights=weights, alpha=0.8, tau=20.0)
    c.ema.decay = 0.0
    return config_lib.finish(c, variant)
