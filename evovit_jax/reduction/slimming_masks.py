"""How Patch Slimming's masks are found: impact scores, and the greedy way down through the blocks.

The rules are at the top of patch_slimming.py; tests/reduction/patch_slimming_test.py tests them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from evovit_jax.reduction import base
from evovit_jax.reduction.attention_request import key_mask
from evovit_jax.reduction.base import (
    AttentionRequest,
    AttentionView,
    Backbone,
    Batches,
    Reducer,
)
from evovit_jax.reduction.tokens import TokenSet


class Watched(Reducer):
    """The whole network, its blocks attending to what masks leave, and all that scores need of it.

    `aux` has "ends" `[b, depth, n, d]`, the tokens after each block, and, where nothing is masked,
    "maps" `[b, depth, h, n, n]` and "inputs" `[b, depth, n, d]`, what each attention mixes.
    """

    def __init__(self, backbone: Backbone, masks: Bool[Array, "depth n"] | None):
        super().__init__(backbone, base.Fields(), rngs=nnx.Rngs(0))
        self.masks = None if masks is None else nnx.BatchStat(masks)

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """Attention to the tokens that the block before made."""
        del tokens
        if self.masks is None:
            return AttentionRequest(needs=frozenset({"weights", "inputs"}))
        if not block:
            return base.NOTHING_ASKED
        return AttentionRequest(bias=key_mask(self.masks[...][block - 1][None]))

    def after_attention(self, block: int, tokens: TokenSet, attention: AttentionView) -> TokenSet:
        """Keeps what was seen."""
        if self.masks is not None:
            return tokens
        seen = tokens.aside.get("seen", ())
        return tokens.put_aside(seen=(*seen, (attention.weights, attention.inputs)))

    def after_block(self, block: int, tokens: TokenSet) -> TokenSet:
        """Keeps what the block made."""
        return tokens.put_aside(ends=(*tokens.aside.get("ends", ()), tokens.x))

    def aux(self, tokens: TokenSet) -> dict[str, Array]:
        """What was kept, blocks side by side."""
        shown = {"ends": jnp.stack(tokens.aside["ends"], axis=1)}
        if self.masks is None:
            maps, inputs = zip(*tokens.aside["seen"], strict=True)
            shown |= {"maps": jnp.stack(maps, axis=1), "inputs": jnp.stack(inputs, axis=1)}
        return shown


def impact_scores(
    maps: Float[Array, "b depth h n n"],
    inputs: Float[Array, "b depth n d"],
    masks: Bool[Array, "depth n"],
) -> Float[Array, "depth n"]:
    """The impact of each position in each block, the mean over images; 0 in the last block.

    The sum over all choices of heads of `A^T A` is a matrix G: of block t it is the sum over the
    heads of block t + 1 of `P^T diag(m) G diag(m) P`, G being the identity after the last block.
    """
    depth, n = masks.shape
    gram, scores = jnp.broadcast_to(jnp.eye(n), (len(maps), n, n)), [jnp.zeros(n)]
    for block in reversed(range(depth - 1)):
        mask = masks[block + 1].astype(jnp.float32)
        rows = maps[:, block + 1] * mask[None, None, :, None]
        half = jnp.einsum("bhji,bjk->bhik", rows, gram, precision="highest")
        gram = jnp.einsum("bhik,bhkl->bil", half, rows, precision="highest")
        size = jnp.abs(inputs[:, block].astype(jnp.float32))
        mixed = jnp.einsum("bhij,bjd->bhid", maps[:, block], size, precision="highest")
        lengths = jnp.square(mixed).sum(axis=(1, 3))
        scores.append((jnp.diagonal(gram, axis1=1, axis2=2) * lengths).mean(axis=0))
    return jnp.stack(scores[::-1])


def watcher(
    model: nnx.Module, backbone: Backbone
) -> Callable[[Array, Array], tuple[Float[Array, "depth n"], Float[Array, "2 depth"]]]:
    """A compiled function of masks and images, of one shape: `impact_scores`, and errors.

    Of each block's tokens in its mask, the errors are the sum of their squared differences from
    those of the network without masks, and of the squares of these.
    """
    graphdef, state = nnx.split(model)

    def shown(state: Any, masks: Array | None, images: Array) -> dict[str, Array]:
        network = nnx.merge(graphdef, state)
        network.reducer = Watched(backbone, masks)
        return network(images)[1].aux

    def look(state: Any, masks: Array, images: Array) -> tuple[Array, Array]:
        whole, slim = shown(state, None, images), shown(state, masks, images)
        wanted, found = (x["ends"].astype(jnp.float32) for x in (whole, slim))
        squares = jnp.stack([jnp.square(found - wanted), jnp.square(wanted)]).sum(axis=(1, 4))
        of_masks = jnp.where(masks[None], squares, 0.0).sum(axis=2)
        return impact_scores(whole["maps"], whole["inputs"], masks), of_masks

    compiled = jax.jit(look)
    return lambda masks, images: compiled(state, masks, images)


def masks_of(
    model: nnx.Module,
    batches: Batches,
    backbone: Backbone,
    *,
    tolerance: float,
    step: int,
) -> tuple[Int[np.ndarray, " p"], tuple[int, ...]]:
    """The positions in the order of how long they stay, and how many each block makes."""
    look, prefix = watcher(model, backbone), backbone.prefix
    patches = backbone.grid[0] * backbone.grid[1]

    def over_all(masks: Bool[np.ndarray, "depth n"]) -> tuple[np.ndarray, np.ndarray]:
        """The scores of the patches of each block, and the relative errors of each block."""
        seen = [jax.device_get(look(masks, images)) for images, _ in batches]
        scores, (off, of) = (np.mean(part, axis=0) for part in zip(*seen, strict=True))
        return scores[:, prefix:], off / of

    masks = np.ones((backbone.depth, prefix + patches), bool)
    masks[-1, prefix:] = False
    order, kept = [], [0]
    scores, _ = over_all(masks)
    for block in reversed(range(backbone.depth - 1)):
        ranked = [int(i) for i in np.argsort(-scores[block], kind="stable") if i not in set(order)]
        while True:
            added, ranked = ranked[:step], ranked[step:]
            order += added
            masks[block] = np.isin(np.arange(len(masks[block])) - prefix, order)
            masks[block, :prefix] = True
            scores, errors = over_all(masks)
            if errors[block + 1] <= tolerance or not ranked:
                break
        kept.append(len(order))
    return np.array(order + [i for i in range(patches) if i not in set(order)]), tuple(kept[::-1])
