"""The kinds of checkpoints of encoders: timm's, and those in the other files of this folder.

tests/weights/state_dict_test.py sends it through a round trip.
"""

import dataclasses

from flax import nnx

from evovit_jax.weights.families import Family
from evovit_jax.weights.layouts import Scheme
from evovit_jax.weights.names import big_vision, facebook, flat, openai, transformers

# timm has the networks with rotary positions in a class of its own.
RENAMES = (
    (r"(blocks\.\d+)\.attn\.qkv\.([qv]_bias)", r"\1.attn.\2"),
    (r"(blocks\.\d+)\.ls([12])\.gamma", r"\1.gamma_\2"),
)
HEAD = "these weights are of an encoder without a head: allow_missing='head/.*' starts one anew"


def scheme(model: nnx.Module) -> Scheme:
    """timm's names."""
    renames = RENAMES if model.config.rope != "none" else RENAMES[:1]
    return dataclasses.replace(flat.scheme(model, renames), hints={r"head/.*": HEAD})


def open_clip_scheme(model: nnx.Module) -> Scheme:
    """timm's names as OpenCLIP has them where it takes a network of timm's (SigLIP)."""
    plain = scheme(model)
    links = tuple(
        dataclasses.replace(link, names=tuple(f"visual.trunk.{name}" for name in link.names))
        for link in plain.links
    )
    return dataclasses.replace(plain, links=links, spare=openai.TEXT)


FAMILIES = (
    Family("transformers", transformers.scheme, transformers.MARK),
    Family("open_clip", open_clip_scheme, r"visual\.trunk\..*"),
    Family("openai", openai.scheme, r"(visual\.)?conv1\.weight"),
    Family("big_vision", big_vision.scheme, big_vision.MARK),
    Family("facebook", facebook.scheme, facebook.MARK),
    Family("timm", scheme),
)
