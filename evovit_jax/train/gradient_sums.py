"""Gradients of narrow layers added up in float32: over a batch, and over the devices that share it.

A bfloat16 layer casts its float32 parameter, so JAX makes the parameter's gradient in bfloat16 and
widens it last; the sum over devices comes before that, and loses bits with every device. Here the
program of the gradient is changed: the products and sums that make a parameter's gradient give
float32, as a matrix unit has it anyway, and so does what only moves or adds their results.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import (
    ClosedJaxpr,
    Jaxpr,
    JaxprEqn,
    Literal,
    Var,
    jaxpr_as_fun,
    new_jaxpr_eqn,
    no_effects,
    primitives,
)

from evovit_jax.hardware import platforms

FLOAT32 = np.dtype(np.float32)

# Operations that move numbers or add them up, in whatever dtype the numbers have. The last adds up
# over the devices of a mesh.
_MOVING = {
    *("reshape", "transpose", "squeeze", "broadcast_in_dim", "pad", "slice", "concatenate", "rev"),
    *("add", "add_any", "neg", "convert_element_type", "psum_invariant"),
}
# Products whose sums are made in the dtype that they are asked for.
_PRODUCTS = ("dot_general", "conv_general_dilated")
# Operations with a program inside.
_CALLS = ("jit", "remat2", "shard_map")
_KNOWN = {*_MOVING, *_PRODUCTS, *_CALLS, "mul", "reduce_sum"}


def in_float32(differentiate: Callable[..., Any]) -> Callable[..., Any]:
    """`differentiate`, a `jax.grad` with `has_aux`, with sums of float32 in its gradients."""

    def gradients(*arguments: Any) -> Any:
        program, like = jax.make_jaxpr(differentiate, return_shape=True)(*arguments)
        count = len(jax.tree.leaves(like[0]))
        widened = widen(program.jaxpr, [i < count for i in range(len(program.jaxpr.outvars))])
        values = jaxpr_as_fun(ClosedJaxpr(widened, program.consts))(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(like), values)

    return gradients


def widen(program: Jaxpr, chosen: list[bool]) -> Jaxpr:
    """The program with those results in float32 that are chosen, and all that they are sums of."""
    results = {x for x, is_chosen in zip(program.outvars, chosen, strict=True) if is_chosen}
    widening = _Widening(_moved_into(program, {x for x in results if isinstance(x, Var)}))
    for operation in program.eqns:
        widening.add(operation)
    made = [
        widening.wide(x) if is_chosen else x
        for x, is_chosen in zip(program.outvars, chosen, strict=True)
    ]
    return program.replace(eqns=widening.operations, outvars=made)


def _moved_into(program: Jaxpr, results: set[Var]) -> set[Var]:
    """The variables that become `results` by being moved, added and scaled, and these."""
    found = set(results)
    for operation in reversed(program.eqns):
        read = [x for x in operation.invars if isinstance(x, Var)]
        if found.intersection(operation.outvars) and _moves(operation, read):
            found.update(read)
    return found


def _moves(operation: JaxprEqn, read: list[Var]) -> bool:
    """Whether it moves or adds what it reads, or multiplies it by a fixed number."""
    name = operation.primitive.name
    if name == "reduce_sum":  # of dimensions that have one element, as JAX undoes a broadcast
        return read[0].aval.size == operation.outvars[0].aval.size
    return name in _MOVING or (name == "mul" and len(read) == 1)


class _Widening:
    """A copy of a program's operations in which the variables `sums` are made in float32.

    Each narrow one of these has its narrow value too, for whoever else reads it.
    """

    def __init__(self, sums: set[Var]):
        self.sums, self.operations = sums, []
        self._context = None  # of the last operation: inside a shard_map another than outside
        self._wide: dict[Var, Var] = {}

    def add(self, operation: JaxprEqn) -> None:
        """The next operation, as it was or widened."""
        name, results = operation.primitive.name, operation.outvars
        chosen = [x in self.sums for x in results]
        settings, read = operation.params, operation.invars
        self._context = operation.ctx
        if not any(chosen) or name not in _KNOWN:
            self.operations.append(operation)
            return
        if name in _CALLS:
            settings = settings | {"jaxpr": _widen_inside(settings["jaxpr"], chosen)}
        elif name in _PRODUCTS:
            settings = settings | {"preferred_element_type": FLOAT32}
            if platforms.platform() == "cpu":  # has no product of two dtypes for every shape
                read = [self.wide(x) for x in read]
        else:
            read = [self.wide(x) for x in read]
        if name == "convert_element_type":
            settings = settings | {"new_dtype": FLOAT32}
        made = list(results)
        for i, x in enumerate(results):
            if chosen[i] and _is_narrow(x):
                made[i] = self._wide[x] = Var(_widened_type(x))
        self.operations.append(operation.replace(invars=read, outvars=made, params=settings))
        for narrow, wide in zip(results, made, strict=True):
            if narrow is not wide:
                self._cast(wide, narrow)

    def wide(self, x: Var | Literal) -> Var | Literal:
        """An array in float32, cast where it was made in less; others as they are."""
        if not _is_narrow(x):
            return x
        if isinstance(x, Literal):
            return Literal(np.asarray(x.val, FLOAT32), _widened_type(x))
        if x not in self._wide:
            self._wide[x] = Var(_widened_type(x))
            self._cast(x, self._wide[x])
        return self._wide[x]

    def _cast(self, x: Var, to: Var) -> None:
        settings = {"new_dtype": to.aval.dtype, "weak_type": False, "sharding": None}
        cast = primitives.convert_element_type_p
        made = new_jaxpr_eqn([x], [to], cast, settings, no_effects, ctx=self._context)
        self.operations.append(made)


def _widen_inside(program: ClosedJaxpr | Jaxpr, chosen: list[bool]) -> ClosedJaxpr | Jaxpr:
    if isinstance(program, Jaxpr):
        return widen(program, chosen)
    return ClosedJaxpr(widen(program.jaxpr, chosen), program.consts)


def _is_narrow(x: Var | Literal) -> bool:
    return getattr(x.aval, "dtype", None) in (jnp.bfloat16, jnp.float16)


def _widened_type(x: Var | Literal) -> ShapedArray:
    """The type of the same array in float32."""
    return x.aval.update(dtype=FLOAT32, weak_type=False)
