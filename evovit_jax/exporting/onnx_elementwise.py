"""ONNX's operators for what JAX does to each element; see `onnx_operators`.

Tested in tests/exporting/onnx_model_test.py.
"""

from typing import Any

import numpy as np
import onnx

from evovit_jax.exporting.onnx_graph import Graph, Operator, Unsupported, Value

# Operations with an operator that computes the same of arrays that broadcast.
ELEMENTWISE = {
    "abs": "Abs",
    "add": "Add",
    "add_any": "Add",
    "and": "And",
    "ceil": "Ceil",
    "cos": "Cos",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "not": "Not",
    "or": "Or",
    "pow": "Pow",
    "sign": "Sign",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tanh": "Tanh",
}


def broadcasting(operator: str, **attributes: Any) -> Operator:
    """An operator that broadcasts its inputs, one node."""

    def write(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
        if operator in ("And", "Or", "Not") and equation.outvars[0].aval.dtype != np.bool_:
            raise Unsupported(f"{equation.primitive.name} of integers")
        shape = equation.outvars[0].aval.shape
        held = np.broadcast_shapes(*([1 if h == 1 else 2 for h in v.held] for v in inputs))
        held = tuple(1 if h == 1 else s for h, s in zip(held, shape, strict=True))
        (name,) = graph.node(operator, *map(graph.name, inputs), **attributes)
        return [Value(shape, held, name)]

    return write


def chain(*operators: tuple) -> Operator:
    """Operators one after another: each a name, and the constants that follow the value."""

    def write(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
        (value,) = inputs
        dtype, name = equation.invars[0].aval.dtype, graph.name(value)
        for operator, *others in operators:
            (name,) = graph.node(operator, name, *(graph.constant(x, dtype) for x in others))
        return [Value(value.shape, value.held, name)]

    return write


def not_equal(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    (equal,) = broadcasting("Equal")(graph, equation, inputs)
    return [Value(equal.shape, equal.held, graph.node("Not", equal.name)[0])]


def one_minus_erf(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    (erf,) = graph.node("Erf", graph.name(inputs[0]))
    (name,) = graph.node("Sub", graph.constant(1, equation.invars[0].aval.dtype), erf)
    return [Value(inputs[0].shape, inputs[0].held, name)]


def times_itself(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    power = equation.params.get("y", 2)
    name = graph.name(inputs[0])
    if power == 2:
        (name,) = graph.node("Mul", name, name)
    else:
        exponent = graph.constant(power, equation.invars[0].aval.dtype)
        (name,) = graph.node("Pow", name, exponent)
    return [Value(inputs[0].shape, inputs[0].held, name)]


def select(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    which, *cases = inputs
    if len(cases) != 2 or equation.invars[0].aval.dtype != np.bool_:
        raise Unsupported("select_n of more than two")
    # One condition for all elements has no axes of its own.
    return broadcasting("Where")(
        graph, equation, [_with_axes(graph, which, cases[0]), *cases[::-1]]
    )


def _with_axes(graph: Graph, value: Value, like: Value) -> Value:
    if value.shape or not like.shape:
        return value
    ones = (1,) * len(like.shape)
    return Value(like.shape, ones, graph.reshaped(value, ones).name, value.known)


def clamp(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    low, value, high = inputs
    (name,) = graph.node("Max", graph.name(value), graph.name(low))
    (name,) = graph.node("Min", name, graph.name(high))
    return [Value(value.shape, value.held, name)]


def cast(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    (value,) = inputs
    return [converted(graph, value, equation.params["new_dtype"])]


def converted(graph: Graph, value: Value, dtype: Any) -> Value:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return Value(value.shape, value.held, graph.node("Cast", graph.name(value), to=kind)[0])
