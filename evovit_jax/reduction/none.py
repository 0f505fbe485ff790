"""No reduction: the network as it is without this library's methods.

Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
ICLR 2021 (arXiv:2010.11929).

Tested in tests/reduction/methods_test.py.
"""

from evovit_jax.reduction.base import Reducer
from evovit_jax.reduction.card import NOT_NEEDED, Card


class Dense(Reducer):
    """Every token in every block."""

    card = Card(
        title="no reduction",
        paper="2010.11929",
        summary="every token in every block",
        training=NOT_NEEDED,
        score="",
    )
    not_in_pyramids = None
    keeps_map = True
