"""A-ViT on DeiT-S, ImageNet (Yin et al., 2022).

    python -m evovit_jax.main --config=configs/deit_s_avit.py --workdir=DIR

100 epochs from DeiT's weights, the authors' command: 3e-4 * batch / 512 at batch 384, halting at a
centre of 75, losses `ponder` at 5e-4 and `prior` at 1e-3. Halted tokens are masked: nothing gets
faster.

Published: 78.8 % top-1 at 3.6 GMACs if halted tokens left. Expected: about that accuracy; nobody
has run it to the end with this code.

Cost: about 9.0 A100-hours, an estimate and not a measurement: 2 x 3 x 4.60 GMACs x 1.281 M images x
100 epochs at 35 % of 312 TFLOP/s, bfloat16.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`."""
    c = recipes.deit("deit_small_patch16_224", "avit,centre=75.0", batch_size=384, gpu_batch=96)
    c.init_weights, c.total_epochs = recipes.DEIT_WEIGHTS["s"], 100
    c.optim.learning_rate = 3e-4
    c.loss.reducer_weights = (("ponder", 5e-4), ("prior", 1e-3))
    return config_lib.finish(c, variant)
