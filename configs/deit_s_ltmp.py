"""LTMP on DeiT-S, ImageNet, three quarters of the multiply-adds (Bonnaerens and Dambre, 2023).

    python -m evovit_jax.main --config=configs/deit_s_ltmp.py --workdir=DIR

The thresholds alone learn, for one epoch, from DeiT's weights: the authors' command (batch 128,
rates 5e-6 for pruning and 5e-3 for merging, `budget` at 10, no weight decay, random crops and flips
without more augmentation), but with AdamW in the place of SGD with momentum, and rates that fall
along a cosine. Tokens are masked: nothing gets faster.

Published: one epoch of fine-tuning is enough (the authors' README, which has no figures). Expected:
a `loss_budget` near zero; nobody has run it to the end with this code.

Cost: about 0.09 A100-hours, an estimate and not a measurement: 2 x 3 x 4.60 GMACs x 1.281 M images
x 1 epochs at 35 % of 312 TFLOP/s, bfloat16.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`."""
    c = recipes.deit(
        "deit_small_patch16_224", "ltmp,target=0.75", drop_path_rate=0.0, batch_size=128
    )
    c.init_weights, c.init_allow_missing = recipes.DEIT_WEIGHTS["s"], "reducer/.*"
    c.total_epochs, c.warmup_epochs, c.freeze_epochs, c.eval_epochs = 1, 0, 1, 1
    c.optim.update(learning_rate=5e-3, reference_batch=0, min_learning_rate=0.0, weight_decay=0.0)
    c.optim.learning_rate_rules = (("reducer/prune_masker/.*", 1e-3), (".*", 1.0))
    c.optim.freeze_rules = (("reducer/.*", False), (".*", True))
    c.loss.reducer_weights = (("budget", 10.0),)
    c.augment.update(randaugment="", erasing_prob=0.0, mixup=0.0, cutmix=0.0, repeats=1)
    c.ema.decay = 0.0
    return config_lib.finish(c, variant)
