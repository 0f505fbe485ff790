"""ONNX's operators for JAX's operations, one function for each kind.

Tested in tests/exporting/onnx_test.py.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import onnx

from evovit_jax.exporting.onnx_graph import Graph, Operator, Shape, Unsupported, Value

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


def fixed(sizes: Any) -> bool:
    """Whether no size is that of the batch."""
    return all(isinstance(size, int) for size in sizes)


def result(graph: Graph, equation: Any, operator: str, *inputs: str, **attributes: Any) -> Value:
    """One node that computes the whole result of an equation."""
    shape = equation.outvars[0].aval.shape
    return Value(shape, shape, graph.node(operator, *inputs, **attributes)[0])


def broadcasting(operator: str) -> Operator:
    """An operator that broadcasts its inputs, one node."""

    def write(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
        if operator in ("And", "Or", "Not") and equation.outvars[0].aval.dtype != bool:
            raise Unsupported(f"{equation.primitive.name} of integers")
        shape = equation.outvars[0].aval.shape
        held = np.broadcast_shapes(*([1 if h == 1 else 2 for h in v.held] for v in inputs))
        held = tuple(1 if h == 1 else s for h, s in zip(held, shape, strict=True))
        (name,) = graph.node(operator, *map(graph.name, inputs))
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
    if len(cases) != 2 or equation.invars[0].aval.dtype != bool:
        raise Unsupported("select_n of more than two")
    # One condition for all elements has no axes of its own.
    return broadcasting("Where")(graph, equation, [_with_axes(graph, which, cases[0]), *cases[::-1]])


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
    return [_cast(graph, value, equation.params["new_dtype"])]


def _cast(graph: Graph, value: Value, dtype: Any) -> Value:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return Value(value.shape, value.held, graph.node("Cast", graph.name(value), to=kind)[0])


def broadcast(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """Only axes of size 1 are put in; that they are repeated is left to who reads them."""
    (value, *_), shape = inputs, equation.outvars[0].aval.shape
    places = dict(zip(equation.params["broadcast_dimensions"], value.held, strict=True))
    held = tuple(places.get(axis, 1) for axis in range(len(shape)))
    if value.known is not None:
        return [Value(shape, held, known=value.known.reshape(held))]
    name = value.name
    if missing := [axis for axis in range(len(shape)) if axis not in places]:
        (name,) = graph.node("Unsqueeze", name, graph.constant(missing, np.int64))
    return [Value(shape, held, name)]


def reshape(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    return [graph.reshaped(inputs[0], equation.outvars[0].aval.shape)]


def squeeze(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    (value,), gone = inputs, equation.params["dimensions"]
    axes = [axis for axis in range(len(value.shape)) if axis not in gone]
    shape, held = (tuple(sizes[axis] for axis in axes) for sizes in (value.shape, value.held))
    if value.known is not None:
        return [Value(shape, held, known=value.known.reshape(held))]
    (name,) = graph.node("Squeeze", value.name, graph.constant(gone, np.int64))
    return [Value(shape, held, name)]


def transpose(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    return [graph.transposed(inputs[0], equation.params["permutation"])]


def concatenate(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    names = [graph.name(graph.whole(value)) for value in inputs]
    return [result(graph, equation, "Concat", *names, axis=equation.params["dimension"])]


def stack(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    axis = equation.params["axis"]
    place = graph.constant([axis], np.int64)
    names = [graph.node("Unsqueeze", graph.name(graph.whole(x)), place)[0] for x in inputs]
    return [result(graph, equation, "Concat", *names, axis=axis)]


def pad(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    config = equation.params["padding_config"]
    if any(interior for *_, interior in config) or min(p for c in config for p in c) < 0:
        raise Unsupported("pad between elements, or by less than nothing")
    value, fill = graph.whole(inputs[0]), graph.name(inputs[1])
    pads = graph.constant([low for low, *_ in config] + [c[1] for c in config], np.int64)
    return [result(graph, equation, "Pad", graph.name(value), pads, fill)]


def cut(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    (value,), parameters = inputs, equation.params
    strides = parameters["strides"] or (1,) * len(value.shape)
    bounds = zip(parameters["start_indices"], parameters["limit_indices"], strides, strict=True)
    return [sliced(graph, value, equation.outvars[0].aval.shape, list(bounds))]


def sliced(graph: Graph, value: Value, shape: Shape, bounds: list[tuple]) -> Value:
    """From, up to and by how much along each axis; along some nothing is left out."""
    value = graph.whole(value)
    axes = [i for i, size in enumerate(value.shape) if bounds[i] != (0, size, 1)]
    if not axes:
        return value
    parts = [graph.constant([bounds[i][part] for i in axes], np.int64) for part in range(3)]
    first, last, steps = parts
    where = graph.constant(axes, np.int64)
    (name,) = graph.node("Slice", graph.name(value), first, last, where, steps)
    return Value(shape, shape, name)


def split(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    sizes = equation.params["sizes"]
    names = graph.node(
        "Split",
        graph.name(graph.whole(inputs[0])),
        graph.constant(sizes, np.int64),
        outputs=len(sizes),
        axis=equation.params["axis"],
    )
    shapes = [variable.aval.shape for variable in equation.outvars]
    return [Value(shape, shape, name) for shape, name in zip(shapes, names, strict=True)]


def reduced(operator: str) -> Operator:
    """An operator that leaves the axes out over which it goes."""

    def write(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
        axes = graph.constant(equation.params["axes"], np.int64)
        value = graph.whole(inputs[0])
        kind = equation.invars[0].aval.dtype
        if kind == bool:
            value = _cast(graph, value, np.int32)
        found = result(graph, equation, operator, graph.name(value), axes, keepdims=0)
        return [_cast(graph, found, bool) if kind == bool else found]

    return write


def place_of_extreme(operator: str) -> Operator:
    """The first place of the largest, or smallest, element."""

    def write(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
        (axis,) = equation.params["axes"]
        name = graph.name(graph.whole(inputs[0]))
        found = result(graph, equation, operator, name, axis=axis, keepdims=0)
        return [_cast(graph, found, equation.params["index_dtype"])]

    return write


def top_k(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    number = graph.constant([equation.params["k"]], np.int64)
    names = graph.node("TopK", graph.name(graph.whole(inputs[0])), number, outputs=2)
    values, index = (
        Value(variable.aval.shape, variable.aval.shape, name)
        for variable, name in zip(equation.outvars, names, strict=True)
    )
    return [values, _cast(graph, index, np.int32)]


def iota(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    shape, axis = equation.params["shape"], equation.params["dimension"]
    if not isinstance(shape[axis], int):
        raise Unsupported("iota over the batch")
    held = tuple(size if i == axis else 1 for i, size in enumerate(shape))
    known = np.arange(shape[axis], dtype=equation.params["dtype"]).reshape(held)
    return [Value(shape, held, known=known)]


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
        pads=[low for low, _ in parameters["padding"]] + [high for _, high in parameters["padding"]],
    )
    final = equation.outvars[0].aval.shape
    shape = tuple(final[axis] for axis in layout.out_spec)
    return [graph.transposed(Value(shape, shape, name), np.argsort(layout.out_spec))]


def gather(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    """Elements, or rows of them, that an index names, all of them in range."""
    axes, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    value, index = graph.whole(inputs[0]), inputs[1]
    shape = equation.outvars[0].aval.shape
    same = tuple(axes.operand_batching_dims)
    named = tuple(axes.start_index_map)
    rest = [i for i in range(len(value.shape)) if i not in (*same, *named)]
    whole = all(sizes[i] == value.shape[i] for i in rest)
    if index.known is not None and index.known.ndim == 1 and not same:
        return [_part(graph, equation, value, index.known, shape)]
    if not whole or set(named) != set(axes.collapsed_slice_dims):
        raise Unsupported("gather of parts")
    if tuple(axes.start_indices_batching_dims) != tuple(range(len(same))):
        raise Unsupported("gather along other axes")
    value = graph.transposed(value, [*same, *named, *rest])
    index = _cast(graph, graph.whole(index), np.int64)
    (name,) = graph.node("GatherND", graph.name(value), index.name, batch_dims=len(same))
    there = (*index.shape[:-1], *(value.shape[len(same) + len(named) :]))
    offsets = [len(index.shape) - 1 + i for i in range(len(rest))]
    others = iter(range(len(index.shape) - 1))
    inner = dict(zip(axes.offset_dims, offsets, strict=True))
    order = [inner[i] if i in inner else next(others) for i in range(len(shape))]
    return [graph.transposed(Value(there, there, name), order)]


def _part(graph: Graph, equation: Any, value: Value, first: np.ndarray, shape: Shape) -> Value:
    """One part of an array, at a place that is known."""
    axes, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    starts = dict(zip(axes.start_index_map, first.tolist(), strict=True))
    bounds = [
        (starts[i], starts[i] + size, 1) if i in starts else (0, size, 1)
        for i, size in enumerate(sizes)
    ]
    found = sliced(graph, value, tuple(sizes), bounds)
    return graph.reshaped(found, shape)


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
OPERATORS: dict[str, Callable[[Graph, Any, list[Value]], list[Value]]] = {
    **{name: broadcasting(operator) for name, operator in ELEMENTWISE.items()},
    **{name: lambda graph, equation, inputs: list(inputs) for name in SAME},
    "ne": not_equal,
    "erfc": one_minus_erf,
    "rsqrt": chain(("Sqrt",), ("Reciprocal",)),
    "log1p": chain(("Add", 1), ("Log",)),
    "expm1": chain(("Exp",), ("Sub", 1)),
    "square": times_itself,
    "integer_pow": times_itself,
    "select_n": select,
    "clamp": clamp,
    "convert_element_type": cast,
    "broadcast_in_dim": broadcast,
    "reshape": reshape,
    "squeeze": squeeze,
    "transpose": transpose,
    "concatenate": concatenate,
    "stack": stack,
    "pad": pad,
    "slice": cut,
    "split": split,
    "iota": iota,
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
    "gather": gather,
}
