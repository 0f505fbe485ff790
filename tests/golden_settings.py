"""The settings of the golden files' reductions, as reducers here name them."""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

from evovit_jax.reduction.ia_red2 import HEADS
from evovit_jax.reduction.merge_matrices import DECAY

# Facts about the official code that are true here without a setting.
FACTS = {
    "predictor_layer_norm_eps": (1e-5,),
    "reduction_layer_norm_eps": (1e-5,),
    "density_noise": (0,),
    "rounding": (
        "ceil(keep_rate * (tokens - 1)), tokens as they are at that block, class token included",
        "r = floor(tokens - tokens * keep_rate), tokens without the class token, computed in "
        "Python floats as written",
        "r = floor(tokens - tokens * keep_rate), tokens with the class token, computed in Python "
        "floats as written",
        "r < 1 is a fraction: int((tokens - 1) * r); at most (tokens - 1) // 2; at least 10 tokens "
        "stay (only then r = tokens - 10)",
        "k of all tokens, the class token scored like the others, then forced: k or k + 1 stay",
        "r, at most (tokens - 1) // 2",
        "r tokens after every block but the last (the last two with last-layer fusion), r + 1 "
        "after block 0",
        "ceil(keep_rate * patches), patches as they are at that block",
        "int(patches * keep_rate ** (i + 1))",
        "int(keep_rate * positions of the stage), all positions at every location (not cumulative)",
        "int(patches * prune_rate) * blocks scores lie below the pruning threshold, int(patches * "
        "keep_rate) * blocks at or above the centre threshold, over all merging blocks together",
    ),
    "matching": (
        "blocks before all_pairs_until: all patches in the order of falling energy, even against "
        "odd, the r best edges merge; later blocks: only the 2r of highest energy, even each into "
        "its best odd",
    ),
    "metric": ("Linear with bias on the normed block input, beside qkv",),
    "cosine_eps": (1e-6,),
    "layer_decay": (DECAY,),
    "matrices": ("parameters",),
    "counts": ("prune_kept and merge_kept of every block include the class token",),
}

CROPR = {
    "pre_attention_norm": False,
    "query_projection": False,
    "key_projection": False,
    "value_projection": False,
    "aux_mlp_ratio": 4,
    "aux_layer_norm_eps": 1e-6,
    "aux_head_layer_norm_eps": 1e-5,
}
SVITE = {
    "tau": 1,
    "where": "after the embedding, and again on the normed input of the attention of every block "
    "(each with its own score)",
}
IA_RED2 = {
    "interpreter_heads": HEADS,
    "interpreter_layer_norm_eps": 1e-5,
    "interpreter_layer_norm_affine": False,
}


# Networks over maps, in which DynamicViT has the epsilon of the network everywhere.
SPATIAL = ("dynamic_convnext", "dynamic_swin")
SPATIAL_EPSILONS = ("predictor_layer_norm_eps", "fast_path_layer_norm_eps")


def cropr(fields: dict[str, Any], depth: int) -> None:
    """Projections and a norm that no published network has are not here."""
    del depth
    for name, value in CROPR.items():
        assert fields.pop(name, value) == value
    if "aux_num_heads" in fields:
        fields["aux_heads"] = fields.pop("aux_num_heads")


def pitome(fields: dict[str, Any], depth: int) -> None:
    """What follows from the depth is compared with what it is here."""
    if "margin" in fields:
        expected = [0.75 - 0.75 * block / depth for block in range(depth)]
        assert list(fields.pop("margin")) == expected
        assert fields.pop("alpha") == 1.0
        assert fields.pop("all_pairs_until") == math.ceil(depth / 2)


def tofu(fields: dict[str, Any], depth: int) -> None:
    """No sizes, hence no proportional attention."""
    assert not fields.pop("proportional_attention", False)
    if "strategy" in fields:
        drops = depth // 2 + 1
        assert list(fields.pop("strategy")) == ["prune"] * drops + ["merge"] * (depth - drops)


def ia_red2(fields: dict[str, Any], depth: int) -> None:
    """Groups by their first blocks; the files' inference masks."""
    fields["masked"] = True
    for name, value in IA_RED2.items():
        assert fields.pop(name, value) == value
    if "groups" in fields:
        *starts, end = itertools.accumulate(fields.pop("groups"), initial=0)
        assert end == depth
        fields["locations"] = tuple(starts)


