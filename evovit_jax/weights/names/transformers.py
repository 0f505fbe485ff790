"""The vision transformers of Hugging Face's transformers, by its names.

Its classes name the same things differently, so there is one row here for each architecture. A file
holds the network alone (Dinov2Model), with a head (ViTForImageClassification), or beside a text
tower (CLIPModel).

tests/weights/encoder_names_test.py has their names and sends them through a round trip.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from flax import nnx

from evovit_jax.errors import UserError
from evovit_jax.models.variables import variables
from evovit_jax.weights.layouts import ROWS, VECTOR, Layout, Repacking, Scheme, Tensors
from evovit_jax.weights.names import flat
from evovit_jax.weights.names.facebook import NO_BIAS
from evovit_jax.weights.repacking import (
    folded_class_position,
    prefixed,
    renamed,
    split,
    without_bias,
    written,
    zeros,
)

MARK = r"(\w+\.)*embeddings\.patch_embedding(s|s\.projection)?\.weight"
# Text towers, temperatures, what only training needs, and the pooling of ViTModel, which is no part
# of the published network.
SPARE = (
    r"text_model\..*|text_projection\..*|logit_scale|logit_bias|decoder\..*|classifier\..*|"
    r"(\w+\.)*(embeddings\.(mask_token|position_ids)|pooler\.dense\.(weight|bias))"
)
# In no file: the heads on DINOv2, DINOv3 and SigLIP there do not see what ours sees.
OWN_HEAD = "own_head"
NO_HEAD = "a file without such a head is for a network without one: --num_classes=0"


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How transformers stores a kind of network.

    Attributes:
      renames: from timm's names.
      prefix: what names begin with in the files that are written.
      prefixes: what else they may begin with.
      head: the name of the head, which has no prefix; `OWN_HEAD` where what transformers puts on
        such a network is another than ours.
      mask_rank: dimensions of the mask token that files have; 0 for none.
      layouts: as in `flat.links`.
      others: names of the same that some of its versions have, by (pattern, replacement).
    """

    renames: tuple[tuple[str, str], ...]
    prefix: str
    prefixes: tuple[str, ...]
    head: str = "classifier"
    mask_rank: int = 0
    layouts: Mapping[str, Layout] = dataclasses.field(default_factory=dict)
    others: tuple[tuple[str, str], ...] = ()


