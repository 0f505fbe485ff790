"""A network as an ONNX graph, written out of JAX's own program equation by equation.

The size of the batch, the only one that is unknown, is never computed: a shape that has it is
written with -1 in its place. What depends on no image is computed here, and broadcasting is left to
the operators that broadcast anyway, so that the graph has little else than the network's own steps.

Tested in tests/exporting/onnx_test.py.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnx

from evovit_jax.errors import UserError
from evovit_jax.exporting.formats import Images, Logits
from evovit_jax.hardware.platforms import OTHER, compiling_for

OPSET, IR_VERSION = 20, 10  # the first with GELU, and what goes with it
INPUT, OUTPUT = "images", "logits"
Shape = tuple[Any, ...]  # of numbers, and of the symbol of the batch's size


@dataclasses.dataclass(frozen=True)
class Value:
    """An array of the program.

    Attributes:
      shape: in the program.
      held: in the graph; 1 where the program has it repeated along an axis.
      name: in the graph; "" for what is known.
      known: the array, of shape `held`, where it depends on no image.
    """

    shape: Shape
    held: Shape
    name: str = ""
    known: np.ndarray | None = None


class Graph:
    """The nodes and the constants of a graph that is being written."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[tuple, onnx.TensorProto] = {}
        self._numbers = itertools.count()

    def node(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        """Adds a node; the names of its outputs."""
        names = [f"{operator.lower()}_{next(self._numbers)}" for _ in range(outputs)]
        self.nodes.append(onnx.helper.make_node(operator, list(inputs), names, **attributes))
        return names

    def constant(self, array: Any, dtype: Any = None) -> str:
        """The name of a constant, the same for the same values."""
        array = np.ascontiguousarray(np.asarray(array, dtype))
        key = (array.dtype.str, np.shape(array), array.tobytes())
        if key not in self.constants:
            name = f"constant_{next(self._numbers)}"
            self.constants[key] = onnx.numpy_helper.from_array(array, name)
        return self.constants[key].name

    def name(self, value: Value) -> str:
        """What a value is called, as it is held."""
        return value.name if value.known is None else self.constant(value.known)

    def whole(self, value: Value) -> Value:
        """The value with every axis that is only repeated written out."""
        if value.held == value.shape:
            return value
        if value.known is not None and all(isinstance(size, int) for size in value.shape):
            known = np.broadcast_to(value.known, value.shape)
            return Value(value.shape, value.shape, known=known)
        # Expand takes 1 for an axis that keeps its size; that of the batch is the images' own.
        parts = [
            self.constant([1 if size == held else size], np.int64)
            if isinstance(size, int) or size == held
            else self.node("Shape", INPUT, start=0, end=1)[0]
            for size, held in zip(value.shape, value.held, strict=True)
        ]
        (target,) = self.node("Concat", *parts, axis=0)
        (name,) = self.node("Expand", self.name(value), target)
        return Value(value.shape, value.shape, name)

    def reshaped(self, value: Value, shape: Shape) -> Value:
        """Another shape of the same number of elements."""
        value = self.whole(value)
        if value.known is not None:
            known = value.known.reshape(shape)
            return Value(shape, shape, known=known)
        if value.shape == shape:
            return value
        target = self.constant([s if isinstance(s, int) else -1 for s in shape], np.int64)
        return Value(shape, shape, self.node("Reshape", value.name, target)[0])

    def transposed(self, value: Value, order: Sequence[int]) -> Value:
        """The axes in another order."""
        order = [int(axis) for axis in order]
        if order == sorted(order):
            return value
        shape, held = (tuple(sizes[axis] for axis in order) for sizes in (value.shape, value.held))
        if value.known is not None:
            return Value(shape, held, known=value.known.transpose(order))
        return Value(shape, held, self.node("Transpose", value.name, perm=order)[0])


Operator = Callable[[Graph, Any, list[Value]], list[Value]]


class Unsupported(Exception):
    """An equation that no operator stands for; its text names the operation."""


def lowered(graph: Graph, jaxpr: Any, consts: Sequence[Any], inputs: list[Value]) -> list[Value]:
    """The results of a program, whose equations become nodes.

    Raises:
      Unsupported: there is no operator for one of them.
    """
    values: dict[Any, Value] = {}

    def read(variable: Any) -> Value:
        if isinstance(variable, jax.extend.core.Literal):
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
    from evovit_jax.exporting.onnx_operators import OPERATORS, computed, held_program, named

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
