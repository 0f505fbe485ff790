"""PVT v2: both variants."""

from typing import Any

import jax
from flax import nnx

from evovit_jax.models.outputs import Outputs
from evovit_jax.models.pvt_v2 import PVTv2, PVTv2Config
from golden_networks import unfilled
from golden_networks.stage_maps import stage_map

BLOCK_NORMS = "norm1, norm2 and the norm at the end of a stage"
EMBED_NORMS = "after patch embedding and downsampling, and attn.norm"


def network(sizes: dict[str, Any], reducer: dict[str, Any]) -> PVTv2:
    """The network of a file."""
    epsilons = dict(sizes.pop("layer_norm_eps"))
    del sizes["image_size"]  # the network is the same for all
    config = PVTv2Config(
        **{name: sizes.pop(name) for name in ("num_classes", "linear", "qkv_bias")},
        **{name: tuple(sizes.pop(name)) for name in ("num_heads", "sr_ratios", "mlp_ratios")},
        embed_dim=tuple(sizes.pop("embed_dims")),
        depth=tuple(sizes.pop("depths")),
        norm_eps=epsilons.pop(BLOCK_NORMS),
        embed_norm_eps=epsilons.pop(EMBED_NORMS),
    )
    assert not epsilons, f"epsilons that nobody reads: {sorted(epsilons)}"
    assert sizes.pop("activation") == "gelu_erf"
    assert sizes.pop("head") == "mean of the last stage after its norm, linear"
    return unfilled(lambda: PVTv2(config, reducer, rngs=nnx.Rngs(0)))


def value(output: dict[str, Any], logits: jax.Array, out: Outputs) -> jax.Array | None:
    """The map of a stage after its norm, or what every family has."""
    del logits
    words = output["value"]
    assert " stage" not in words or "after its norm" in words, words
    return stage_map(words, out)
