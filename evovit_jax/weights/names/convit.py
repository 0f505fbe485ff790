"""ConViT under the names of the official code, which are timm's.

tests/weights/state_dict_test.py sends it through a round trip.
"""

from evovit_jax.weights.families import Family
from evovit_jax.weights.names import flat

FAMILIES = (Family("timm", flat.scheme),)
