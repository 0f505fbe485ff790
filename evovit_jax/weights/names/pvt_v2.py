"""PVT v2 under timm's names, the official ones, and those of Hugging Face's transformers.

tests/weights/state_dict_test.py sends it through a round trip.
"""

import dataclasses
import functools
import re

from flax import nnx

from evovit_jax.weights.families import Family
from evovit_jax.weights.layouts import Scheme, renamed_scheme

TIMM_RENAMES = (
    (r"stages\.0\.patch_embed\.(.*)", r"patch_embed.\1"),
    (r"(stages\.\d+)\.patch_embed\.(.*)", r"\1.downsample.\2"),
)


def _counted_from_one(match: re.Match) -> str:
    stage, part, rest = match.groups()
    return f"{part.removesuffix('s')}{int(stage) + 1}.{rest}"


OFFICIAL_RENAMES = (
    (r"(.*\.mlp\.dwconv)\.(.*)", r"\1.dwconv.\2"),
    (r"stages\.(\d+)\.(patch_embed|blocks|norm)\.(.*)", _counted_from_one),
)
TRANSFORMERS_RENAMES = (
    (r"head\.(.*)", r"classifier.\1"),
    (r"stages\.(.*)", r"pvt_v2.encoder.layers.\1"),
    (r"(.*)\.patch_embed\.(.*)", r"\1.patch_embedding.\2"),
    (r"(.*)\.attn\.(.*)", r"\1.attention.\2"),
    (r"(.*)\.q\.(.*)", r"\1.query.\2"),
    (r"(.*)\.sr\.(.*)", r"\1.spatial_reduction.\2"),
    (r"(.*)\.norm\.(.*)", r"\1.layer_norm.\2"),
    (r"(.*)\.norm(\d)\.(.*)", r"\1.layer_norm_\2.\3"),
    (r"(.*)\.mlp\.fc(\d)\.(.*)", r"\1.mlp.dense\2.\3"),
    (r"(.*\.mlp\.dwconv)\.(.*)", r"\1.dwconv.\2"),
)


def transformers_scheme(model: nnx.Module) -> Scheme:
    """The names of transformers, where keys and values are two maps."""
    scheme = renamed_scheme(model, TRANSFORMERS_RENAMES)
    links = []
    for link in scheme.links:
        (name,) = link.names
        if ".kv." in name:
            parts = tuple(name.replace(".kv.", f".{part}.") for part in ("key", "value"))
            link = dataclasses.replace(link, names=parts)
        links.append(link)
    return dataclasses.replace(scheme, links=tuple(links))


FAMILIES = (
    Family("transformers", transformers_scheme, r"pvt_v2\.encoder\..*"),
    Family("pvt", functools.partial(renamed_scheme, renames=OFFICIAL_RENAMES), r"block1\.0\..*"),
    Family("timm", functools.partial(renamed_scheme, renames=TIMM_RENAMES)),
)
