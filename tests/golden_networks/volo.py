"""VOLO: timm's network, the map after its outlookers, and its tokens."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from evovit_jax.models import volo
from evovit_jax.models.outputs import Outputs

# What cannot be anything else here.
FIXED = {
    "activation": "gelu_erf",
    "batch_norm_eps": 1e-5,
    "outlook": {
        "kernel": volo.WINDOW,
        "stride": volo.STRIDE,
        "padding": volo.WINDOW // 2,
    },
    "post_layers": ["class attention"] * volo.CLASS_BLOCKS,
    "positions": "added after the 2x2 downsampling that follows the outlookers",
    "head": "norm; head of the class token + 0.5 * max over patches of aux_head",
}
NAMES = ("patch_size", "stem_hidden_dim", "mlp_ratio", "qkv_bias", "num_classes")
LISTS = ("layers", "embed_dims", "num_heads")


def network(sizes: dict[str, Any], reducer: dict[str, Any]) -> volo.VOLO:
    """The network of a file; (height, width) as the image size makes positions that are a grid."""
    assert {name: sizes.pop(name) for name in FIXED} == FIXED
    side = sizes.pop("image_size")
    height, width = side if isinstance(side, list) else (side, side)
    config = volo.VOLOConfig(
        image_size=height,
        **{name: sizes.pop(name) for name in NAMES},
        **{name: tuple(sizes.pop(name)) for name in LISTS},
        norm_eps=sizes.pop("layer_norm_eps"),
    )
    model = volo.VOLO(config, reducer, rngs=nnx.Rngs(0))
    cell = config.patch_size * volo.POOLING
    model.grid = (height // cell, width // cell)
    model.pos_embed.set_value(jnp.zeros((1, *model.grid, config.embed_dims[-1])))
    return model


def value(output: dict[str, Any], logits: jax.Array, out: Outputs) -> jax.Array | None:
    """What an output is; None for what all networks have."""
    del logits
    return {
        "after the outlookers, NHWC": out.aux["stage0"],
        "all tokens after the last norm, class token first": out.features,
    }.get(output["value"])
