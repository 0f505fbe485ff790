"""CLIP's image tower as OpenAI and OpenCLIP name it, and the Perception Encoder, which does alike.

Files hold the whole of CLIP, the image tower under `visual.`, or that tower alone.

tests/weights/encoder_names_test.py has their names and sends them through a round trip.
"""

import dataclasses

from flax import nnx

from evovit_jax.errors import UserError
from evovit_jax.models.variables import variables
from evovit_jax.weights.layouts import PLAIN, ROWS, VECTOR, Link, Scheme
from evovit_jax.weights.names import flat
from evovit_jax.weights.repacking import prefixed, split, without_bias

_BLOCK = r"(transformer\.resblocks\.\d+)"
RENAMES = (
    (r"cls_token", "class_embedding"),
    (r"pos_embed", "positional_embedding"),
    (r"patch_embed\.proj\.(.*)", r"conv1.\1"),
    (r"norm_pre\.(.*)", r"ln_pre.\1"),
    (r"norm\.(.*)", r"ln_post.\1"),
    (r"head\.weight", "proj"),
    (r"blocks\.(.*)", r"transformer.resblocks.\1"),
    (rf"{_BLOCK}\.norm([12])\.(.*)", r"\1.ln_\2.\3"),
    (rf"{_BLOCK}\.ls([12])\.(.*)", r"\1.ls_\2.\3"),
    (rf"{_BLOCK}\.attn\.qkv\.(.*)", r"\1.attn.in_proj_\2"),
    (rf"{_BLOCK}\.attn\.proj\.(.*)", r"\1.attn.out_proj.\2"),
    (r"attn_pool\.latent", "attn_pool.probe"),
    (r"attn_pool\.(q|kv)\.(.*)", r"attn_pool.attn.in_proj_\2[\1]"),
    (r"attn_pool\.proj\.(.*)", r"attn_pool.attn.out_proj.\1"),
    (r"attn_pool\.norm\.(.*)", r"attn_pool.layernorm.\1"),
    (r"(.*)\.mlp\.fc1\.(.*)", r"\1.mlp.c_fc.\2"),
    (r"(.*)\.mlp\.fc2\.(.*)", r"\1.mlp.c_proj.\2"),
    (r"(.*)", r"visual.\1"),
)
LAYOUTS = {"cls_token": VECTOR, "pos_embed": ROWS, "head/kernel": PLAIN}
# The text tower, the temperature, and what OpenAI's archives say of themselves.
TEXT = (
    r"text\..*|transformer\..*|token_embedding\..*|ln_final\..*|positional_embedding|"
    r"text_projection(\..*)?|attn_mask|logit_scale|logit_bias|"
    r"input_resolution|context_length|vocab_size"
)
PROJECTION = "visual.proj"
NO_PROJECTION = {
    "head/.*": "a file without a projection is for a network without a head: --num_classes=0"
}


def scheme(model: nnx.Module) -> Scheme:
    """The names of the image tower.

    Raises:
      UserError: for a network with parts that such a tower has not.
    """
    links = tuple(_link(link) for link in flat.links(model, RENAMES, LAYOUTS))
    held = variables(model)
    foreign = [path for path in held if path.startswith(("reg_token", "fc_norm", "dist_token"))]
    if foreign or "blocks/0/mlp/fc1/kernel" not in held:
        raise UserError("CLIP's names are not for a network with registers or a gated feed-forward")
    repackings = [prefixed("visual.", [""], "conv1.weight")]
    if "attn_pool/latent" in held:
        name = "visual.attn_pool.attn.in_proj_{}"
        whole = [name.format(leaf) for leaf in ("weight", "bias")]
        repackings += [split(name, [f"{name}[q]", f"{name}[kv]"], (1, 2)) for name in whole]
    if "head/bias" in held:
        repackings.append(without_bias("visual.head.bias", PROJECTION, 1))
    return Scheme(
        links,
        repackings=tuple(repackings),
        resize={"pos_embed": flat.rows_resizer(model)},
        spare=TEXT if "head/kernel" in held else f"{TEXT}|{PROJECTION}",
        hints=NO_PROJECTION,
    )


def _link(link: Link) -> Link:
    return dataclasses.replace(link, class_axis=1) if link.path == "head/kernel" else link
