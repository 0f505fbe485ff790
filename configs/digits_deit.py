"""The network of digits_evo.py, dense: what the selection of tokens costs.

    python -m evovit_jax.main --config=configs/digits_deit.py --workdir=runs/digits_deit

The same recipe, the same pooled head with the same auxiliary class-token head.

Published: none. Expected: 97.8 and 98.9 % top-1 on the 360 held-out digits (seeds 0, 1), measured
on 2 CPU cores, 2026-11-20.

Cost: about that of digits_evo.py, a minute and a half on 2 CPU cores; not timed by itself.
"""

import pathlib

from ml_collections import ConfigDict

from evovit_jax import config as config_lib


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: those of digits_evo.py."""
    twin = pathlib.Path(__file__).with_name("digits_evo.py")
    c = config_lib.load(f"{twin}:{variant}")
    c.reduction = "none"
    return c
