"""LeViT and Evo-LeViT: the official names, timm's, and both with folded batch norm.

The official code counts modules through all stages: two for a block (attention, MLP) and two for
a subsampling (`blocks.4.kv.c.weight`). Evo-LeViT's names every tensor twice: in `blocks.*` a block
is one module, in `stage_blocks.*` the blocks of a stage that select are one.

tests/weights/state_dict_test.py sends it through a round trip.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from evovit_jax.models.levit_layers import STRIDE, bias_index, positions_for
from evovit_jax.models.variables import variables
from evovit_jax.reduction.evo_levit import EvoPyramidFields
from evovit_jax.weights.families import Family
from evovit_jax.weights.layouts import LEAVES, Link, Scheme, default_link, square_side

# What the parts of a module are called: {ours: theirs}.
OFFICIAL_PARTS = {
    "proj": "proj.1",
    "q": "q.1",
    "fc1": "0",
    "fc2": "2",
    "conv": "c",
    "linear": "c",
    "attention_bias": "attention_biases",
    "pos_embed": "poss",
}
TIMM_PARTS = {
    "proj": "proj.ln",
    "q": "q.ln",
    "fc1": "ln1",
    "fc2": "ln2",
    "conv": "linear",
    "attention_bias": "attention_biases",
}
HEAD_PARTS = {"official": {"linear": "l"}, "timm": {}}
# Where a module is: {our prefix: theirs}.
Places = dict[str, str]


def official_scheme(model: nnx.Module) -> Scheme:
    """The names of the official LeViT, or Evo-LeViT, code."""
    if not model.config.class_token:
        return _scheme(model, _official_places(model), "official", buffers=_bias_indices(model))
    once, again = _evo_places(model), _evo_stage_places(model)
    aliases = {once[ours]: again[ours] for ours in again}
    return _scheme(model, once, "official", aliases=aliases)


def timm_scheme(model: nnx.Module) -> Scheme:
    """timm's names."""
    places = {f"patch_embed/convs/{i}": f"stem.conv{i + 1}" for i in range(4)}
    for stage, depth in enumerate(model.config.depth):
        places |= {f"stages/{stage}/{b}": f"stages.{stage}.blocks.{b}" for b in range(depth)}
        below = f"stages.{stage + 1}.downsample"
        places[f"downsamples/{stage}/attn"] = f"{below}.attn_downsample"
        places[f"downsamples/{stage}/mlp"] = f"{below}.mlp"
    return _scheme(model, places, "timm")


def _scheme(
    model: nnx.Module,
    places: Places,
    kind: str,
    *,
    buffers: dict[str, np.ndarray] | None = None,
    aliases: Places | None = None,
) -> Scheme:
    held = variables(model)
    folded = not any(path.endswith("bn/scale") for path in held)
    links, resize = [], {}
    for path, variable in held.items():
        if path == "reducer/tradeoff":
            links.append(Link(path, _tradeoff_names(model, places)))
            continue
        link = default_link(path, variable.shape, _name(path, places, kind, folded))
        if path.startswith("head_cls"):
            link = dataclasses.replace(link, optional=True)  # heads of the training only
        links.append(link)
        if path.endswith("pos_embed"):
            resize[path] = _resize_positions
        elif path.endswith("attention_bias"):
            resize[path] = _resize_biases
    return Scheme(
        tuple(links),
        buffers=buffers or {},
        aliases=_aliases([name for link in links for name in link.names], aliases or {}),
        resize=resize,
        spare=r".*\.learn_tradeoff",
    )


def _name(path: str, places: Places, kind: str, folded: bool) -> str:
    """The name there of a variable."""
    module = path.rpartition("/")[0]
    prefix = next((p for p in places if module == p or module.startswith(p + "/")), "")
    rest = module[len(prefix) :].strip("/").split("/")
    parts = {"official": OFFICIAL_PARTS, "timm": TIMM_PARTS}[kind]
    if module.startswith("head"):
        parts = HEAD_PARTS[kind]
    if folded:
        parts = parts | {"conv": "", "linear": ""}
    leaf = path.rpartition("/")[2]
    names = [places.get(prefix, ""), *(parts.get(part, part) for part in rest)]
    return ".".join(filter(None, [*names, parts.get(leaf, LEAVES.get(leaf, leaf))]))


def _official_places(model: nnx.Module) -> Places:
    places, k = _stem_places(), 0
    for stage, depth in enumerate(model.config.depth):
        for block in range(depth):
            places[f"stages/{stage}/{block}/attn"] = f"blocks.{k}.m"
            places[f"stages/{stage}/{block}/mlp"] = f"blocks.{k + 1}.m"
            k += 2
        k = _downsample_places(places, stage, "blocks", k)
    return places


