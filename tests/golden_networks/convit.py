"""ConViT: timm's network, its tokens, and those of the last block with positional attention."""

from typing import Any

import jax
from flax import nnx

from evovit_jax.models.convit import ConViT, ConViTConfig
from evovit_jax.models.outputs import Outputs

# What cannot be anything else here.
FIXED = {
    "activation": "gelu_erf",
    "positions": "added to patches only; class token put in front before block local_up_to_layer, "
    "without position",
    "position_attention": "pos_proj of (column difference, row difference, their squared length), "
    "key minus query",
    "head": "norm, class token, linear",
}
NAMES = ("image_size", "patch_size", "embed_dim", "depth", "num_heads", "local_up_to_layer",
         "mlp_ratio", "qkv_bias", "num_classes")  # fmt: skip


def network(sizes: dict[str, Any], reducer: dict[str, Any]) -> ConViT:
    """The network of a file."""
    assert {name: sizes.pop(name) for name in FIXED} == FIXED
    names = [name for name in NAMES if name in sizes]
    config = ConViTConfig(
        **{name: sizes.pop(name) for name in names}, norm_eps=sizes.pop("layer_norm_eps")
    )
    return ConViT(config, reducer, rngs=nnx.Rngs(0))


def value(output: dict[str, Any], logits: jax.Array, out: Outputs) -> jax.Array | None:
    """What an output is; None for what all networks have."""
    del logits
    return {
        "output of the last block with positional attention": out.aux.get("last_local"),
        "all tokens after the last norm": out.features,
    }.get(output["value"])
