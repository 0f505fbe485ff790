"""Blocks that work on whole maps, as ConvNeXt's and Swin's: what a reducer may know of them.

Such a block has two halves. The first mixes places (a depthwise convolution, attention within
windows) and needs a token in every place of the map, so that no token may leave for good. The
second is a feed-forward, which changes each token on its own: some tokens may take another path
there, and be back in their places at the block's end.

Between its halves a block keeps aside, as `shortcut`, what the feed-forward is added to. A reducer
that takes it away gets the feed-forward alone, and adds it where it belongs.

Tested in tests/reduction/dynamic_spatial_test.py.
"""

import dataclasses

from jaxtyping import Array, Float

from evovit_jax.errors import UserError
from evovit_jax.reduction.stochastic_depth import dropped_branch
from evovit_jax.reduction.tokens import TokenSet


@dataclasses.dataclass(frozen=True)
class MapBlocks:
    """How the blocks of a network over maps are made.

    Attributes:
      mixing: what mixes the places of a map, in the plural: "depthwise convolutions".
      adds_to: what the feed-forward is added to: "input", that of the block (ConvNeXt), or "mixed",
        the map after the first half, which has its own residual (Swin).
      drop_path_rates: stochastic depth of each block's feed-forward; the branches of block i have
        numbers up to `2 i + 1`.
      norm_eps: epsilon of the LayerNorms.
      layer_scale: what the factors of a feed-forward's channels start from; None without such.
      drops_odd: whether a last row or column without a neighbour is lost between two stages.
      dtype: compute dtype of the blocks.
    """

    mixing: str
    adds_to: str
    drop_path_rates: tuple[float, ...]
    norm_eps: float
    layer_scale: float | None = None
    drops_odd: bool = False
    dtype: str = "float32"

    def refuse(self, reduction: str) -> None:
        """Refuses a reduction that takes tokens out of their places.

        Raises:
          UserError: always.
        """
        raise UserError(
            f"reduction {reduction} does not run in this network: the {self.mixing} in its blocks "
            "need a token in every place of the map"
        )


def with_feed_forward(
    tokens: TokenSet, branch: Float[Array, "b n d"], rate: float, number: int
) -> TokenSet:
    """The set at a block's end: the shortcut plus a feed-forward, or this alone without a shortcut.

    Args:
      tokens: the set that went into the feed-forward.
      branch: what came out of it.
      rate: of stochastic depth.
      number: of the residual branch in the network.
    """
    branch = dropped_branch(tokens, branch, rate, number)
    shortcut = tokens.aside.get("shortcut")
    x = branch if shortcut is None else shortcut + branch
    return tokens.replace(x=x).put_aside(shortcut=None)
