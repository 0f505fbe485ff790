"""SigLIP and SigLIP 2 as Google's big_vision stores them, in `.npz` files.

The image tower is `params/img/...` of a file of both towers, or the whole of a file. Kernels are
laid out as here, (in, out), with the heads in an axis of their own; the blocks may lie in one
tensor each, one after another.

tests/weights/encoder_names_test.py has their names and sends them through a round trip.
"""

import dataclasses

from flax import nnx

from evovit_jax.errors import UserError
from evovit_jax.models.variables import variables
from evovit_jax.weights.layouts import Link, Scheme, reshaped, substitute
from evovit_jax.weights.names import flat
from evovit_jax.weights.repacking import prefixed, stacked

MARK = r"(.*/)?Transformer/encoderblock(_0)?/MlpBlock_0/.*"
PREFIX, PREFIXES = "params/img/", ("img/", "params/", "")
# The text tower, the temperature and the bias of the logits.
TEXT = r"(params/)?(txt/.*|t|b)"
_BLOCK = r"blocks/(\d+)"
_THERE = r"Transformer/encoderblock_\1"
_HEADS = "MultiHeadDotProductAttention_0"
RENAMES = (
    (r"pos_embed", "pos_embedding"),
    (r"patch_embed/proj/(.*)", r"embedding/\1"),
    (r"norm/(.*)", r"Transformer/encoder_norm/\1"),
    (rf"{_BLOCK}/norm1/(.*)", rf"{_THERE}/LayerNorm_0/\2"),
    (rf"{_BLOCK}/norm2/(.*)", rf"{_THERE}/LayerNorm_1/\2"),
    (rf"{_BLOCK}/attn/qkv/(.*)", rf"{_THERE}/{_HEADS}/{{query,key,value}}/\2"),
    (rf"{_BLOCK}/attn/proj/(.*)", rf"{_THERE}/{_HEADS}/out/\2"),
    (rf"{_BLOCK}/mlp/fc([12])/(.*)", lambda m: _dense(_THERE.replace(r"\1", m[1]), m[2], m[3])),
    (r"attn_pool/latent", "MAPHead_0/probe"),
    (r"attn_pool/q/(.*)", rf"MAPHead_0/{_HEADS}/query/\1"),
    (r"attn_pool/kv/(.*)", rf"MAPHead_0/{_HEADS}/{{key,value}}/\1"),
    (r"attn_pool/proj/(.*)", rf"MAPHead_0/{_HEADS}/out/\1"),
    (r"attn_pool/norm/(.*)", r"MAPHead_0/LayerNorm_0/\1"),
    (r"attn_pool/mlp/fc([12])/(.*)", lambda m: _dense("MAPHead_0", m[1], m[2])),
    (r"(.*)", rf"{PREFIX}\1"),
)


def _dense(module: str, number: str, leaf: str) -> str:
    return f"{module}/MlpBlock_0/Dense_{int(number) - 1}/{leaf}"


def scheme(model: nnx.Module) -> Scheme:
    """The names in big_vision.

    Raises:
      UserError: for a network with parts that those files have no names for.
    """
    held = variables(model)
    strange = ("cls_token", "reg_token", "norm_pre", "fc_norm", "reducer/")
    foreign = next((path for path in held if path.startswith(strange) or "/ls" in path), "")
    if foreign or "pos_embed" not in held or model.config.mlp != "mlp":
        raise UserError(f"big_vision's SigLIP files have no place for {foreign or 'this network'}")
    not_here = "" if "attn_pool/latent" in held else rf"|{PREFIX}MAPHead_0/.*"
    return Scheme(
        tuple(_link(model, path, variable.shape) for path, variable in held.items()),
        repackings=(
            prefixed(PREFIX, PREFIXES, "embedding/kernel"),
            stacked("/encoderblock/", "/encoderblock_{}/"),
        ),
        resize={"pos_embed": flat.position_resizer(model)},
        spare=TEXT + not_here,
    )


def _link(model: nnx.Module, path: str, shape: tuple[int, ...]) -> Link:
    config = model.config
    link = Link(path, flat.spelled_out(substitute(path, RENAMES)))
    leaf = path.rpartition("/")[2]
    if path.startswith("head/"):
        return dataclasses.replace(link, class_axis=len(shape) - 1)
    if path == "patch_embed/proj/kernel":
        patch = (config.patch_size, config.patch_size, config.in_channels, config.embed_dim)
        return dataclasses.replace(link, layout=reshaped(patch, shape))
    heads = config.pool_heads if path.startswith("attn_pool/") else config.num_heads
    width = config.embed_dim // heads
    if "/qkv/" in path or path.startswith(("attn_pool/q/", "attn_pool/kv/")):
        count = len(link.names) * heads
        there = (count, width) if leaf == "bias" else (config.embed_dim, count, width)
        layout = reshaped(there, shape)
        return dataclasses.replace(link, layout=layout, axis=len(there) - 2)
    if path.endswith(("attn/proj/kernel", "attn_pool/proj/kernel")):
        layout = reshaped((heads, width, config.embed_dim), shape)
        return dataclasses.replace(link, layout=layout)
    return link
