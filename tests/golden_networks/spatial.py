"""What the outputs of networks with a slow and a fast path are, by words of their descriptions."""

import re
from typing import Any

import jax

from evovit_jax.models.outputs import Outputs
from golden_networks.stage_maps import ORDINALS, stage_map

STREAMS = {"first stream": "slow_stream", "second stream": "fast_stream"}


def spatial_value(output: dict[str, Any], out: Outputs) -> jax.Array | None:
    """Masks, streams, the last map after the norm or a stage's; None where it is something else."""
    words = output.get("value", "logits")
    if found := re.search(
        r"(slow path is taken from|mask of the slow path at) the (\w+) loc", words
    ):
        return out.aux["decisions"][:, ORDINALS.index(found[2])]
    for stream, name in STREAMS.items():
        if words.startswith(stream):
            return out.aux[name]
    if "after the last norm" in words:
        return out.features
    return stage_map(words, out)
