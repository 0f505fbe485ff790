"""ONNX's operators for JAX's operations, by their names.

Tested in tests/exporting/onnx_model_test.py.
"""

import math
from typing import Any

import jax
import numpy as np

from evovit_jax.exporting import onnx_axes, onnx_elementwise
from evovit_jax.exporting.onnx_elementwise import broadcasting, chain, converted
from evovit_jax.exporting.onnx_graph import Graph, Operator, Unsupported, Value, result

# What has no effect on values in inference.
SAME = {"copy", "copy_p", "optimization_barrier", "stop_gradient", "name", "sharding_constraint"}
# Operations of ones that hold a program of their own, and where they hold it.
HOLDS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
LOOPS = {"scan", "while", "cond", "shard_map", "pallas_call"}


def named(equation: Any) -> Operator | None:
    """The operator for all of a function that an equation calls, by the function's name."""
    return NAMED.get(equation.params.get("name")) if equation.primitive.name == "jit" else None


def held_program(equation: Any) -> tuple[Any, tuple] | None:
    """The program, and its constants, of an equation that only calls one."""
    if equation.primitive.name in LOOPS:
        return None
    for key in HOLDS:
        inner = equation.params.get(key)
        if inner is not None:
            return getattr(inner, "jaxpr", inner), tuple(getattr(inner, "consts", ()))
    return None


def computed(equation: Any, inputs: list[Value]) -> list[Value] | None:
    """The results of an equation that depends on no image and no size of the batch."""
    sizes = [size for value in equation.outvars for size in value.aval.shape]
    if any(value.known is None or value.held != value.shape for value in inputs):
        return None
    if not all(isinstance(size, int) for size in sizes):
        return None
    with jax.ensure_compile_time_eval():
        found = equation.primitive.bind(*(v.known for v in inputs), **equation.params)
    found = found if equation.primitive.multiple_results else [found]
    return [Value(np.shape(x), np.shape(x), known=np.asarray(x)) for x in found]


