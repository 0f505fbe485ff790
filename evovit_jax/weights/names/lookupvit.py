"""LookupViT under the names of lucidrains/vit-pytorch.

That code has a parameter `pos_embedding` that it never reads; it is left out here.

tests/weights/state_dict_test.py sends it through a round trip.
"""

import dataclasses

from flax import nnx

from evovit_jax.weights.families import Family
from evovit_jax.weights.layouts import Scheme, renamed_scheme

# Of a block's parts their number there.
PARTS = {"attn": 0, "mlp": 1, "cross": 2, "reused": 3, "norm": 4, "lookup_mlp": 5}
RENAMES = (
    *((rf"blocks\.(\d+)\.{part}\.(.*)", rf"layers.\1.{i}.\2") for part, i in PARTS.items()),
    (r"(layers\.\d+\.[15])\.norm\.gamma", r"\1.0.gamma"),
    (r"(layers\.\d+\.[15])\.mlp\.fc1\.(.*)", r"\1.1.\2"),
    (r"(layers\.\d+\.[15])\.mlp\.fc2\.(.*)", r"\1.4.\2"),
    (r"(layers\..*\.to_out)\.linear\.weight", r"\1.1.weight"),
    (r"(layers\..*\.to_[qkv])\.linear\.weight", r"\1.weight"),
    (r"patch_embed\.(.*)", r"to_patches.1.\1"),
    (r"patch_norm\.(.*)", r"to_patches.3.\1"),
    (r"lookup_norm\.(.*)", r"highres_norm.\1"),
    (r"head\.(.*)", r"to_logits.\1"),
)


def scheme(model: nnx.Module) -> Scheme:
    """The names there."""
    return dataclasses.replace(renamed_scheme(model, RENAMES), spare="pos_embedding")


FAMILIES = (Family("vit_pytorch", scheme),)
