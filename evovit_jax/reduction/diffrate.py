"""DiffRate: in each block drops some tokens and merges others, at rates that were learned.

Chen et al., "DiffRate: Differentiable Compression Rate for Efficient Vision Transformers", ICCV
2023 (arXiv:2305.17997), written from the paper. Between attention and feed-forward of each block:

1. Tokens are put in the falling order of the class token's attention (the mean over heads), and
   the first `prune_kept` stay, the class token counted (Section 3.1).
2. Those from the `merge_kept`-th on merge into the first `merge_kept`: each into the most similar
   by the cosine of the tokens themselves, the class token excepted, as plain means.
3. A token's size is its own and, of what goes into it, size times cosine; attention is in
   proportion to sizes (`+ log size`) in every block, as in ToMe.

`rates` names a published table (`diffrate_s_2.9g`; `diffrate_tables.TABLES` has all). Images of
another size keep the same shares of their patches. Without rates and counts, networks of any depth
take the shares of `diffrate_s_2.9g`, interpolated over the depth. A calibration learns rates for a
network, images and `gmacs` (rate_search.py). Two class tokens both stay, and
the first one's attention counts.

Published, without training the network: DeiT-S at 2.9 GMACs 79.54, DeiT-B at 11.5 81.50, MAE ViT-L
at 42.3 85.66 (dense 79.8, 81.8, 85.9).
"""

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from evovit_jax import flops
from evovit_jax.errors import UserError, suggestion
from evovit_jax.reduction import base
from evovit_jax.reduction.base import (
    AttentionRequest,
    AttentionView,
    Backbone,
    Batches,
    Reducer,
    check_score,
)
from evovit_jax.reduction.card import NOT_NEEDED, Card
from evovit_jax.reduction.diffrate_tables import TABLES
from evovit_jax.reduction.knob import Knob
from evovit_jax.reduction.matching import (
    added_sizes,
    best_edges,
    merge_tail,
    moved,
    pooled,
    products,
    sizes_of,
    unit,
)
from evovit_jax.reduction.rate_search import search
from evovit_jax.reduction.tokens import TokenSet, keep, order_by

DEFAULT_TABLE = "diffrate_s_2.9g"
# Whose rates are for networks of which width.
FAMILIES = {192: "t", 384: "s", 768: "b", 1024: "mae_l", 1280: "mae_h"}
LISTS = ("prune_kept", "merge_kept")


