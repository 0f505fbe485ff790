"""The kinds of checkpoints of flat vision transformers: timm's, the official ones, Google's.

tests/weights/state_dict_test.py sends it through a round trip.
"""

import dataclasses

from flax import nnx

from evovit_jax.reduction.dtem import DTEM
from evovit_jax.weights.families import Family
from evovit_jax.weights.layouts import Scheme
from evovit_jax.weights.names import evo_deit, flat, google, transformers

# Official DeiT-III checkpoints have their own names for LayerScale.
DEIT3_RENAMES = ((r"(blocks\.\d+)\.ls([12])\.gamma", r"\1.gamma_\2"),)
# DTEM keeps its embeddings beside queries, keys and values, and may copy the two into one map.
DTEM_RENAMES = (
    (r"(blocks\.\d+\.attn\.qkv)\.(weight|bias)", r"\1.qkv_layer.\2"),
    (r"reducer\.metric_layer\.(\d+)\.(weight|bias)", r"blocks.\1.attn.qkv.metric_layer.\2"),
)


def deit3_scheme(model: nnx.Module) -> Scheme:
    """The names of the official DeiT-III checkpoints."""
    return flat.scheme(model, DEIT3_RENAMES)


def dtem_scheme(model: nnx.Module) -> Scheme:
    """The names of DTEM's checkpoints."""
    copies = r"blocks\.\d+\.attn\.qkv\.(weight|bias)"
    return dataclasses.replace(flat.scheme(model, DTEM_RENAMES), spare=copies)


def is_dtem(model: nnx.Module) -> bool:
    """Whether a model has DTEM's embeddings."""
    return isinstance(model.reducer, DTEM)


FAMILIES = (
    Family("evo_deit", evo_deit.scheme, r"qks\.0\.qk\.weight", evo_deit.is_official),
    Family("dtem", dtem_scheme, r"blocks\.0\.attn\.qkv\.qkv_layer\.weight", is_dtem),
    Family("deit3", deit3_scheme, r"blocks\.0\.gamma_1"),
    Family("google", google.scheme, r"Transformer/encoderblock_0/.*"),
    Family("transformers", transformers.scheme, transformers.MARK),
    Family("timm", flat.scheme),
)
