"""The networks of the flat encoders' golden files, of the facts that their meta states."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from evovit_jax.models.encoder import Encoder, EncoderConfig
from evovit_jax.models.outputs import Outputs

ACTIVATIONS = {"gelu_erf": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
MLPS = {
    "fc1, activation, fc2": {"mlp": "mlp"},
    "SwiGLU in one matrix": {"mlp": "packed_swiglu"},
    "SwiGLU in two matrices": {"mlp": "swiglu"},
}
POSITIONS = {
    "learned, added to class token and patches": {"class_position": True},
    "learned, added to patches only": {"class_position": False},
    "learned, added to patches": {"class_position": False},
    None: {"learned_positions": False},
}
# The longer beginnings first.
POOLS = {
    "class token after the last norm": {"pool": "token"},
    "mean of the patches after the last norm": {"pool": "avg", "fc_norm": False},
    "mean of the tokens after the last norm": {"pool": "avg", "fc_norm": False},
    "mean of the patches of the last block, then fc_norm": {"pool": "avg", "fc_norm": True},
    "map: attention of one learned query to all tokens after the last norm": {"pool": "map"},
}
QKV_BIASES = {
    True: {"qkv_bias": True},
    False: {"qkv_bias": False},
    "query and value only (q_bias, v_bias)": {"qkv_bias": True, "key_bias": False},
}
RESIZINGS = {
    "facebookresearch/dinov2 without registers": "dinov2",
    "positions to another grid: bicubic with antialias": "antialias",
}


def begins(value: str | None, known: dict) -> Any:
    """What stands in `known` for the beginning that a text has."""
    if value is None:
        return known[None]
    found = [meaning for words, meaning in known.items() if words and value.startswith(words)]
    assert found, f"nobody knows {value!r}"
    return found[0]


def network(
    sizes: dict[str, Any],
    reducer: dict[str, Any],
    activation: str | None = None,
    resizing: str | None = None,
) -> Encoder:
    """The network of a file, of `sizes` out of which everything is taken."""
    names = ("image_size", "patch_size", "embed_dim", "depth", "num_heads", "num_classes")
    fields = {name: sizes.pop(name) for name in (*names, "class_token", "pre_norm", "patch_bias")}
    fields |= {
        "reg_tokens": sizes.pop("register_tokens"),
        "norm_eps": sizes.pop("layer_norm_eps"),
        "init_values": 1e-5 if sizes.pop("layer_scale") else None,
        "resizing": "antialias" if resizing is None else begins(resizing, RESIZINGS),
    }
    fields |= begins(sizes.pop("position_embedding"), POSITIONS)
    fields |= QKV_BIASES[sizes.pop("qkv_bias")]
    fields |= begins(sizes.pop("pool"), POOLS)
    fields |= feed_forward(sizes, activation)
    fields |= rotary(sizes.pop("rotary"), fields)
    fields |= {name: sizes.pop(name) for name in ("map_heads", "map_mlp_ratio") if name in sizes}
    assert sizes.pop("head", "linear").startswith("linear")
    config = EncoderConfig(**fields)
    assert config.mlp_width == sizes.pop("mlp_hidden")
    return Encoder(config, reducer, rngs=nnx.Rngs(0))


def feed_forward(sizes: dict[str, Any], activation: str | None) -> dict[str, Any]:
    """The kind of the MLP, its width, its activation."""
    own, described = sizes.pop("activation"), sizes.pop("mlp")
    fields = dict(begins(described, MLPS)) | {"mlp_ratio": float(sizes.pop("mlp_ratio"))}
    if fields["mlp"] == "mlp":
        fields["activation"] = begins(activation or own, ACTIVATIONS)
    else:
        assert own == "silu"
        assert activation is None
    multiple = re.search(r"rounded up to a multiple of (\d+)", described)
    if multiple:
        fields["mlp_multiple"] = int(multiple[1])
    return fields


def rotary(described: dict[str, Any] | None, fields: dict[str, Any]) -> dict[str, Any]:
    """The rotary positions."""
    if described is None:
        return {}
    kind = {"dinov3": "dinov3", "axial": "axial"}[described["kind"]]
    assert described["rotate_half"] == (kind == "dinov3")
    found = {"rope": kind, "rope_temperature": float(described["temperature"])}
    if "reference_grid" in described:
        rows, columns = described["reference_grid"]
        assert rows == columns, "a reference grid is square here"
        found["rope_reference"] = rows
    return found


def value(output: dict[str, Any], logits: jax.Array, out: Outputs) -> jax.Array | None:
    """The part of a pass that an output is."""
    words, prefix = output.get("value", ""), out.prefix
    if words.startswith("pooled features"):
        return out.pooled
    if words.startswith("all tokens after the last norm"):
        return out.features
    if words.startswith("class token after the last norm"):
        return out.features[:, 0]
    if words.startswith("mean of the tokens after the last norm"):
        return out.features[:, prefix:].mean(axis=1)
    if words.startswith("the head on the pooled features"):
        return logits
    if "which patches are left" in words:
        held = np.asarray(out.token_maps[-1][:, prefix:]) >= 0
        return jnp.stack([np.flatnonzero(image) for image in held])
    return None
