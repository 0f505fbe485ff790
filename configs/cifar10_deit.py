"""The network of cifar10_evo.py, dense: what the selection of tokens costs.

    python -m evovit_jax.main --config=configs/cifar10_deit.py:cpu --config.data=folder:DIR/train \
        --config.eval_data=folder:DIR/test --workdir=runs/cifar10_deit

The same recipe, the same pooled head with the same auxiliary class-token head.

Published: none. Expected: `:cpu` for 18 epochs in the place of 4.5 makes 68.6 and 67.9 % top-1
(seeds 0 and 1), where Evo-ViT makes 66.4 and 67.5; measured on one core of an Intel Xeon,
2026-11-22 (docs/results.md). Nobody has run the whole recipe to the end with this code.

Cost: those 18 epochs 28 minutes on one core, measured in the same runs.
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
