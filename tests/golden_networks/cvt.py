"""CvT."""

from typing import Any

import jax
from flax import nnx

from evovit_jax.models.cvt import CvT, CvTConfig
from evovit_jax.models.outputs import Outputs
from golden_networks import unfilled
from golden_networks.stage_maps import stage_map


def network(sizes: dict[str, Any], reducer: dict[str, Any]) -> CvT:
    """The network of a file."""
    lists = ("patch_size", "patch_stride", "patch_padding", "embed_dim", "num_heads", "depth")
    del sizes["image_size"]  # the network is the same for all
    config = CvTConfig(
        **{name: sizes.pop(name) for name in ("mlp_ratio", "qkv_bias")},
        **{name: tuple(sizes.pop(name)) for name in (*lists, "class_token")},
        num_classes=sizes.pop("num_classes"),
        qkv_kernel=sizes.pop("kernel_qkv"),
        kv_stride=sizes.pop("stride_kv"),
        norm_eps=sizes.pop("layer_norm_eps"),
    )
    head = "norm of the class token, linear"
    if not config.class_token[-1]:
        head = "mean of the patches after the norm, linear"
    fixed = {
        "padding_qkv": config.qkv_kernel // 2,
        "stride_q": 1,
        "batch_norm_eps": 1e-5,
        "activation": "quick_gelu",
        "attention_scale": "embed_dim ** -0.5 of the stage, not of the head",
        "head": head,
    }
    assert {name: sizes.pop(name) for name in fixed} == fixed
    return unfilled(lambda: CvT(config, reducer, rngs=nnx.Rngs(0)))


def value(output: dict[str, Any], logits: jax.Array, out: Outputs) -> jax.Array | None:
    """The patches of a stage before the last norm, or what every family has."""
    del logits
    words = output["value"]
    assert "after" not in words, words
    return stage_map(words, out)
