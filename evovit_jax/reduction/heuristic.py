"""Radial heuristics: the tokens within a radius of the image's centre stay, whatever they show.

The fixed patterns of Haurum et al., "Which Tokens to Use? Investigating Token Reduction in Vision
Transformers", ICCVW 2023 (arXiv:2308.04657), the measure of what a learned selection is worth.
A token's radius is the l1, l2 or linf norm of its place, n rows (or columns) being numbered by
`linspace(-n // 2, n // 2, n)` in float32, which is lopsided for odd n. Before a location the
tokens with a radius up to a threshold stay:

- by counts: the threshold, among the radii that occur, whose number of tokens is nearest to
  `int(patches * keep_rate**k)`, the smaller one on ties (140, 96 and 68 of 196 at keep rate 0.7
  with l2). Float32 radii may split rings that are equal in exact arithmetic;
- `contiguous`: every block from the first to the last location has a threshold of its own, falling
  linearly from the corner's radius before the first to `min_radius` after the last; no keep rate.

The tokens leave the sequence. With `masked` they stay in it and nothing attends to them, as in the
study's code, which saves no time.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from evovit_jax.errors import UserError, suggestion
from evovit_jax.reduction.at_locations import Located, LocatedFields
from evovit_jax.reduction.attention_request import key_mask
from evovit_jax.reduction.base import NOTHING_ASKED, AttentionRequest
from evovit_jax.reduction.card import OPTIONAL, Card
from evovit_jax.reduction.tokens import TokenSet, keep, mask_out

NORMS = {
    "l1": lambda x, y: np.abs(x) + np.abs(y),
    "l2": lambda x, y: np.sqrt(x * x + y * y),
    "linf": lambda x, y: np.maximum(np.abs(x), np.abs(y)),
}


@dataclasses.dataclass(frozen=True)
class HeuristicFields(LocatedFields):
    """Settings of the radial heuristics beside those of `LocatedFields`.

    Attributes:
      pattern: "l1", "l2" or "linf".
      contiguous: whether every block between the first and the last location reduces.
      min_radius: with `contiguous`, the threshold after the last location.
      masked: whether tokens are masked instead of taken out.
    """

    pattern: str = "l2"
    contiguous: bool = False
    min_radius: float = 1.0
    masked: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.pattern not in NORMS:
            hint = suggestion(self.pattern, list(NORMS))
            raise UserError(f"unknown heuristic pattern {self.pattern!r}; {hint}")
        if self.min_radius <= 0:
            raise UserError(f"heuristic min_radius must be above 0, got {self.min_radius}")


class Heuristic(Located):
    """Pruning by the distance from the image's centre."""

    card = Card(
        title="radial heuristics",
        paper="2308.04657",
        summary="keeps a disc around the centre",
        training=OPTIONAL,
        score="position",
        equal_to=("JoakimHaurum/TokenReduction",),
        notes="MIT",
    )
    Fields = HeuristicFields

    @property
    def locations(self) -> tuple[int, ...]:
        """The blocks that reduce."""
        named = super().locations
        if not self.fields.contiguous:
            return named
        return tuple(range(named[0], named[-1] + 1))

    def inside(self, location: int, grid: tuple[int, int]) -> Bool[np.ndarray, " p"]:
        """Which patch tokens of `grid`, in raster order, location number `location` leaves."""
        radius = radii(grid, self.fields.pattern)
        if self.fields.contiguous:
            # One step beyond the locations on both sides; the first block of all has no step out.
            steps = linspace(radius[0], np.float32(self.fields.min_radius), len(self.locations) + 2)
            # The innermost always stay: on a grid of even sides none has radius 0.
            return radius <= max(steps[location + (self.locations[0] > 0)], radius.min())
        wanted = self.grid_count(location, grid)
        candidates = np.unique(radius)
        counts = (radius[None] <= candidates[:, None]).sum(axis=1)
        return radius <= candidates[np.abs(counts - wanted).argmin()]

    def before_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """Tokens out of the radius leave, or are masked."""
        location = self.location(block)
        if location is None:
            return tokens
        inside = self.inside(location, tokens.grid)
        if self.fields.masked:
            valid = jnp.pad(jnp.asarray(inside), (tokens.prefix, 0), constant_values=True)
            return mask_out(tokens, jnp.broadcast_to(valid, tokens.x.shape[:2]), block)
        if location:
            inside = inside[self.inside(location - 1, tokens.grid)]  # of those that are left
        index = jnp.asarray(np.flatnonzero(inside), jnp.int32)
        return keep(tokens, jnp.broadcast_to(index, (tokens.x.shape[0], len(index))), block)

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """The mask, where there is one."""
        del block
        if tokens.mask is None:
            return NOTHING_ASKED
        return AttentionRequest(bias=key_mask(tokens.mask))


def radii(grid: tuple[int, int], pattern: str) -> Float[np.ndarray, " p"]:
    """The radius of each token of `grid` in raster order, float32."""
    rows, columns = (linspace(np.float32(-n // 2), np.float32(n // 2), n) for n in grid)
    return NORMS[pattern](rows[:, None], columns[None, :]).reshape(-1)


def linspace(start: np.float32, stop: np.float32, count: int) -> Float[np.ndarray, " n"]:
    """Evenly spaced float32 numbers, each half reckoned from its own end (exactly symmetric)."""
    if count == 1:
        return np.array([start], np.float32)
    step = np.float32(stop - start) / np.float32(count - 1)
    index = np.arange(count, dtype=np.float32)
    lower, upper = start + step * index, stop - step * index[::-1]
    return np.where(index < count // 2, lower, upper).astype(np.float32)