_TOKENS = (
    (r"cls_token", "embeddings.cls_token"),
    (r"dist_token", "embeddings.distillation_token"),
    (r"reg_token", "embeddings.register_tokens"),
    (r"pos_embed", "embeddings.position_embeddings"),
)
_ATTENTION = (
    (r"blocks\.(\d+)\.attn\.qkv\.(.*)", r"blocks.\1.attention.attention.{query,key,value}.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(.*)", r"blocks.\1.attention.output.dense.\2"),
)
_SCALES = ((r"blocks\.(\d+)\.ls([12])\.gamma", r"blocks.\1.layer_scale\2.lambda1"),)
# What version 5 of transformers calls them in memory; its files have the older names.
_NEWER = tuple(
    (rf"(.*\.layer\.\d+\.attention)\.{new}\.(.*)", rf"\1.{old}.\2")
    for new, old in {
        "q_proj": "attention.query",
        "k_proj": "attention.key",
        "v_proj": "attention.value",
        "o_proj": "output.dense",
    }.items()
)
VIT = Architecture(
    renames=(
        *_TOKENS,
        *_ATTENTION,
        (r"patch_embed\.proj\.(.*)", r"embeddings.patch_embeddings.projection.\1"),
        (r"norm\.(.*)", r"layernorm.\1"),
        (r"blocks\.(\d+)\.norm1\.(.*)", r"blocks.\1.layernorm_before.\2"),
        (r"blocks\.(\d+)\.norm2\.(.*)", r"blocks.\1.layernorm_after.\2"),
        (r"blocks\.(\d+)\.mlp\.fc1\.(.*)", r"blocks.\1.intermediate.dense.\2"),
        (r"blocks\.(\d+)\.mlp\.fc2\.(.*)", r"blocks.\1.output.dense.\2"),
        (r"blocks\.(.*)", r"encoder.layer.\1"),
    ),
    prefix="vit.",
    prefixes=("deit.", ""),
    others=(
        (r"(\w+\.)?layers\.(\d+\..*)", r"\1encoder.layer.\2"),
        *_NEWER,
        (r"(.*encoder\.layer\.\d+)\.mlp\.fc1\.(.*)", r"\1.intermediate.dense.\2"),
        (r"(.*encoder\.layer\.\d+)\.mlp\.fc2\.(.*)", r"\1.output.dense.\2"),
    ),
)
DISTILLED = dataclasses.replace(
    VIT,
    renames=(*VIT.renames, (r"head_dist\.(.*)", r"distillation_classifier.\1")),
    prefix="deit.",
    prefixes=("",),
    head="cls_classifier",
)
DINOV2 = Architecture(
    renames=(
        *_TOKENS,
        *_ATTENTION,
        *_SCALES,
        (r"patch_embed\.proj\.(.*)", r"embeddings.patch_embeddings.projection.\1"),
        (r"norm\.(.*)", r"layernorm.\1"),
        (r"blocks\.(.*)", r"encoder.layer.\1"),
    ),
    prefix="",
    prefixes=("dinov2.", "dinov2_with_registers."),
    head=OWN_HEAD,
    mask_rank=2,
    others=_NEWER,
)
DINOV2_GATED = dataclasses.replace(
    DINOV2,
    renames=(
        (r"(blocks\.\d+\.mlp)\.fc1\.(.*)", r"\1.weights_in.\2"),
        (r"(blocks\.\d+\.mlp)\.fc2\.(.*)", r"\1.weights_out.\2"),
        *DINOV2.renames,
    ),
)
DINOV3 = Architecture(
    renames=(
        *_TOKENS,
        *_SCALES,
        (r"blocks\.(\d+)\.attn\.qkv\.weight", r"blocks.\1.attention.{q,k,v}_proj.weight"),
        (r"blocks\.(\d+)\.attn\.qkv\.([qv])_bias", r"blocks.\1.attention.\2_proj.bias"),
        (r"blocks\.(\d+)\.attn\.proj\.(.*)", r"blocks.\1.attention.o_proj.\2"),
        (r"(blocks\.\d+\.mlp)\.fc1_g\.(.*)", r"\1.gate_proj.\2"),
        (r"(blocks\.\d+\.mlp)\.fc1(_x)?\.(.*)", r"\1.up_proj.\3"),
        (r"(blocks\.\d+\.mlp)\.fc2\.(.*)", r"\1.down_proj.\2"),
        (r"patch_embed\.proj\.(.*)", r"embeddings.patch_embeddings.\1"),
        (r"blocks\.(.*)", r"layer.\1"),
    ),
    prefix="",
    prefixes=("dinov3_vit.",),
    head=OWN_HEAD,
    mask_rank=3,
    others=((r"model\.(layer\..*)", r"\1"),),
)
CLIP = Architecture(
    renames=(
        (r"cls_token", "embeddings.class_embedding"),
        (r"pos_embed", "embeddings.position_embedding.weight"),
        (r"patch_embed\.proj\.(.*)", r"embeddings.patch_embedding.\1"),
        (r"norm_pre\.(.*)", r"pre_layrnorm.\1"),
        (r"norm\.(.*)", r"post_layernorm.\1"),
        (r"blocks\.(\d+)\.norm([12])\.(.*)", r"blocks.\1.layer_norm\2.\3"),
        (r"blocks\.(\d+)\.attn\.qkv\.(.*)", r"blocks.\1.self_attn.{q,k,v}_proj.\2"),
        (r"blocks\.(\d+)\.attn\.proj\.(.*)", r"blocks.\1.self_attn.out_proj.\2"),
        (r"blocks\.(.*)", r"encoder.layers.\1"),
    ),
    prefix="vision_model.",
    prefixes=("",),
    head="visual_projection",
    layouts={"cls_token": VECTOR, "pos_embed": ROWS},
)
SIGLIP = dataclasses.replace(
    CLIP,
    renames=(
        (r"attn_pool\.latent", "head.probe"),
        (r"attn_pool\.(q|kv)\.(.*)", r"head.attention.in_proj_\2[\1]"),
        (r"attn_pool\.proj\.(.*)", r"head.attention.out_proj.\1"),
        (r"attn_pool\.norm\.(.*)", r"head.layernorm.\1"),
        (r"attn_pool\.mlp\.(.*)", r"head.mlp.\1"),
        *CLIP.renames,
    ),
    head=OWN_HEAD,
)


