"""What the methods share that reduce at a few blocks: at which ones, and to how many tokens."""

import dataclasses
import math

from evovit_jax.errors import UserError
from evovit_jax.reduction import base
from evovit_jax.reduction.base import Backbone, Reducer, check_blocks, check_rate, check_score
from evovit_jax.reduction.knob import Knob, keep_rates
from evovit_jax.reduction.schedule import KEEP_RATE
from evovit_jax.reduction.tokens import TokenSet


@dataclasses.dataclass(frozen=True)
class LocatedFields(base.Fields):
    """Settings of every method that reduces at a few blocks.

    Attributes:
      keep_rate: share of the patch tokens reaching a location that it leaves, in (0, 1]; one
        number, or one a location.
      locations: the blocks that reduce; by default those after a quarter, a half and three
        quarters of the depth (3:6:9 in a network of 12 blocks), in a pyramid the middle one of
        the first stage and the first one of every other.
    """

    keep_rate: float | tuple[float, ...] = 0.7
    locations: int | tuple[int, ...] | None = None

    def __post_init__(self):
        check_rate("keep_rate", self.keep_rate)

    def blocks(self, backbone: Backbone) -> tuple[int, ...]:
        """The blocks that reduce.

        Raises:
          UserError: if the locations do not fit the network, or the keep rates the locations.
        """
        blocks, depth = self.locations, backbone.depth
        if blocks is None and backbone.is_pyramid:
            blocks = (backbone.stage_depths[0] // 2, *backbone.stage_starts[1:])
        elif blocks is None:
            blocks = tuple(sorted({quarter * depth // 4 for quarter in (1, 2, 3)}))
        elif isinstance(blocks, int):
            blocks = (blocks,)
        check_blocks("locations", blocks, depth)
        if isinstance(self.keep_rate, tuple) and len(self.keep_rate) != len(blocks):
            raise UserError(
                f"keep_rate has {len(self.keep_rate)} members for {len(blocks)} locations"
            )
        return blocks

    def check(self, backbone: Backbone) -> None:
        """Refuses locations, or numbers of keep rates, that do not fit the network."""
        self.blocks(backbone)

    def rate(self, location: int) -> float:
        """The keep rate at location number `location` (0 the first)."""
        return self.keep_rate[location] if isinstance(self.keep_rate, tuple) else self.keep_rate


@dataclasses.dataclass(frozen=True)
class RankedFields(LocatedFields):
    """Settings of a method that ranks tokens by class attention, or by what stands in its place.

    Attributes:
      score: what tokens are ranked by: "class", "received", "map", "key_norm" or "shift"
        (`AttentionRequest.score`), as far as the network has it; by default the network's first.
    """

    score: str | None = None

    def check(self, backbone: Backbone) -> None:
        """Refuses locations, keep rates and a score that do not fit the network."""
        super().check(backbone)
        check_score(self.score, backbone)


class Located(Reducer):
    """A method that reduces at a few blocks; the count is a share of the input's grid.

    Subclasses that round in another way override `count`.
    """

    knob = Knob("keep_rate", keep_rates)
    Fields = LocatedFields
    durations = KEEP_RATE

    @property
    def locations(self) -> tuple[int, ...]:
        """The blocks that reduce."""
        return self.fields.blocks(self.backbone)

    def location(self, block: int) -> int | None:
        """The number of the location at `block`, None where there is none."""
        return self.locations.index(block) if block in self.locations else None

    def share(self, location: int) -> float:
        """The share of a stage's patches that is left after location number `location`."""
        stage = self.backbone.stage(self.locations[location])
        so_far = [i for i in range(location + 1) if self.backbone.stage(self.locations[i]) == stage]
        if isinstance(self.fields.keep_rate, tuple):
            return math.prod(self.fields.rate(i) for i in so_far)
        return self.fields.keep_rate ** len(so_far)

    def grid_count(self, location: int, grid: tuple[int, int]) -> int:
        """`int(patches * keep_rate**(location + 1))` of the whole grid, at least one."""
        return max(1, int(grid[0] * grid[1] * self.share(location)))

    def count(self, location: int, tokens: TokenSet) -> int:
        """How many patch tokens location number `location` leaves of `tokens`."""
        return min(self.grid_count(location, tokens.grid), tokens.patches)

    def reduces(self, block: int, tokens: TokenSet) -> bool:
        """Whether `block` is a location that leaves fewer tokens than it gets."""
        location = self.location(block)
        return location is not None and self.count(location, tokens) < tokens.patches
