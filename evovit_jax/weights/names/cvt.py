"""CvT under its official names and under those of Hugging Face's transformers.

tests/weights/state_dict_test.py sends it through a round trip.
"""

import functools
import re

from evovit_jax.weights.families import Family
from evovit_jax.weights.layouts import renamed_scheme

OFFICIAL_RENAMES = ((r"stages\.(\d+)\.(.*)", r"stage\1.\2"),)

# In a stage, and in one of its blocks: transformers' names of what is called so officially.
_IN_STAGE = {
    "patch_embed.proj": "embedding.convolution_embeddings.projection",
    "patch_embed.norm": "embedding.convolution_embeddings.normalization",
}
_IN_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
for _letter, _word in (("q", "query"), ("k", "key"), ("v", "value")):
    _conv = f"attention.attention.convolution_projection_{_word}.convolution_projection"
    _IN_BLOCK |= {
        f"attn.proj_{_letter}": f"attention.attention.projection_{_word}",
        f"attn.conv_proj_{_letter}.conv": f"{_conv}.convolution",
        f"attn.conv_proj_{_letter}.bn": f"{_conv}.normalization",
    }


def _in_stage(match: re.Match) -> str:
    stage, module, leaf = match.groups()
    return f"cvt.encoder.stages.{stage}.{_IN_STAGE[module]}.{leaf}"


def _in_block(match: re.Match) -> str:
    stage, block, module, leaf = match.groups()
    return f"cvt.encoder.stages.{stage}.layers.{block}.{_IN_BLOCK[module]}.{leaf}"


TRANSFORMERS_RENAMES = (
    (r"norm\.(.*)", r"layernorm.\1"),
    (r"head\.(.*)", r"classifier.\1"),
    (r"stages\.(\d+)\.cls_token", r"cvt.encoder.stages.\1.cls_token"),
    (r"stages\.(\d+)\.(patch_embed\.\w+)\.(\w+)", _in_stage),
    (r"stages\.(\d+)\.blocks\.(\d+)\.(.*)\.(\w+)", _in_block),
)

FAMILIES = (
    Family(
        "transformers",
        functools.partial(renamed_scheme, renames=TRANSFORMERS_RENAMES),
        r"cvt\.encoder\..*",
    ),
    Family("cvt", functools.partial(renamed_scheme, renames=OFFICIAL_RENAMES)),
)
