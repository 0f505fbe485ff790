"""The one setting that makes a method's network cheaper or dearer, and the values it may have.

Tested in tests/benchmarking/equal_cost_test.py.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Knob:
    """What a search for a network of a given cost varies.

    Attributes:
      field: of the method's `Fields`.
      values: of a `Backbone`, the values that the field may have in it, in the order of the cost of
        the network, the cheapest first. The dense network is not among them.
    """

    field: str
    values: Callable[[Any], Sequence[Any]]


def keep_rates(backbone: Any) -> tuple[float, ...]:
    """Shares of the tokens, in thousandths."""
    del backbone
    return tuple(thousandth / 1000 for thousandth in range(1, 1000))


def numbers_leaving(backbone: Any) -> tuple[int, ...]:
    """Numbers of tokens that leave in a block, the largest first: at most half of the patches."""
    rows, columns = backbone.grid
    return tuple(range(max(1, rows * columns // 2), 0, -1))