def mctf(fields: dict[str, Any], depth: int) -> None:
    """Numbers there, words here."""
    del depth
    if "one_step_ahead" in fields:
        fields["ahead"] = ("after", "map", "precise")[fields.pop("one_step_ahead")]
    if "pooling_type" in fields:
        fields["pooling"] = ("size", "attention")[fields.pop("pooling_type")]


def gtp(fields: dict[str, Any], depth: int) -> None:
    """Other words; a plain mean has no graph."""
    del depth
    scores = {
        "MixedAttnMax": "mixed",
        "IMGAttnMax": "image",
        "DiagAttnMax": "diagonal",
        "CLSAttnMax": "class",
    }
    if "score" in fields:
        fields["score"] = scores[fields["score"]]
    if "graph" in fields:
        fields["graph"] = fields["graph"].lower()
    if fields.pop("propagation", "GraphProp") == "Mean":
        fields["graph"] = "mean"


def dtem(fields: dict[str, Any], depth: int) -> None:
    """The width of the embeddings follows from the network's."""
    del depth
    fields.pop("metric_dim", None)


def svite(fields: dict[str, Any], depth: int) -> None:
    """The files' inference masks, without noise."""
    del depth
    fields["masked"] = True
    for name, value in SVITE.items():
        assert fields.pop(name, value) == value


def tokenlearner(fields: dict[str, Any], depth: int) -> None:
    """With a fuser, the official code learns tokens in every block from the location on."""
    del depth
    every = "every block from the location on"
    assert fields.pop("fuse_blocks", every) == every


def tome(fields: dict[str, Any], depth: int) -> None:
    """A pair is a number and its inflection."""
    del depth
    if isinstance(fields.get("r"), tuple):
        fields["r"], fields["inflection"] = fields["r"]


OF_METHODS: dict[str, Callable[[dict[str, Any], int], None]] = {
    "cropr": cropr,
    "dtem": dtem,
    "gtp": gtp,
    "ia_red2": ia_red2,
    "mctf": mctf,
    "pitome": pitome,
    "svite_data": svite,
    "tofu": tofu,
    "tokenlearner": tokenlearner,
    "tome": tome,
}


def reducer_fields(given: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a reducer here, from those of a golden file."""
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    follow = {"kept", "sample_count", "sample_points"}  # from the keep rate
    if meta["method"] in ("prune_and_merge", "svite_data"):
        follow = set()  # there it is a setting
    for name in follow:
        fields.pop(name, None)  # a wrong count shows in the output
    for name in SPATIAL_EPSILONS if meta["method"] in SPATIAL else ():
        epsilon = meta["model"]["layer_norm_eps"]
        assert fields.pop(name, epsilon) == epsilon
    for name, values in FACTS.items():
        assert fields.pop(name, values[0]) in values
    if "stages" in fields:
        fields["stages"] = tuple(first for first, _ in fields["stages"])
    if "dense_blocks" in fields:
        fields["first_block"] = fields.pop("dense_blocks")
    if meta["method"] in OF_METHODS:
        OF_METHODS[meta["method"]](fields, meta["model"].get("depth"))
    return fields


# What the encoders' files call the keys that tokens are matched by.
KEYS = {"keys after rotation": "keys", "keys before rotation": "rawkeys"}


def own_reducer(reduction: Mapping[str, Any]) -> dict[str, Any]:
    """The reduction that an output of an encoder's file names."""
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in reduction.items()}
    if "metric" in fields:
        fields["metric"] = KEYS[fields["metric"]]
    return {"name": fields.pop("method"), **fields}


def names_its_own(output: Mapping[str, Any]) -> bool:
    """Whether an output has a reduction of its own, and not the file's with changes."""
    return "method" in (output.get("reduction") or {})


def reducer_of(meta: Mapping[str, Any], output: Mapping[str, Any]) -> dict[str, Any]:
    """The reduction of a file; a mapping as `create_model` takes it."""
    if names_its_own(output):
        return own_reducer(output["reduction"])
    dense = meta["method"] is None or output.get("reduction", {}) is None
    if dense or output.get("mode") == "eval, unpruned":
        return {"name": "none"}
    given = dict(meta["reduction"])
    if meta["method"] in ("ltmp", "tokenlearner"):  # each output is of a network of its own
        given |= output.get("reduction", {})
    fields = reducer_fields(given, meta)
    if (meta["family"], meta["method"]) == ("tokenreduction", "evit"):
        fields["rounding"] = "grid"
    names = {"svite_data": "svite", **dict.fromkeys(SPATIAL, "dynamicvit")}
    name = names.get(meta["method"], meta["method"])
    return {"name": name, **fields}
