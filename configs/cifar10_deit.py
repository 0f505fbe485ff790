"""The network of cifar10_evo.py, dense: what the selection of tokens costs.

    python -m evovit_jax.main --config=configs/cifar10_deit.py:cpu --config.data=folder:DIR/train \
        --config.eval_data=folder:DIR/test --workdir=runs/cifar10_deit

The same recipe, the same pooled head with the same auxiliary class-token head.

Published: none. Expected: near cifar10_evo.py, whose `:cpu` makes 51.6 % top-1, measured on 2 CPU
cores; nobody has run this one to the end with this code.

Cost: over that of cifar10_evo.py, whose `:cpu` takes 4 min 20 s on 2 CPU cores; not measured.
"""

import pathlib

from ml_collections import ConfigDict

from evovit_jax import config as config_lib


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; variants: those of cifar10_evo.py."""
    twin = pathlib.Path(__file__).with_name("cifar10_evo.py")
    c = config_lib.load(f"{twin}:{variant}")
    c.reduction = "none"
    return c
