"""The encoders under timm's names.

tests/weights/state_dict_test.py sends it through a round trip.
"""

import dataclasses

from flax import nnx

from evovit_jax.weights.families import Family
from evovit_jax.weights.layouts import Scheme
from evovit_jax.weights.names import flat

# timm has the networks with rotary positions in a class of its own.
RENAMES = (
    (r"(blocks\.\d+)\.attn\.qkv\.([qv]_bias)", r"\1.attn.\2"),
    (r"(blocks\.\d+)\.ls([12])\.gamma", r"\1.gamma_\2"),
)
HEAD = "these weights are of an encoder without a head: allow_missing='head/.*' starts one anew"


def scheme(model: nnx.Module) -> Scheme:
    """timm's names."""
    renames = RENAMES if model.config.rope != "none" else RENAMES[:1]
    return dataclasses.replace(flat.scheme(model, renames), hints={r"head/.*": HEAD})


FAMILIES = (Family("timm", scheme),)
