"""ViT as Google's `.npz` files have it (google-research/vision_transformer).

Kernels are laid out as here, (in, out), with the heads in an axis of their own; query, key and
value are apart.

tests/weights/state_dict_test.py sends it through a round trip.
"""

import dataclasses

from flax import nnx

from evovit_jax.errors import UserError
from evovit_jax.models.variables import variables
from evovit_jax.weights.layouts import Link, Renames, Scheme, reshaped, substitute
from evovit_jax.weights.names import flat

_BLOCK = r"blocks/(\d+)"
_THERE = r"Transformer/encoderblock_\1"
_ATTENTION = "MultiHeadDotProductAttention_1"
RENAMES = (
    (r"cls_token", "cls"),
    (r"pos_embed", "Transformer/posembed_input/pos_embedding"),
    (r"patch_embed/proj/(.*)", r"embedding/\1"),
    (r"norm/(.*)", r"Transformer/encoder_norm/\1"),
    (rf"{_BLOCK}/norm1/(.*)", rf"{_THERE}/LayerNorm_0/\2"),
    (rf"{_BLOCK}/norm2/(.*)", rf"{_THERE}/LayerNorm_2/\2"),
    (rf"{_BLOCK}/mlp/fc1/(.*)", rf"{_THERE}/MlpBlock_3/Dense_0/\2"),
    (rf"{_BLOCK}/mlp/fc2/(.*)", rf"{_THERE}/MlpBlock_3/Dense_1/\2"),
    (rf"{_BLOCK}/attn/proj/(.*)", rf"{_THERE}/{_ATTENTION}/out/\2"),
    (rf"{_BLOCK}/attn/qkv/(.*)", rf"{_THERE}/{_ATTENTION}/query/\2"),
)


def scheme(model: nnx.Module) -> Scheme:
    """Google's names.

    Raises:
      UserError: for a model with parts that those files have no names for.
    """
    links = []
    for path, variable in variables(model).items():
        made = link(model, path, variable.shape)
        if "dist" in path or path.startswith("reducer/") or "/ls" in path or "_cls/" in path:
            raise UserError(f"Google's ViT files have no place for {path}")
        links.append(made)
    return Scheme(tuple(links), resize={"pos_embed": flat.position_resizer(model)})


def link(model: nnx.Module, path: str, shape: tuple[int, ...], renames: Renames = RENAMES) -> Link:
    """The link of a variable of a flat vision transformer whose heads lie in an axis there."""
    config = model.config
    heads = config.num_heads
    made = Link(path, (substitute(path, renames),))
    leaf = path.rpartition("/")[2]
    if path.startswith("head/"):
        return dataclasses.replace(made, class_axis=len(shape) - 1)
    if path == "patch_embed/proj/kernel":
        patch = (config.patch_size, config.patch_size, config.in_channels, config.embed_dim)
        return dataclasses.replace(made, layout=reshaped(patch, shape))
    if "/attn/qkv/" in path:
        names = tuple(
            made.names[0].replace("/query/", f"/{part}/") for part in ("query", "key", "value")
        )
        width = config.embed_dim // heads
        there = (3 * heads, width) if leaf == "bias" else (config.embed_dim, 3 * heads, width)
        return Link(path, names, reshaped(there, shape), axis=len(there) - 2)
    if path.endswith("attn/proj/kernel"):
        there = (heads, config.embed_dim // heads, config.embed_dim)
        return dataclasses.replace(made, layout=reshaped(there, shape))
    return made
