"""CrossViT: timm's network, and the tokens of its branches."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from evovit_jax.models.crossvit import CrossViT
from evovit_jax.models.crossvit_embedding import BRANCHES, CrossViTConfig
from evovit_jax.models.outputs import Outputs

# What cannot be anything else here.
FIXED = {
    "activation": "gelu_erf",
    "scaling": "bicubic with a = -0.75, half-pixel centres, no antialias, edges repeated",
    "head": "norm and head of each branch on its class token, mean of the logits",
}
NAMES = ("num_classes", "crop_scale", "multi_conv", "qkv_bias")
LISTS = ("patch_size", "image_scale", "embed_dim", "num_heads", "mlp_ratio")


def network(sizes: dict[str, Any], reducer: dict[str, Any]) -> CrossViT:
    """The network of a file; (height, width) as the image size makes positions that are a grid."""
    assert {name: sizes.pop(name) for name in FIXED} == FIXED
    assert reducer == {"name": "none"}
    side = sizes.pop("image_size")
    height, width = side if isinstance(side, list) else (side, side)
    config = CrossViTConfig(
        image_size=height,
        **{name: sizes.pop(name) for name in NAMES},
        **{name: tuple(sizes.pop(name)) for name in LISTS},
        depth=tuple(map(tuple, sizes.pop("depth"))),
        norm_eps=sizes.pop("layer_norm_eps"),
    )
    scaled = [config.scaled_size(height, width, branch) for branch in range(BRANCHES)]
    expected = [list(size) if isinstance(side, list) else size[0] for size in scaled]
    assert sizes.pop("scaled_sizes") == expected
    model = CrossViT(config, rngs=nnx.Rngs(0))
    for embedding, size, dim in zip(model.embeddings, scaled, config.embed_dim, strict=True):
        embedding.grid = embedding.patch_embed.grid(*size)
        rows, columns = embedding.grid
        embedding.pos_embed.set_value(jnp.zeros((1, 1 + rows * columns, dim)))
    return model


def value(output: dict[str, Any], logits: jax.Array, out: Outputs) -> jax.Array | None:
    """What an output is; None for what all networks have."""
    del logits
    return {
        "tokens of the first branch after its norm": out.aux["branch0"],
        "tokens of the second branch after its norm": out.aux["branch1"],
    }.get(output["value"])