def reduced(operator: str) -> Operator:
    """An operator that leaves the axes out over which it goes."""

    def write(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
        axes = graph.constant(equation.params["axes"], np.int64)
        value = graph.whole(inputs[0])
        kind = equation.invars[0].aval.dtype
        if kind == np.bool_:
            value = converted(graph, value, np.int32)
        found = result(graph, equation, operator, graph.name(value), axes, keepdims=0)
        return [converted(graph, found, np.bool_) if kind == np.bool_ else found]

    return write


def place_of_extreme(operator: str) -> Operator:
    """The first place of the largest, or smallest, element."""

    def write(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
        (axis,) = equation.params["axes"]
        name = graph.name(graph.whole(inputs[0]))
        found = result(graph, equation, operator, name, axis=axis, keepdims=0)
        return [converted(graph, found, equation.params["index_dtype"])]

    return write


def top_k(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    number = graph.constant([equation.params["k"]], np.int64)
    names = graph.node("TopK", graph.name(graph.whole(inputs[0])), number, outputs=2)
    values, index = (
        Value(variable.aval.shape, variable.aval.shape, name)
        for variable, name in zip(equation.outvars, names, strict=True)
    )
    return [values, converted(graph, index, np.int32)]


def product(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """A matrix product, its axes brought into order: batch, rows, sums; batch, sums, columns."""
    contracted, batched = equation.params["dimension_numbers"]
    left, right = map(graph.whole, inputs)
    outer = [
        [axis for axis in range(len(value.shape)) if axis not in (*summed, *shared)]
        for value, summed, shared in zip((left, right), contracted, batched, strict=True)
    ]
    left = graph.transposed(left, [*batched[0], *outer[0], *contracted[0]])
    right = graph.transposed(right, [*batched[1], *contracted[1], *outer[1]])
    shared, sums = left.shape[: len(batched[0])], len(contracted[0])
    rows = left.shape[len(shared) : len(left.shape) - sums]
    columns = right.shape[len(shared) + sums :]
    inner = math.prod(left.shape[len(left.shape) - sums :])
    # More rows than one axis of them need no merging where the right side is one matrix.
    if shared or len(columns) == 0 or not rows or sums != 1:
        left = graph.reshaped(left, (*shared, math.prod(rows), inner))
    right = graph.reshaped(right, (*shared, inner, math.prod(columns)))
    (name,) = graph.node("MatMul", graph.name(left), graph.name(right))
    shape = (*left.shape[:-1], right.shape[-1])
    return [graph.reshaped(Value(shape, shape, name), equation.outvars[0].aval.shape)]


def convolution(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """A convolution; ONNX's images and kernels have their channels first."""
    parameters = equation.params
    layout = parameters["dimension_numbers"]
    if any(d != 1 for d in parameters["lhs_dilation"]) or parameters["batch_group_count"] != 1:
        raise Unsupported("conv_general_dilated with a dilated input")
    images = graph.transposed(graph.whole(inputs[0]), layout.lhs_spec)
    kernels = graph.transposed(graph.whole(inputs[1]), layout.rhs_spec)
    (name,) = graph.node(
        "Conv",
        graph.name(images),
        graph.name(kernels),
        strides=list(parameters["window_strides"]),
        dilations=list(parameters["rhs_dilation"]),
        group=parameters["feature_group_count"],
        pads=[low for low, _ in parameters["padding"]]
        + [high for _, high in parameters["padding"]],
    )
    final = equation.outvars[0].aval.shape
    shape = tuple(final[axis] for axis in layout.out_spec)
    return [graph.transposed(Value(shape, shape, name), np.argsort(layout.out_spec))]


def layer_norm(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """Arguments of `models.layers.layer_norm`: images' values, scale, bias, epsilon."""
    value, scale, bias, epsilon = inputs
    names = [graph.name(graph.whole(x)) for x in (value, scale, bias)]
    epsilon = float(epsilon.known)
    return [result(graph, equation, "LayerNormalization", *names, axis=-1, epsilon=epsilon)]


def along_last(operator: str) -> Operator:
    """An operator of the last axis."""

    def write(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
        return [result(graph, equation, operator, graph.name(graph.whole(inputs[0])), axis=-1)]

    return write


# For all of a function, by its name in this library and in JAX.
NAMED: dict[str, Operator] = {
    "softmax": along_last("Softmax"),
    "layer_norm": layer_norm,
    "gelu_erf": chain(("Gelu",)),
    "hard_silu": chain(("HardSwish",)),
    "relu": chain(("Relu",)),
}


OPERATORS: dict[str, Operator] = {
    **{name: broadcasting(operator) for name, operator in onnx_elementwise.ELEMENTWISE.items()},
    **{name: lambda graph, equation, inputs: list(inputs) for name in SAME},
    "ne": onnx_elementwise.not_equal,
    "erfc": onnx_elementwise.one_minus_erf,
    "rem": broadcasting("Mod", fmod=1),  # of the dividend's sign
    "rsqrt": chain(("Sqrt",), ("Reciprocal",)),
    "log1p": chain(("Add", 1), ("Log",)),
    "expm1": chain(("Exp",), ("Sub", 1)),
    "square": onnx_elementwise.times_itself,
    "integer_pow": onnx_elementwise.times_itself,
    "select_n": onnx_elementwise.select,
    "clamp": onnx_elementwise.clamp,
    "convert_element_type": onnx_elementwise.cast,
    "broadcast_in_dim": onnx_axes.broadcast,
    "reshape": onnx_axes.reshape,
    "squeeze": onnx_axes.squeeze,
    "transpose": onnx_axes.transpose,
    "concatenate": onnx_axes.concatenate,
    "stack": onnx_axes.stack,
    "pad": onnx_axes.pad,
    "rev": onnx_axes.reverse,
    "slice": onnx_axes.cut,
    "split": onnx_axes.split,
    "iota": onnx_axes.iota,
    "reduce_sum": reduced("ReduceSum"),
    "reduce_max": reduced("ReduceMax"),
    "reduce_min": reduced("ReduceMin"),
    "reduce_prod": reduced("ReduceProd"),
    "reduce_or": reduced("ReduceMax"),
    "reduce_and": reduced("ReduceMin"),
    "argmax": place_of_extreme("ArgMax"),
    "argmin": place_of_extreme("ArgMin"),
    "top_k": top_k,
    "dot_general": product,
    "conv_general_dilated": convolution,
    "gather": onnx_axes.gather,
}
