"""Multiply-adds of a network: what one image costs in inference, read off the traced program.

Only matmuls and convolutions are counted, as in the "FLOPs" of the literature on vision
transformers; one multiplication with its addition counts once.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx


def gmacs(model: nnx.Module, *, image_size: int | None = None) -> float:
    """Billions of multiply-adds of one image in inference.

    Args:
      model: with or without values (`evovit_jax.models.abstract_model`).
      image_size: pixels; those of the model by default.

    Raises:
      UserError: the images do not divide into patches.
    """
    config = cast(Any, model).config  # every network of models/ has one
    side = config.image_size if image_size is None else image_size
    sides = side if isinstance(side, tuple) else (side, side)
    images = jax.ShapeDtypeStruct((1, *sides, config.in_channels), jnp.float32)
    graphdef, state = nnx.split(model)
    return macs_of(lambda s, x: nnx.merge(graphdef, s)(x)[0], state, images) / 1e9


def macs_of(function: Callable[..., Any], *arguments: Any) -> int:
    """Multiply-adds of all matmuls and convolutions that the results of `function` depend on.

    Nothing is compiled or computed. The body of a loop of known length counts as often as it runs,
    of another loop once; of branches the dearest counts. What a TPU computes in another way is
    counted in the general one.

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
        branches = params["branches"]
        if params.get("branches_platforms"):
            branches = branches[-1:]  # what platforms without a way of their own compute
        return max(_program_macs(branch.jaxpr, used) for branch in branches)
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