@dataclasses.dataclass(frozen=True)
class DiffRateFields(base.Fields):
    """Settings of DiffRate.

    Attributes:
      rates: the name of a published table, for networks of its depth.
      prune_kept: instead: how many tokens, the class token counted, pruning leaves in each block.
      merge_kept: with it: how many of these merging leaves; by default all.
      proportional_attention: whether attention counts a token by its size.
      score: what tokens are ranked by (`AttentionRequest.score`); by default the network's first.
      gmacs: of a calibration: the GMACs that its rates are to have.
    """

    rates: str | None = None
    prune_kept: tuple[int, ...] | None = None
    merge_kept: tuple[int, ...] | None = None
    proportional_attention: bool = True
    score: str | None = None
    gmacs: float | None = None

    def __post_init__(self):
        if self.rates is not None and self.rates not in TABLES:
            hint = suggestion(self.rates, list(TABLES))
            raise UserError(f"diffrate has no published rates {self.rates!r}; {hint}")
        if self.prune_kept is None:
            if self.merge_kept is not None:
                raise UserError("diffrate merge_kept goes with prune_kept; give both")
            return
        if self.rates is not None:
            raise UserError("diffrate: give rates or prune_kept, not both")
        pairs = list(zip(*self.lists(), strict=False))
        if len(self.lists()[1]) != len(self.prune_kept) or min(map(min, pairs), default=0) < 1:
            raise UserError("diffrate prune_kept and merge_kept are one number, 1 or more, a block")
        if any(merge > prune or merge == 1 < prune for prune, merge in pairs):
            raise UserError(
                "diffrate merge_kept must be at most prune_kept, and where tokens merge 2 or more: "
                "nothing merges into the class token"
            )

    def lists(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """`prune_kept` and `merge_kept` as they were given."""
        return self.prune_kept, self.merge_kept or self.prune_kept

    def check(self, backbone: Backbone) -> None:
        """Refuses rates that are not one a block, and a score that is not to be had."""
        check_score(self.score, backbone)
        given = self.prune_kept if self.rates is None else TABLES[self.rates][0]
        if given is not None and len(given) != backbone.depth:
            name = self.rates or "prune_kept"
            raise UserError(
                f"diffrate {name} is for {len(given)} blocks, and this network has {backbone.depth}"
            )

    def counts(self, block: int, depth: int, patches: int) -> tuple[int, int]:
        """Patch tokens left by pruning and by merging in `block`, of `patches` at the start."""
        if self.prune_kept is not None:
            return tuple(kept[block] - 1 for kept in self.lists())
        table = TABLES[self.rates or DEFAULT_TABLE]
        whole, where = table[0][0] - 1, (block + 1) * len(table[0]) / depth - 1
        kept = (np.interp(where, range(len(counts)), counts) - 1 for counts in table)
        # A share of 196 patches or of 256 is exact for as many.
        return tuple(math.ceil(round(k * patches / whole, 6)) for k in kept)


def published(backbone: Backbone) -> tuple[str, ...]:
    """The rates for networks of this depth and width, the cheapest first."""
    begin = f"diffrate_{FAMILIES.get(backbone.dim[0])}_"
    return tuple(
        name
        for name, (kept, _) in TABLES.items()
        if name.startswith(begin) and len(kept) == backbone.depth
    )


class DiffRate(Reducer):
    """Pruning and merging by class attention, at fixed rates."""

    card = Card(
        title="DiffRate",
        paper="2305.17997",
        summary="drops and merges at rates that were learned once",
        training=NOT_NEEDED,
        score="class attention",
        fused_attention="until sizes count",
        equal_to=("OpenGVLab/DiffRate",),
        notes="no licence; files with ToMe's header (CC-BY-NC)",
    )
    knob = Knob("rates", published)
    Fields = DiffRateFields
    needs_class_token = True

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """Class attention in every block, in proportion to sizes."""
        del block
        if tokens.sizes is None or not self.fields.proportional_attention:
            return self.class_row()
        # A token that is opposite to what it merges into has a negative size: nobody sees it.
        bias = jnp.log(jnp.maximum(tokens.sizes, 1e-6))[:, None, None]
        return dataclasses.replace(self.class_row(), bias=bias)

    def after_attention(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """Orders the tokens, drops the last, and merges the last that are left."""
        patches = tokens.grid[0] * tokens.grid[1]
        stay, unmerged = self.fields.counts(block, self.backbone.depth, patches)
        stay = min(stay, tokens.patches)
        unmerged = min(unmerged, stay)
        order = order_by(attention.patch_scores(tokens.prefix))
        tokens = keep(tokens.replace(sizes=sizes_of(tokens)), order[:, :stay], block)
        return merge_last(tokens, unmerged) if unmerged < stay else tokens

    def calibrated(self, model: nnx.Module, batches: Batches) -> "DiffRate":
        """This reducer with rates learned for a network."""
        if self.fields.gmacs is None:
            raise UserError("diffrate: say what its rates are to cost, such as diffrate,gmacs=2.9")
        plain = dataclasses.replace(self.fields, rates=None, gmacs=None)
        graphdef, state = nnx.split(model)

        def made(pruned: Sequence[int], merged: Sequence[int]) -> DiffRate:
            lists = (tuple(patches + 1 for patches in kept) for kept in (pruned, merged))
            fields = dataclasses.replace(plain, **dict(zip(LISTS, lists, strict=True)))
            return DiffRate(self.backbone, fields, rngs=nnx.Rngs(0))

        def gmacs(kept: Sequence[int]) -> float:
            network = nnx.merge(graphdef, state)
            network.reducer = made(kept, kept)
            return flops.gmacs(network)

        return made(*search(model, batches, self, gmacs=gmacs, target=self.fields.gmacs))


def merge_last(tokens: TokenSet, count: int) -> TokenSet:
    """The patch tokens from number `count` on merge into the most similar of those before."""
    prefix = tokens.prefix
    direction = unit(tokens.x)
    edges = best_edges(
        products(direction[:, prefix + count :], direction[:, prefix : prefix + count])
    )
    merge = merge_tail(tokens.x, edges, prefix)
    x, _ = pooled(tokens.x, jnp.ones(tokens.x.shape[:2]), merge)
    sizes = jnp.concatenate(
        [tokens.sizes[:, : prefix + count], tokens.sizes[:, prefix + count :] * edges.score], axis=1
    )
    sizes = added_sizes(sizes, merge)
    place = tokens.places_at(merge.kept)
    return tokens.replace(x=x, sizes=sizes, source=moved(tokens, merge), place=place)
