"""Multiply-adds by formula, from the sizes of layers and token counts: what `flops` is held to.

It knows nothing of how `evovit_jax.flops` counts, which reads a traced program.
"""

import dataclasses
import math
from typing import Any

from flax import nnx

from evovit_jax.models.levit import LeViT
from evovit_jax.models.pit import Pool
from evovit_jax.models.token_model import TokenModel
from evovit_jax.models.vit import VisionTransformer
from evovit_jax.reduction import Reducer, reducer_class, token_counts
from evovit_jax.reduction.matching import alternate
from evovit_jax.reduction.walk import BlockTokens


@dataclasses.dataclass(frozen=True)
class BlockMacs:
    """Multiply-adds of one image in one block.

    Attributes:
      tokens: how many tokens the block works on.
      attention: projections, logits and weighted sums.
      feed_forward: the MLP.
      reducer: the reducer's own matmuls.
      subsampling: what lies between two stages of a pyramid, with the block that comes after it.
    """

    tokens: BlockTokens
    attention: int
    feed_forward: int
    reducer: int
    subsampling: int = 0

    @property
    def total(self) -> int:
        """All of the block's."""
        return self.attention + self.feed_forward + self.reducer + self.subsampling


@dataclasses.dataclass(frozen=True)
class ModelMacs:
    """Multiply-adds of one image by the formula.

    Attributes:
      embed: from pixels to tokens.
      blocks: each block of all stages.
      head: from tokens to logits.
    """

    embed: int
    blocks: tuple[BlockMacs, ...]
    head: int

    @property
    def total(self) -> int:
        """Of the whole network."""
        return self.embed + sum(block.total for block in self.blocks) + self.head


def count(model: nnx.Module, *, image_size: int | None = None) -> ModelMacs:
    """The multiply-adds of a network of blocks of attention with a reducer, by the formula."""
    side = model.config.image_size if image_size is None else image_size
    return (_flat if isinstance(model, VisionTransformer) else _pyramid)(model, side)


def _kernel(module: nnx.Module) -> int:
    """Entries of all kernels of linear maps and convolutions under `module`."""
    layers = (m for _, m in nnx.iter_modules(module) if isinstance(m, nnx.Linear | nnx.Conv))
    return sum(math.prod(layer.kernel.shape) for layer in layers)


def _widths(module: nnx.Module) -> tuple[int, int]:
    """(inputs, outputs) of the one linear map that `module` is or holds."""
    (layer,) = (m for _, m in nnx.iter_modules(module) if isinstance(m, nnx.Linear))
    return layer.kernel.shape


