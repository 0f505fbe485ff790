"""DINOv2, DINOv3 and MAE as their own code names them (facebookresearch/dinov2, dinov3 and mae).

The names are timm's but for registers, gated feed-forwards, and what only training needs.

tests/weights/encoder_names_test.py has their names and sends them through a round trip.
"""

import numpy as np
from flax import nnx

from evovit_jax.models.variables import variables
from evovit_jax.weights.layouts import Scheme, Tensors
from evovit_jax.weights.names import flat
from evovit_jax.weights.repacking import folded_class_position, renamed, split, written, zeros

GATED = (
    (r"(.*)\.mlp\.fc1\.(.*)", r"\1.mlp.w12.\2"),
    (r"(.*)\.mlp\.fc2\.(.*)", r"\1.mlp.w3.\2"),
)
GATED_APART = (
    (r"(.*)\.mlp\.fc1_g\.(.*)", r"\1.mlp.w1.\2"),
    (r"(.*)\.mlp\.fc1_x\.(.*)", r"\1.mlp.w2.\2"),
    (r"(.*)\.mlp\.fc2\.(.*)", r"\1.mlp.w3.\2"),
)
BIASES = ((r"(.*\.qkv)\.([qv])_bias", r"\1.bias[\2]"),)
NO_BIAS = "take the model whose name has _qkvb"
# A tensor that timm names otherwise, or has not.
MARK = r"(register|storage)_tokens|mask_token|blocks\.(\d+\.mlp\.w12|\d+\.\d+\.norm1)\.weight"
NOT_NEEDED = (
    r"mask_token|decoder_.*|rope_embed\.periods|local_cls_norm\..*|.*\.attn\.qkv\.bias_mask"
)


def scheme(model: nnx.Module) -> Scheme:
    """The names of the network's own code."""
    return _dinov3(model) if model.config.rope == "dinov3" else _dinov2(model)


def _dinov2(model: nnx.Module) -> Scheme:
    held = variables(model)
    renames = ((r"reg_token", "register_tokens"),)
    if model.config.mlp == "packed_swiglu":
        renames += GATED
    # Training keeps blocks in chunks: blocks.CHUNK.NUMBER.
    repackings = [renamed((r"blocks\.\d+\.(\d+\..*)", r"blocks.\1"))]
    if "reg_token" in held:
        repackings.append(folded_class_position("cls_token", "pos_embed"))
    repackings.append(written({"mask_token": np.zeros((1, model.config.embed_dim), np.float32)}))
    return Scheme(
        flat.links(model, renames),
        repackings=tuple(repackings),
        resize={"pos_embed": flat.position_resizer(model)},
        spare=NOT_NEEDED,
    )


def _dinov3(model: nnx.Module) -> Scheme:
    renames = ((r"reg_token", "storage_tokens"), *BIASES)
    if model.config.mlp == "swiglu":
        renames += GATED_APART
    names = [f"blocks.{i}.attn.qkv.bias" for i in range(model.config.depth)]
    # Keys have no bias: their third is masked there.
    repackings = [split(name, [f"{name}[q]", None, f"{name}[v]"], (1, 1, 1)) for name in names]
    if "blocks/0/attn/qkv/q_bias" not in variables(model):
        biases = [f"{name}[{part}]" for name in names for part in "qv"]
        repackings.append(zeros(biases, model.config.embed_dim, NO_BIAS))
    return Scheme(
        flat.links(model, renames),
        repackings=(*repackings, written(_constants(model, names))),
        spare=NOT_NEEDED,
    )


def _constants(model: nnx.Module, biases: list[str]) -> Tensors:
    """What the code of DINOv3 keeps beside its weights, and expects in a file."""
    config = model.config
    quarter = config.embed_dim // config.num_heads // 4
    turns = np.float32(config.temperature ** (np.arange(quarter) / quarter))
    mask = np.repeat(np.float32([1, 0, 1]), config.embed_dim)
    return {
        "mask_token": np.zeros((1, config.embed_dim), np.float32),
        "rope_embed.periods": turns,
        **{f"{name}_mask": mask for name in biases},
    }