def _evo_places(model: nnx.Module) -> Places:
    places, k = _stem_places(), 0
    for stage, depth in enumerate(model.config.depth):
        for block in range(depth):
            places[f"stages/{stage}/{block}/attn"] = f"blocks.{k}.m1.m"
            places[f"stages/{stage}/{block}/mlp"] = f"blocks.{k}.m2.m"
            k += 1
        k = _downsample_places(places, stage, "blocks", k)
    return places


def _evo_stage_places(model: nnx.Module) -> Places:
    fields = model.reducer.fields
    # Other reducers load what was trained with Evo's own settings.
    first = (fields if isinstance(fields, EvoPyramidFields) else EvoPyramidFields()).first_block
    places, k, number = {}, 0, 0
    for stage, depth in enumerate(model.config.depth):
        inside = 0  # modules of this stage that are one module there
        for block in range(depth):
            ours = f"stages/{stage}/{block}"
            if number < first:
                names, k = (f"{k}.m", f"{k + 1}.m"), k + 2
            else:
                names, inside = (f"{k}.m.{inside}.m", f"{k}.m.{inside + 1}.m"), inside + 2
            places |= {
                f"{ours}/{part}": f"stage_blocks.{name}"
                for part, name in zip(("attn", "mlp"), names, strict=True)
            }
            number += 1
        k = _downsample_places(places, stage, "stage_blocks", k + bool(inside))
    return places


def _stem_places() -> Places:
    return {f"patch_embed/convs/{i}": f"patch_embed.{2 * i}" for i in range(4)}


def _downsample_places(places: Places, stage: int, parent: str, k: int) -> int:
    places[f"downsamples/{stage}/attn"] = f"{parent}.{k}"
    places[f"downsamples/{stage}/mlp"] = f"{parent}.{k + 1}.m"
    return k + 2


def _tradeoff_names(model: nnx.Module, places: Places) -> tuple[str, ...]:
    """The scalars of all attentions in the network's order, which are one vector here."""
    names, last = [], len(model.config.depth) - 1
    for stage, depth in enumerate(model.config.depth):
        names += [places[f"stages/{stage}/{block}/attn"] for block in range(depth)]
        names += [places[f"downsamples/{stage}/attn"]] * (stage < last)
    return tuple(f"{name}.learn_tradeoff" for name in names)


def _aliases(names: list[str], places: Places) -> dict[str, tuple[str, ...]]:
    """The second name of every tensor below a module that has two."""
    found = {}
    for name in names:
        for first, second in places.items():
            if name.startswith(first + "."):
                found[name] = (second + name[len(first) :],)
    return found


def _bias_indices(model: nnx.Module) -> dict[str, np.ndarray]:
    """The official code's buffers, which number biases in the order in which it meets them.

    It walks the places of queries and keys from the first on, so that the first row of keys
    meets every distance in raster order: the number is that of `bias_index`.
    """
    places, found = _official_places(model), {}
    grids = model.config.grids()
    for ours, theirs in places.items():
        kind, stage, *_ = ours.split("/")
        if ours.endswith("attn"):
            stride = STRIDE if kind == "downsamples" else 1
            if kind == "downsamples" and int(stage) == len(grids) - 1:
                continue
            index = bias_index(grids[int(stage)], stride).astype(np.int64)
            found[f"{theirs}.attention_bias_idxs"] = index
    return found


def _resize_positions(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Positions of the class token and a square grid, for another square grid."""
    old, new = square_side(value.shape[1] - 1), square_side(shape[1] - 1)
    if value.ndim != 3 or not old or not new or value.shape[2] != shape[2]:
        return value
    return np.asarray(positions_for(jnp.asarray(value), (old, old), (new, new)))


def _resize_biases(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Biases by distance along each axis, for another square grid.

    The largest distance of the old grid becomes the largest of the new one.
    """
    old, new = square_side(value.shape[-1]), square_side(shape[-1])
    if value.ndim != 2 or not old or not new or value.shape[0] != shape[0]:
        return value
    grid = jnp.asarray(value).reshape(-1, old, old)
    scale = (new - 1) / max(1, old - 1)
    # Place 0 is distance 0 in both: pixel centres, not pixel edges, are aligned.
    resized = jax.image.scale_and_translate(
        grid,
        (len(grid), new, new),
        (1, 2),
        jnp.full((2,), scale, jnp.float32),
        jnp.full((2,), 0.5 - 0.5 * scale, jnp.float32),
        "linear",
        antialias=False,
    )
    return np.asarray(resized).reshape(len(grid), -1)


FAMILIES = (
    Family("timm", timm_scheme, r"stem\.conv1\..*"),
    Family("levit", official_scheme),
)
