"""Tensors that a file packs in another way than as one or more tensors for each variable.

What a `Repacking` does to a file's tensors is done on reading, before the links of a `Scheme` look
for theirs, and undone on writing.
"""

from collections.abc import Sequence

import numpy as np

from evovit_jax.errors import UserError
from evovit_jax.weights.layouts import Repacking, Tensors, square_side, substitute


def prefixed(usual: str, others: Sequence[str], anchor: str) -> Repacking:
    """Names whose first part differs from file to file.

    Args:
      usual: the first part that links have, and that is written.
      others: what files may have instead; "" where they may have nothing.
      anchor: what follows it in the name of a tensor that every such file has.
    """

    def unpack(tensors: Tensors) -> Tensors:
        found = next((first for first in (usual, *others) if first + anchor in tensors), usual)
        if found == usual:
            return tensors
        return {
            usual + name.removeprefix(found) if name.startswith(found) else name: value
            for name, value in tensors.items()
        }

    return Repacking(unpack)


def split(name: str, parts: Sequence[str | None], shares: Sequence[int]) -> Repacking:
    """A tensor that lies in the file as one and is several tensors of links.

    Args:
      name: of the tensor.
      parts: the names of its pieces along the first axis; None for one without a meaning, which is
        written as zeros.
      shares: their relative sizes.
    """
    ends = np.cumsum(shares)

    def unpack(tensors: Tensors) -> Tensors:
        value = tensors.get(name)
        if value is None or value.ndim == 0 or len(value) % ends[-1]:
            return tensors
        pieces = np.split(value, [int(end) * len(value) // int(ends[-1]) for end in ends[:-1]])
        rest = {other: tensor for other, tensor in tensors.items() if other != name}
        return rest | {part: piece for part, piece in zip(parts, pieces, strict=True) if part}

    def pack(tensors: Tensors) -> Tensors:
        first = next(i for i, part in enumerate(parts) if part)
        unit = len(tensors[parts[first]]) // shares[first]
        pieces = [
            tensors[part]
            if part
            else np.zeros((share * unit, *tensors[parts[first]].shape[1:]), np.float32)
            for part, share in zip(parts, shares, strict=True)
        ]
        rest = {other: tensor for other, tensor in tensors.items() if other not in parts}
        return rest | {name: np.concatenate(pieces)}

    return Repacking(unpack, pack)


def stacked(blocks: str, block: str) -> Repacking:
    """Blocks that a file may hold in one tensor, one after another along the first axis.

    Args:
      blocks: the part of such names that stands for all blocks, "/encoderblock/".
      block: the same of names of one block, "/encoderblock_{}/"; these are written.
    """

    def unpack(tensors: Tensors) -> Tensors:
        found: Tensors = {}
        for name, value in tensors.items():
            if blocks in name and value.ndim:
                found |= {name.replace(blocks, block.format(i)): x for i, x in enumerate(value)}
            else:
                found[name] = value
        return found

    return Repacking(unpack)


def folded_class_position(token: str, positions: str) -> Repacking:
    """A class token and its position, first of all positions, where the network has their sum."""

    def unpack(tensors: Tensors) -> Tensors:
        learned, first = tensors.get(positions), tensors.get(token)
        if learned is None or first is None or learned.ndim != 3:
            return tensors
        if first.shape != (1, 1, learned.shape[2]) or not square_side(learned.shape[1] - 1):
            return tensors
        both = first.astype(np.float32) + learned[:, :1].astype(np.float32)
        return tensors | {token: both, positions: learned[:, 1:]}

    def pack(tensors: Tensors) -> Tensors:
        none = np.zeros_like(tensors[token])
        return tensors | {positions: np.concatenate([none, tensors[positions]], axis=1)}

    return Repacking(unpack, pack)


def without_bias(bias: str, weight: str, axis: int) -> Repacking:
    """A linear map without a bias in the file, where the network has one: zero.

    Args:
      bias: what links call it.
      weight: the tensor whose `axis` is as long.
      axis: see `weight`.
    """

    def unpack(tensors: Tensors) -> Tensors:
        if weight not in tensors or tensors[weight].ndim <= axis:
            return tensors
        return tensors | {bias: np.zeros(tensors[weight].shape[axis], np.float32)}

    def pack(tensors: Tensors) -> Tensors:
        if np.any(tensors.get(bias, 0)):
            raise UserError(f"such files have no place for a bias beside {weight}, and it is not 0")
        return {name: value for name, value in tensors.items() if name != bias}

    return Repacking(unpack, pack)


def zeros(names: Sequence[str], size: int, otherwise: str) -> Repacking:
    """Tensors of zeros in the file, for which the network has no variables.

    Args:
      names: of the tensors.
      size: of each.
      otherwise: what to do about a file where they are not zero.
    """

    def unpack(tensors: Tensors) -> Tensors:
        for name in names:
            if np.any(tensors.get(name, 0)):
                raise UserError(f"tensor {name} is not zero, and the model has none: {otherwise}")
        return {name: value for name, value in tensors.items() if name not in names}

    def pack(tensors: Tensors) -> Tensors:
        return tensors | {name: np.zeros(size, np.float32) for name in names}

    return Repacking(unpack, pack)


def written(extra: Tensors) -> Repacking:
    """Tensors that readers of such files ask for and that mean nothing here."""
    return Repacking(pack=lambda tensors: tensors | extra)


def renamed(*renames: tuple[str, str]) -> Repacking:
    """Other names that files may have, by (pattern, replacement) of a whole name."""

    def unpack(tensors: Tensors) -> Tensors:
        return {substitute(name, renames): value for name, value in tensors.items()}

    return Repacking(unpack)
