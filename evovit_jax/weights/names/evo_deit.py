"""Evo-ViT's official DeiT flavour, which keeps the parts of a block's attention apart.

Block i: `norms.i` before attention, `qks.i.qk` (queries and keys), `vs.i.v`, `projs.i`, and
`blocks.i` with the rest. The auxiliary heads `norm_cls` and `head_cls` may be absent. There is no
representative token in that code, so these weights are used without one.

tests/weights/state_dict_test.py sends it through a round trip.
"""

import dataclasses
import re

from flax import nnx

from evovit_jax.weights.layouts import Scheme
from evovit_jax.weights.names import flat

RENAMES = (
    (r"blocks\.(\d+)\.norm1\.(.*)", r"norms.\1.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(.*)", r"projs.\1.\2"),
    (r"blocks\.(\d+)\.attn\.qkv\.(.*)", r"qks.\1.qk.\2"),
)


def scheme(model: nnx.Module) -> Scheme:
    """The official names."""
    links = []
    for link in flat.links(model, RENAMES):
        name = link.names[0]
        if name.startswith("qks."):
            values = name.replace("qks.", "vs.", 1).replace(".qk.", ".v.")
            link = dataclasses.replace(link, names=(name, values), shares=(2, 1))
        if re.fullmatch(flat.CLASS_TOKEN_HEADS, link.path):  # of the training only
            link = dataclasses.replace(link, optional=True)
        links.append(link)
    return Scheme(
        links=tuple(links),
        resize={"pos_embed": flat.position_resizer(model)},
        trained_with={"representative_token": False},
    )


def is_official(model: nnx.Module) -> bool:
    """Whether the official code computes the same as a model: it has no representative token."""
    fields = model.reducer.fields
    return model.config.pool == "avg" and not getattr(fields, "representative_token", True)
