"""A network as an ONNX graph, written out of JAX's own program equation by equation.

Tested in tests/exporting/onnx_model_test.py.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnx
from jax.extend.core import Literal

from evovit_jax.errors import UserError
from evovit_jax.exporting.formats import Images, Logits
from evovit_jax.exporting.onnx_graph import INPUT, Graph, Unsupported, Value
from evovit_jax.exporting.onnx_operators import OPERATORS, computed, held_program, named
from evovit_jax.hardware.platforms import OTHER, compiling_for

OPSET, IR_VERSION = 20, 10  # the first with GELU, and what goes with it
OUTPUT = "logits"


def lowered(graph: Graph, jaxpr: Any, consts: Sequence[Any], inputs: list[Value]) -> list[Value]:
    """The results of a program, whose equations become nodes.

    Raises:
      Unsupported: there is no operator for one of them.
    """
    values: dict[Any, Value] = {}

    def read(variable: Any) -> Value:
        if isinstance(variable, Literal):
            return known(variable.val)
        return values[variable]

    values |= zip(jaxpr.invars, inputs, strict=True)
    values |= zip(jaxpr.constvars, map(known, consts), strict=True)
    for equation in needed(jaxpr):
        found = applied(graph, equation, [read(variable) for variable in equation.invars])
        values |= zip(equation.outvars, found, strict=True)
    return [read(variable) for variable in jaxpr.outvars]


def known(value: Any) -> Value:
    """What depends on no image."""
    array = np.asarray(value)
    return Value(array.shape, array.shape, known=array)


def needed(jaxpr: Any) -> list[Any]:
    """The equations that the results depend on."""
    live, kept = set(map(id, jaxpr.outvars)), []
    for equation in reversed(jaxpr.eqns):
        if any(id(variable) in live for variable in equation.outvars):
            live |= set(map(id, equation.invars))
            kept.append(equation)
    return kept[::-1]


def applied(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """The results of one equation.

    Raises:
      Unsupported: there is no operator for it.
    """
    operator = named(equation)
    if operator is None and (program := held_program(equation)) is not None:
        return lowered(graph, *program, inputs)
    if operator is None and (found := computed(equation, inputs)) is not None:
        return found
    operator = operator or OPERATORS.get(equation.primitive.name)
    if operator is None:
        raise Unsupported(equation.primitive.name)
    return operator(graph, equation, inputs)


def write(logits: Logits, images: Images, path: pathlib.Path) -> dict[str, Any]:
    """Writes the graph; returns the version of its operators.

    Raises:
      UserError: there is no operator for what the network computes.
    """
    (batch,) = jax.export.symbolic_shape("batch")
    taken = jax.ShapeDtypeStruct((batch, *images.shape), jnp.dtype(images.dtype))
    with compiling_for(OTHER):
        program = jax.make_jaxpr(logits)(taken)
        graph = Graph()
        given = Value(taken.shape, taken.shape, INPUT)
        try:
            (result,) = lowered(graph, program.jaxpr, program.consts, [given])
        except Unsupported as error:
            raise UserError(
                f"--format=onnx: ONNX has no operator here for JAX's {error}; take "
                "--format=stablehlo, or another reduction"
            ) from None
    graph.nodes.append(
        onnx.helper.make_node("Identity", [graph.name(graph.whole(result))], [OUTPUT])
    )
    ends = [
        onnx.helper.make_tensor_value_info(
            name,
            onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
            ["batch", *shape[1:]],
        )
        for name, dtype, shape in (
            (INPUT, taken.dtype, taken.shape),
            (OUTPUT, program.out_avals[0].dtype, result.shape),
        )
    ]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes, "network", ends[:1], ends[1:], list(graph.constants.values())
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="evovit_jax",
    )
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return {"opset": OPSET}


def read(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """What is in a file, run by onnxruntime on this machine's CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {INPUT: np.asarray(images)})[0]
