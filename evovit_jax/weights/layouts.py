"""Links between the variables of a model here and the tensors of a PyTorch state dict.

A family of checkpoints is described once, as a `Scheme`: for every variable one `Link` with the
names of its tensors and how they are laid out. The same description reads and writes, so that a
round trip gives back every bit.

tests/weights/state_dict_test.py reads and writes with every link.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from flax import nnx

from evovit_jax.errors import UserError
from evovit_jax.models.variables import variables

Tensors = dict[str, np.ndarray]
# (pattern, replacement) of a whole name; the replacement as `re.sub` takes it.
Renames = Iterable[tuple[str, str | Callable]]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The same values on both sides: ours from PyTorch's, and back.

    Attributes:
      theirs: the shape in PyTorch of a variable of our shape.
      from_torch: the array in our layout.
      to_torch: the array in PyTorch's layout.
    """

    theirs: Callable[[tuple[int, ...]], tuple[int, ...]]
    from_torch: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


def _same(value):
    return value


PLAIN = Layout(_same, _same, _same)
# (in, out) here, (out, in) there.
LINEAR = Layout(lambda s: s[::-1], np.transpose, np.transpose)
# (1, ...) here, without that axis there; twice for a vector that is (1, 1, d) here.
ROWS = Layout(lambda s: s[1:], lambda a: a[None], lambda a: a[0])
VECTOR = Layout(lambda s: s[2:], lambda a: a[None, None], lambda a: a[0, 0])
# (height, width, in, out) here, (out, in, height, width) there.
CONV = Layout(
    lambda s: (s[3], s[2], s[0], s[1]),
    lambda a: a.transpose(2, 3, 1, 0),
    lambda a: a.transpose(3, 2, 0, 1),
)


def as_convolution(patch: int, channels: int) -> Layout:
    """A linear map of flattened patches here, a convolution whose stride is its kernel there."""
    return Layout(
        lambda s: (s[1], channels, patch, patch),
        lambda a: a.transpose(2, 3, 1, 0).reshape(patch * patch * channels, -1),
        lambda a: a.reshape(patch, patch, channels, -1).transpose(3, 2, 0, 1),
    )


def reshaped(there: tuple[int, ...], here: tuple[int, ...]) -> Layout:
    """The same values in the same order, of another shape."""
    return Layout(lambda _: there, lambda a: a.reshape(here), lambda a: a.reshape(there))