def architecture_of(model: nnx.Module) -> Architecture:
    """The row of a network.

    Raises:
      UserError: transformers does not have such a network.
    """
    held, config = variables(model), model.config
    rope = getattr(config, "rope", "none")
    if rope == "axial" or "fc_norm/scale" in held or config.skip_lam != 1:
        raise UserError("transformers has no network of that kind; try the family timm")
    if rope == "dinov3":
        return DINOV3
    if "cls_token" not in held:
        return SIGLIP
    if "norm_pre/scale" in held:
        return CLIP
    if "blocks/0/ls1/gamma" in held:
        gated = getattr(config, "mlp", "mlp") == "packed_swiglu"
        return DINOV2_GATED if gated else DINOV2
    return DISTILLED if config.distilled else VIT


def scheme(model: nnx.Module) -> Scheme:
    """The names in transformers.

    Raises:
      UserError: it does not have such a network.
    """
    this = architecture_of(model)
    renames = (
        *this.renames,
        (r"head\.(weight|bias)", rf"{this.head}.\1"),
        (rf"(?!{this.head}\.|distillation_classifier\.)(.*)", rf"{this.prefix}\1"),
    )
    by_rows = this.layouts.get("pos_embed") is ROWS
    links = flat.links(model, renames, this.layouts)
    held = variables(model)
    not_here = "" if "head/kernel" in held else rf"|{this.head}\.(weight|bias)"
    if this is SIGLIP and "attn_pool/latent" not in held:
        not_here += rf"|{this.prefix}head\..*"
    return Scheme(
        links,
        repackings=tuple(_repackings(model, this, {link.path: link.names for link in links})),
        resize={"pos_embed": (flat.rows_resizer if by_rows else flat.position_resizer)(model)},
        spare=SPARE + not_here,
        hints={"head/.*": NO_HEAD},
    )


def _repackings(
    model: nnx.Module, this: Architecture, names: Mapping[str, tuple[str, ...]]
) -> list[Repacking]:
    """What is beside renaming, by the names of each variable's tensors."""
    width, depth = model.config.embed_dim, model.config.depth
    found = [renamed(*this.others)] if this.others else []
    anchor = names["patch_embed/proj/kernel"][0].removeprefix(this.prefix)
    found.append(prefixed(this.prefix, this.prefixes, anchor))
    if "reg_token" in names and "pos_embed" in names:
        found.append(folded_class_position(names["cls_token"][0], names["pos_embed"][0]))
    if "attn_pool/latent" in names:
        wholes = [f"{this.prefix}head.attention.in_proj_{leaf}" for leaf in ("weight", "bias")]
        found += [split(name, [f"{name}[q]", f"{name}[kv]"], (1, 2)) for name in wholes]
    if "head/bias" in names and this.head == CLIP.head:
        found.append(without_bias(names["head/bias"][0], names["head/kernel"][0], 0))
    if this is DINOV3 and "blocks/0/attn/qkv/q_bias" not in names:
        biases = [f"layer.{i}.attention.{part}_proj.bias" for i in range(depth) for part in "qv"]
        found.append(zeros(biases, width, NO_BIAS))
    if this.mask_rank:
        shape = (*(1,) * (this.mask_rank - 1), width)
        found.append(written({"embeddings.mask_token": np.zeros(shape, np.float32)}))
    if this.head == OWN_HEAD and "head/kernel" in names:
        found.append(Repacking(pack=_refused))
    return found


def _refused(tensors: Tensors) -> Tensors:
    del tensors
    raise UserError(
        "transformers has no such head on this network; write it with --family=timm, or without "
        "a head (--num_classes=0)"
    )
