"""ONNX's operators for what JAX does to axes: shapes, parts, places; see `onnx_operators`.

Tested in tests/exporting/onnx_model_test.py.
"""

from typing import Any

import numpy as np

from evovit_jax.exporting.onnx_elementwise import converted
from evovit_jax.exporting.onnx_graph import Graph, Shape, Unsupported, Value, result


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
    pads = graph.constant([sides[end] for end in (0, 1) for sides in config], np.int64)
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


def iota(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    shape, axis = equation.params["shape"], equation.params["dimension"]
    if not isinstance(shape[axis], int):
        raise Unsupported("iota over the batch")
    held = tuple(size if i == axis else 1 for i, size in enumerate(shape))
    known = np.arange(shape[axis], dtype=equation.params["dtype"]).reshape(held)
    return [Value(shape, held, known=known)]


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
    value = graph.transposed(value, [*same, *named, *rest])
    # Of the index's axes first those that go along with the operand's.
    along = list(axes.start_indices_batching_dims)
    first = [*along, *(i for i in range(len(index.shape) - 1) if i not in along)]
    index = graph.transposed(graph.whole(index), [*first, len(first)])
    index = converted(graph, index, np.int64)
    (name,) = graph.node("GatherND", graph.name(value), index.name, batch_dims=len(same))
    there = (*index.shape[:-1], *value.shape[len(same) + len(named) :])
    inner = {axis: len(first) + i for i, axis in enumerate(axes.offset_dims)}
    others = iter(range(len(first)))
    order = [inner[i] if i in inner else first.index(next(others)) for i in range(len(shape))]
    return [graph.transposed(Value(there, there, name), order)]


def reverse(graph: Graph, equation: Any, inputs: list[Value]) -> list[Value]:
    value, axes = graph.whole(inputs[0]), equation.params["dimensions"]
    last, before_first = [-1] * len(axes), [-(2**31)] * len(axes)
    parts = [graph.constant(x, np.int64) for x in (last, before_first, axes, last)]
    return [result(graph, equation, "Slice", graph.name(value), *parts)]


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