def _convolutions(layers: Any, side: int) -> int:
    """Convolutions one after another on square images, padded by half their kernels."""
    total = 0
    for layer in layers:
        strides = layer.conv.strides
        side = -(-side // (strides if isinstance(strides, int) else strides[0]))
        total += side * side * _kernel(layer)
    return total


def _block(block: nnx.Module, tokens: BlockTokens, reducer: int, subsampling: int = 0) -> BlockMacs:
    """Projections and MLP for each token, attention for each pair of tokens.

    Queries, keys and values of all heads are the 2k + v outputs of `qkv`, values the v inputs of
    `proj`; a pair takes k for its logit and v for its part of the sum.
    """
    qkv, values = _widths(block.attn.qkv)[1], _widths(block.attn.proj)[0]
    n = tokens.attention
    return BlockMacs(
        tokens=tokens,
        attention=n * _kernel(block.attn) + n * n * (qkv + values) // 2,
        feed_forward=tokens.feed_forward * _kernel(block.mlp),
        reducer=reducer,
        subsampling=subsampling,
    )


def _flat(model: VisionTransformer, side: int) -> ModelMacs:
    """Patches through one linear map (LV-ViT: convolutions first), blocks, heads."""
    stem, grid = model.patch_embed, model.patch_embed.grid(side, side)
    patches = grid[0] * grid[1]
    tokens = token_counts.count(model.reducer, grid)
    head = _heads(model)
    if hasattr(model, "aux_head"):
        head += (tokens[-1].leaving - model.prefix) * _kernel(model.aux_head)
    return ModelMacs(
        embed=patches * _kernel(stem.proj) + _convolutions(getattr(stem, "convs", ()), side),
        blocks=tuple(
            _block(block, counts, _reducer(model.reducer, i, counts))
            for i, (block, counts) in enumerate(zip(model.blocks, tokens, strict=True))
        ),
        head=head,
    )


def _pyramid(model: TokenModel, side: int) -> ModelMacs:
    """The stem, the blocks of all stages with what lies between these, heads."""
    stem, reducer = model.patch_embed, model.reducer
    grid = stem.grid(side, side)
    if isinstance(model, LeViT):
        embed = _convolutions(stem.convs, side)
    else:
        embed = grid[0] * grid[1] * _kernel(stem.conv)
    tokens, starts = token_counts.count(reducer, grid), reducer.backbone.stage_starts
    blocks = []
    for i, block in enumerate(block for stage in model.stages for block in stage):
        between = 0
        if i in starts[1:]:
            module = model.downsamples[starts.index(i) - 1]
            if isinstance(module, Pool):
                patches = tokens[i].entering - model.prefix
                between = patches * _kernel(module.conv) + model.prefix * _kernel(module.fc)
            else:
                between = _downsample(module, tokens[i - 1].leaving, tokens[i].entering)
        blocks.append(_block(block, tokens[i], _reducer(reducer, i, tokens[i]), between))
    return ModelMacs(embed=embed, blocks=tuple(blocks), head=_heads(model))


def _downsample(module: nnx.Module, keys: int, queries: int) -> int:
    """Attention from `queries` tokens to `keys` tokens, then an MLP on the former."""
    attn = module.attn
    pair = _widths(attn.kv)[1]  # k for the logit, v for the sum
    projections = keys * _kernel(attn.kv) + queries * (_kernel(attn.q) + _kernel(attn.proj))
    return projections + keys * queries * pair + queries * _kernel(module.mlp)


def _heads(model: nnx.Module) -> int:
    """The heads that inference runs on one vector."""
    return _kernel(model.head) + (_kernel(model.head_dist) if model.config.distilled else 0)


def _evo(reducer: Reducer, block: int, counts: BlockTokens) -> int:
    """The representative token, where the slow path is entered: a sum over all patches."""
    if not reducer.fields.representative_token or counts.attention == counts.entering:
        return 0
    backbone = reducer.backbone
    return (counts.entering - backbone.prefix) * backbone.dim[backbone.stage(block)]


def _evit(reducer: Reducer, block: int, counts: BlockTokens) -> int:
    """The weighted sum of the tokens that leave."""
    fused = reducer.fields.fuse and counts.feed_forward < counts.attention
    dim = reducer.backbone.dim[reducer.backbone.stage(block)]
    return (counts.attention - reducer.backbone.prefix) * dim if fused else 0


def _tome(reducer: Reducer, block: int, counts: BlockTokens) -> int:
    """All similarities between A and B, and the sum of those that merge (a matmul here)."""
    merged = counts.attention - counts.feed_forward
    if merged == 0:
        return 0
    backbone = reducer.backbone
    stage = backbone.stage(block)
    in_a, in_b = (len(range(counts.attention)[places]) for places in alternate(backbone.prefix))
    return in_a * in_b * backbone.key_dims[stage] + in_b * merged * (backbone.dim[stage] + 1)


def _dpcknn(reducer: Reducer, block: int, counts: BlockTokens) -> int:
    """Distances, the weights, and the sums (a matmul here)."""
    del block
    if counts.attention == counts.entering:
        return 0
    dim, prefix = reducer.backbone.dim[0], reducer.backbone.prefix
    tokens, groups = counts.entering - prefix, counts.attention - prefix
    weights = 0 if reducer.fields.equal_weight else tokens * dim
    return tokens * tokens * dim + weights + tokens * groups * (dim + 1)


def _kmedoids(reducer: Reducer, block: int, counts: BlockTokens) -> int:
    """The distances."""
    del block
    if counts.attention == counts.entering:
        return 0
    return (counts.entering - reducer.backbone.prefix) ** 2 * reducer.backbone.dim[0]


def _dynamic_vit(reducer: Reducer, block: int, counts: BlockTokens) -> int:
    """The predictor, where it decides."""
    del block
    if counts.attention == counts.entering:
        return 0
    dim = reducer.backbone.dim[0]
    half, quarter = dim // 2, dim // 4
    layers = dim * dim + half * half + half * quarter + quarter * 2
    # What the tokens share goes through its half of a layer once.
    return (counts.entering - reducer.backbone.prefix) * layers + half * half


def _mixtures(reducer: Reducer, block: int, counts: BlockTokens) -> int:
    """A weight for each pair of a token and a mixture, and the mixtures."""
    if reducer.location(block) is None:
        return 0
    tokens, mixtures = (n - reducer.backbone.prefix for n in (counts.entering, counts.attention))
    return 2 * tokens * mixtures * reducer.backbone.dim[0]


def _sit(reducer: Reducer, block: int, counts: BlockTokens) -> int:
    """The MLP, and the mixtures."""
    if reducer.location(block) is None:
        return 0
    dim = reducer.backbone.dim[0]
    tokens, mixtures = (n - reducer.backbone.prefix for n in (counts.entering, counts.attention))
    return tokens * (dim // 2) * (dim + mixtures) + tokens * mixtures * dim


def _none(reducer: Reducer, block: int, counts: BlockTokens) -> int:
    """Nothing: it has no matmuls of its own."""
    del reducer, block, counts
    return 0


# The own matmuls of the methods, in inference.
REDUCTIONS = {
    "none": _none,
    "ats": _none,
    "dpcknn": _dpcknn,
    "dynamicvit": _dynamic_vit,
    "evit": _evit,
    "evo": _evo,
    "heuristic": _none,
    "kmedoids": _kmedoids,
    "patchmerger": _mixtures,
    "sinkhorn": _mixtures,
    "sit": _sit,
    "tome": _tome,
    "topk": _none,
}


def _reducer(reducer: Reducer, block: int, counts: BlockTokens) -> int:
    """Multiply-adds an image of the reducer's own matmuls at `block`; none for other methods."""
    classes = {
        reducer_class(name, in_pyramid=pyramid): formula
        for name, formula in REDUCTIONS.items()
        for pyramid in (False, True)
    }
    return classes.get(type(reducer), _none)(reducer, block, counts)
