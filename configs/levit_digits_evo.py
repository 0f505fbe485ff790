"""An Evo-LeViT on scikit-learn's scanned digits: its recipe, shrunk by configuration alone.

    python -m evovit_jax.main --config=configs/levit_digits_evo.py --workdir=DIR

As levit_digits.py, with a class token and learned positions in the place of attention biases. From
block 1 on half of the 16, then of the 4 tokens take the slow path, chosen in every block and
with a fixed trade-off for two thirds of the training, then once a stage and learned.

Published: none. Expected: 99.4 % top-1 on the 360 held-out digits (seed 0), measured on 2 CPU
cores, 2026-11-21.

Cost: 2 min 9 s on 2 CPU cores, measured in the same run.
"""

from ml_collections import ConfigDict

from evovit_jax import config as config_lib
from evovit_jax.config import recipes


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: `smoke`."""
    c = recipes.evo_levit("evo_levit_128s")
    recipes.on_digits(c, image_size=64)
    c.model.update(embed_dim=(64, 96, 128), depth=(2, 2, 2), num_heads=(4, 6, 8))
    c.reduction = "evo,first_block=1"
    return config_lib.finish(c, variant)
