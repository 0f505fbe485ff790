"""LookupViT: vit-pytorch's network, its few tokens and its many."""

from typing import Any

import jax
from flax import nnx

from evovit_jax.models.lookupvit import LookupViT, LookupViTConfig
from evovit_jax.models.outputs import Outputs

# What cannot be anything else here.
FIXED = {
    "gelu": "erf",
    "norm": "without bias, weight = gamma + 1",
    "bias": "only in the MLPs and the patch convolution",
    "positions": "2-D sine-cosine on the lookup grid; the parameter pos_embedding is unused",
    "compression": "bilinear, half-pixel centres, no anti-aliasing, of the lookup map with its "
    "positions",
    "pool": "mean of the few + mean of the many",
}
NAMES = ("image_size", "patch_size", "compressed_grid", "embed_dim", "depth", "num_heads",
         "head_dim", "cross_num_heads", "cross_head_dim", "mlp_ratio", "lookup_mlp_ratio",
         "patch_kernel_size", "num_classes")  # fmt: skip


def network(sizes: dict[str, Any], reducer: dict[str, Any]) -> LookupViT:
    """The network of a file; the method is the network itself, so `reducer` has no settings."""
    assert {name: sizes.pop(name) for name in FIXED} == FIXED
    assert set(reducer) == {"name"}
    config = LookupViTConfig(
        **{name: sizes.pop(name) for name in NAMES}, norm_eps=sizes.pop("layer_norm_eps")
    )
    assert sizes.pop("compressed_tokens") == config.compressed_grid**2
    assert sizes.pop("compressed_patch_size") * config.compressed_grid == config.image_size
    return LookupViT(config, rngs=nnx.Rngs(0))


def value(output: dict[str, Any], logits: jax.Array, out: Outputs) -> jax.Array | None:
    """What an output is; None for what all networks have."""
    del logits
    return {
        "the few tokens [batch, tokens, channels] after their last norm": out.features,
        "the many (lookup) tokens after their last norm": out.aux["lookup_tokens"],
    }.get(output.get("value"))
