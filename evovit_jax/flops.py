"""Multiply-adds of a network: what one image costs in inference, in all and block by block.

Only matmuls and convolutions are counted, as in the "FLOPs" of the literature on vision
transformers; one multiplication with its addition counts once. There are two ways that know
nothing of each other: `macs_of` reads a traced program and is right for every model and reduction;
`count` is the formula, from the sizes of the layers and the token counts of the reducer.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from evovit_jax.errors import UserError
from evovit_jax.models import create_model
from evovit_jax.models.levit import LeViT
from evovit_jax.models.vit import VisionTransformer
from evovit_jax.reduction.base import BlockTokens, Reducer


def gmacs(
    model: str | nnx.Module,
    reduction: str | Mapping[str, Any] | None = None,
    *,
    image_size: int | None = None,
    **overrides: Any,
) -> float:
    """Billions of multiply-adds of one image in inference, read off the traced program.

    Args:
      model: a name of `list_models()`, or a model, with or without values.
      reduction: with a name: as `create_model` takes it.
      image_size: pixels; those of the model by default.
      **overrides: with a name: as `create_model` takes them.

    Raises:
      UserError: as `create_model`; for images that do not divide into patches.
    """
    if isinstance(model, str):
        model = abstract_model(model, reduction, image_size=image_size, **overrides)
    side = model.config.image_size if image_size is None else image_size
    images = jax.ShapeDtypeStruct((1, side, side, model.config.in_channels), jnp.float32)
    graphdef, state = nnx.split(model)
    return macs_of(lambda s, x: nnx.merge(graphdef, s)(x)[0], state, images) / 1e9


def abstract_model(name: str, reduction: Any = None, **overrides: Any) -> nnx.Module:
    """A model whose parameters have shapes and no values, as `create_model` makes it."""
    return nnx.eval_shape(lambda: create_model(name, reduction, **overrides))


def macs_of(function: Callable[..., Any], *arguments: Any) -> int:
    """Multiply-adds of all matmuls and convolutions that the results of `function` depend on.

    Nothing is compiled or computed. The body of a loop counts as often as it runs; of branches the
    dearest counts.

    Args:
      function: of arrays, to arrays.
      *arguments: arrays, or `jax.ShapeDtypeStruct` in their place.
    """
    # Traced without a mesh, whatever the caller has set: the whole batch is counted.
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return _program_macs(jaxpr, [True] * len(jaxpr.outvars))


def _program_macs(jaxpr: Any, wanted: list[bool]) -> int:
    """Multiply-adds of the equations that the wanted outputs need."""
    live = {v for v, want in zip(jaxpr.outvars, wanted, strict=True) if want and _is_variable(v)}
    total = 0
    for equation in reversed(jaxpr.eqns):
        used = [v in live for v in equation.outvars]
        if any(used):
            live.update(v for v in equation.invars if _is_variable(v))
            total += _equation_macs(equation, used)
    return total


def _is_variable(atom: Any) -> bool:
    return not hasattr(atom, "val")  # literals have one


def _equation_macs(equation: Any, used: list[bool]) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
        return math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // outputs
    if name == "cond":
        return max(_program_macs(branch.jaxpr, used) for branch in params["branches"])
    inner = [getattr(p, "jaxpr", p) for p in params.values() if _is_program(p)]
    times = params["length"] if name == "scan" else 1
    # A loop's carry feeds its next round, so all of its outputs count; elsewhere only the used.
    same = [len(program.outvars) == len(used) and name != "scan" for program in inner]
    return times * sum(
        _program_macs(program, used if matches else [True] * len(program.outvars))
        for program, matches in zip(inner, same, strict=True)
    )


def _is_program(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")


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
    """The multiply-adds of a network with a reducer, by the formula.

    Raises:
      UserError: for a network without blocks of attention (RegNet); `gmacs` counts it.
    """
    side = model.config.image_size if image_size is None else image_size
    for family, formula in FORMULAS.items():
        if isinstance(model, family):
            return formula(model, side)
    raise UserError(f"{type(model).__name__} has no blocks of attention; flops.gmacs counts it")


def token_counts(reducer: Reducer, grid: tuple[int, int]) -> tuple[BlockTokens, ...]:
    """`reducer.token_counts`, also for a reducer whose parameters have no values."""
    found, (graphdef, state) = [], nnx.split(reducer)
    jax.eval_shape(lambda s: found.append(nnx.merge(graphdef, s).token_counts(grid)), state)
    return found[0]


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
    tokens = token_counts(model.reducer, grid)
    head = _heads(model)
    if hasattr(model, "aux_head"):
        head += (tokens[-1].leaving - model.prefix) * _kernel(model.aux_head)
    return ModelMacs(
        embed=patches * _kernel(stem.proj) + _convolutions(getattr(stem, "convs", ()), side),
        blocks=tuple(
            _block(block, counts, model.reducer.macs(i, counts))
            for i, (block, counts) in enumerate(zip(model.blocks, tokens, strict=True))
        ),
        head=head,
    )


def _pyramid(model: LeViT, side: int) -> ModelMacs:
    """Convolutions, the blocks of all stages with the subsamplings between these, heads."""
    convs, reducer = model.patch_embed.convs, model.reducer
    rows = side
    for _ in convs:
        rows = -(-rows // 2)
    tokens, starts = token_counts(reducer, (rows, rows)), reducer.backbone.stage_starts
    blocks = []
    for i, block in enumerate(block for stage in model.stages for block in stage):
        between = 0
        if i in starts[1:]:
            module = model.downsamples[starts.index(i) - 1]
            between = _downsample(module, tokens[i - 1].leaving, tokens[i].entering)
        blocks.append(_block(block, tokens[i], reducer.macs(i, tokens[i]), between))
    return ModelMacs(embed=_convolutions(convs, side), blocks=tuple(blocks), head=_heads(model))


def _downsample(module: nnx.Module, keys: int, queries: int) -> int:
    """Attention from `queries` tokens to `keys` tokens, then an MLP on the former."""
    attn = module.attn
    pair = _widths(attn.kv)[1]  # k for the logit, v for the sum
    projections = keys * _kernel(attn.kv) + queries * (_kernel(attn.q) + _kernel(attn.proj))
    return projections + keys * queries * pair + queries * _kernel(module.mlp)


def _heads(model: nnx.Module) -> int:
    """The heads that inference runs on one vector."""
    return _kernel(model.head) + (_kernel(model.head_dist) if model.config.distilled else 0)


FORMULAS: dict[type[nnx.Module], Callable[[Any, int], ModelMacs]] = {
    VisionTransformer: _flat,
    LeViT: _pyramid,
}
