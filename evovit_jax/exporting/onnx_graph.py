"""An ONNX graph that is being written: its nodes, its constants, and what the values are.

The size of the batch, the only one that is unknown, is hardly ever computed: a shape that has it is
written with -1 in its place. What depends on no image is kept as an array, and that a value is
repeated along an axis is left to the operators that broadcast anyway.

Tested in tests/exporting/onnx_model_test.py.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx

INPUT = "images"
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

    def transposed(self, value: Value, order: Iterable[Any]) -> Value:
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


def result(graph: Graph, equation: Any, operator: str, *inputs: str, **attributes: Any) -> Value:
    """One node that computes the whole result of an equation."""
    shape = equation.outvars[0].aval.shape
    return Value(shape, shape, graph.node(operator, *inputs, **attributes)[0])
