"""Swin Transformers, dense and sparsified: two descriptions of the same network."""

from typing import Any

import jax
from flax import nnx

from evovit_jax.models.outputs import Outputs
from evovit_jax.models.swin import Swin, SwinConfig
from golden_networks import unfilled
from golden_networks.spatial import spatial_value
from golden_networks.stage_maps import stage_map

# What cannot be anything else here; a file says some of it.
FIXED = {
    "activation": ("gelu_erf",),
    "gelu": ("erf",),
    "shift": (
        "window // 2 in odd blocks",
        "window_size // 2 in odd blocks, none where the map is not larger than the window (the "
        "window is then the map)",
    ),
    "small_maps": (
        "on each axis a window larger than the map becomes the map, and where the map is no larger "
        "than the window there is no shift on that axis; the table of biases then has that "
        "window's size",
    ),
    "padding": (
        "zeros after norm1 and after the cyclic shift, to multiples of the window at the end of "
        "rows and columns; padded places are keys as others (only -100 between regions of a "
        "shifted map)",
    ),
    "downsampling": (
        "at the start of stages 1..: odd maps padded by zeros; order (0,0), (1,0), (0,1), (1,1) of "
        "(row, column); norm, linear without bias",
    ),
    "head": ("norm, global mean, linear",),
    "patch_norm": (True,),
    "absolute_positions": (False,),
    "pool": ("avg",),
}


def network(sizes: dict[str, Any], reducer: dict[str, Any]) -> Swin:
    """The network of a file."""
    for name, known in FIXED.items():
        assert sizes.pop(name, known[0]) in known, name
    size, dim, depth = sizes.pop("image_size"), sizes.pop("embed_dim"), tuple(sizes.pop("depths"))
    names = ("patch_size", "window_size", "mlp_ratio", "qkv_bias", "num_classes")
    config = SwinConfig(
        image_size=size if isinstance(size, int) else tuple(size),
        embed_dim=tuple(dim * 2**stage for stage in range(len(depth))),
        depth=depth,
        num_heads=tuple(sizes.pop("num_heads")),
        **{name: sizes.pop(name) for name in names},
        norm_eps=sizes.pop("layer_norm_eps"),
    )
    return unfilled(lambda: Swin(config, reducer, rngs=nnx.Rngs(0)))


def value(output: dict[str, Any], logits: jax.Array, out: Outputs) -> jax.Array | None:
    """The map of a stage or after the last norm, or a part of a sparsified pass."""
    del logits
    found = spatial_value(output, out)
    if found is None or found.ndim != 3 or not output["value"].endswith("NHWC"):
        return found
    return found.reshape(stage_map("map of the last stage, NHWC", out).shape)