@dataclasses.dataclass(frozen=True)
class Link:
    """One variable and the tensors that it is made of.

    Attributes:
      path: of the variable, "blocks/0/attn/qkv/kernel".
      names: of the tensors; several lie one after another along `axis` of the layout there.
      layout: between the two sides.
      shares: relative sizes of several tensors; one number if they are equal.
      optional: whether a checkpoint may be without it (training heads, counters).
      axis: along which several tensors lie one after another.
      class_axis: of the tensor of a head, along which the classes are.
    """

    path: str
    names: tuple[str, ...]
    layout: Layout = PLAIN
    shares: tuple[int, ...] = (1,)
    optional: bool = False
    axis: int = 0
    class_axis: int = 0

    def shapes(self, ours: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The shape of each tensor, for a variable of shape `ours`."""
        whole = self.layout.theirs(ours)
        if len(self.names) == 1:
            return [whole]
        shares = self.shares * len(self.names) if len(self.shares) == 1 else self.shares
        unit = whole[self.axis] // sum(shares)
        before, after = whole[: self.axis], whole[self.axis + 1 :]
        return [(*before, share * unit, *after) for share in shares]

    def read(self, tensors: Sequence[np.ndarray]) -> np.ndarray:
        """The variable's value."""
        whole = tensors[0] if len(tensors) == 1 else np.concatenate(tensors, self.axis)
        return np.asarray(self.layout.from_torch(whole), order="C")

    def write(self, value: np.ndarray) -> Tensors:
        """The tensors by name."""
        whole = self.layout.to_torch(value)
        if len(self.names) == 1:
            parts = [whole]
        else:
            ends = np.cumsum([shape[self.axis] for shape in self.shapes(value.shape)])
            parts = np.split(whole, ends[:-1], self.axis)
        return {
            name: np.asarray(part, order="C") for name, part in zip(self.names, parts, strict=True)
        }


@dataclasses.dataclass(frozen=True)
class Repacking:
    """A way from a file's tensors to those of the links, and back (see `repacking`).

    Attributes:
      unpack: on reading; what it does not know, or what is not there, stays as it is.
      pack: on writing.
    """

    unpack: Callable[[Tensors], Tensors] = _same
    pack: Callable[[Tensors], Tensors] = _same


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How a family of checkpoints stores one model.

    Attributes:
      links: one for every variable of the model.
      repackings: what is done to a file's tensors, in this order, before the links look for theirs.
      buffers: tensors that follow from the architecture; written, and checked where present.
      aliases: further names of a tensor by its first name; written, and checked where present.
      heads: pattern of the paths whose size is the number of classes.
      resize: by path of a variable whose size follows the image's, how a tensor made for another
        image size becomes one of the given shape.
      trained_with: settings of the reducer that such checkpoints were trained with.
      spare: pattern of tensors that the model does not need: of a reducer that it does not have, of
        a text tower, of training alone.
      hints: what to do about variables that a checkpoint lacks, by a pattern of their paths.
    """

    links: tuple[Link, ...]
    repackings: tuple[Repacking, ...] = ()
    buffers: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    aliases: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    heads: str = r"(head|head_dist|head_cls|head_cls_dist|aux_head)/.*"
    resize: Mapping[str, Callable[[np.ndarray, tuple[int, ...]], np.ndarray]] = dataclasses.field(
        default_factory=dict
    )
    trained_with: Mapping[str, object] = dataclasses.field(default_factory=dict)
    spare: str = ""
    hints: Mapping[str, str] = dataclasses.field(default_factory=dict)


LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
    "count": "num_batches_tracked",
}


def torch_name(path: str) -> str:
    """The name of a variable's tensor if all modules have the same names on both sides."""
    *modules, leaf = path.split("/")
    return ".".join([*modules, LEAVES.get(leaf, leaf)])


def default_link(path: str, shape: tuple[int, ...], name: str | None = None) -> Link:
    """The link of a variable that is one tensor.

    Args:
      path: of the variable.
      shape: of the variable; its rank tells a linear map from a convolution.
      name: of the tensor; None if all modules have the same names on both sides.
    """
    leaf = path.rpartition("/")[2]
    layout = {2: LINEAR, 4: CONV}[len(shape)] if leaf == "kernel" else PLAIN
    return Link(path, (name or torch_name(path),), layout, optional=leaf == "count")


def substitute(name: str, renames: Renames) -> str:
    """`name` after all (pattern, replacement) whose pattern matches the whole of it, in order."""
    for pattern, replacement in renames:
        name = re.sub(rf"^{pattern}$", replacement, name)
    return name


def renamed_scheme(model: nnx.Module, renames: Renames) -> Scheme:
    """The scheme of a model whose modules have the same names on both sides, up to `renames`."""
    return Scheme(
        tuple(
            default_link(path, variable.shape, substitute(torch_name(path), renames))
            for path, variable in variables(model).items()
        )
    )


def check_same(name: str, value: np.ndarray, expected: np.ndarray, why: str) -> None:
    """Raises UserError unless two tensors are equal."""
    if value.shape != expected.shape or not np.array_equal(value, expected, equal_nan=True):
        raise UserError(f"tensor {name} is not what it must be ({why}): the file is damaged")


def square_side(count: int) -> int:
    """The side of a square grid of `count` places, 0 if there is none."""
    side = math.isqrt(count)
    return side if side * side == count else 0
