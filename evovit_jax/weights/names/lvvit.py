"""LV-ViT under its official names, which DynamicViT's code on it shares.

tests/weights/state_dict_test.py sends it through a round trip.
"""

from flax import nnx

from evovit_jax.weights.families import Family
from evovit_jax.weights.layouts import Scheme
from evovit_jax.weights.names import flat

# The stem's layers are numbered from 1, a convolution beside its batch norm.
RENAMES = tuple(
    (rf"patch_embed\.convs\.{i}\.(conv|bn)\.(.*)", rf"patch_embed.\g<1>{i + 1}.\2")
    for i in range(3)
)


def scheme(model: nnx.Module) -> Scheme:
    """The official names."""
    return flat.scheme(model, RENAMES)


FAMILIES = (Family("lvvit", scheme),)
