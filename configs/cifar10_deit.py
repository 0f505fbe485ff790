"""The network of cifar10_evo.py, dense: what the selection of tokens costs.

    python -m evovit_jax.main --config=configs/cifar10_deit.py:cpu --config.data=folder:DIR/train \
        --config.eval_data=folder:DIR/test --workdir=runs/cifar10_deit

The same recipe, the same pooled head with the same auxiliary class-token head.
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
