"""How Prune-and-Merge's matrices are found: scores of positions, and matrices of the scores.

The rules are at the top of prune_and_merge.py; tests/reduction/prune_and_merge_test.py tests them.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from evovit_jax.errors import UserError
from evovit_jax.reduction import base
from evovit_jax.reduction.base import AttentionRequest, Backbone, Batches, Reducer
from evovit_jax.reduction.tokens import TokenSet

DECAY = 0.025  # what a score loses a block
EPS = 1e-8


class Probed(Reducer):
    """The dense network, its attention to every key times a factor of the block and the key."""

    def __init__(self, backbone: Backbone, factors: Float[Array, "depth n"]):
        super().__init__(backbone, base.Fields(), rngs=nnx.Rngs(0))
        self.factors = nnx.Param(factors)

    def attention_request(self, block: int, tokens: TokenSet) -> AttentionRequest:
        """The softmax, times the factors."""
        del tokens
        factor = self.factors[block][None, None, None]
        return AttentionRequest(normalise=lambda logits: jax.nn.softmax(logits, axis=-1) * factor)


def position_scores(model: nnx.Module, batches: Batches) -> np.ndarray:
    """Scores of every block's positions, `[depth, patches]`, each block's of norm 1.

    The gradient of the loss by a factor of 1 on the attention to a key is the sum of gradient times
    attention over images, heads and queries.

    Args:
      model: a flat network; its reduction takes no part.
      batches: normalised images and their labels, all batches of one size.
    """
    graphdef, state = nnx.split(model)
    backbone = model.reducer.backbone
    inputs = backbone.prefix + backbone.grid[0] * backbone.grid[1]

    def loss(factors: Array, images: Array, labels: Array) -> Float[Array, ""]:
        dense = nnx.merge(graphdef, state)
        dense.reducer = Probed(backbone, factors)
        logits, _ = dense(images)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
        return -chosen.mean()

    gradient = jax.jit(jax.grad(loss))
    ones = jnp.ones((backbone.depth, inputs))
    total = sum(abs(np.asarray(gradient(ones, *batch), np.float64)) for batch in batches)
    total = total[:, backbone.prefix :]
    return total / (np.linalg.norm(total, axis=1, keepdims=True) + EPS)


def thresholds(
    scores: Float[np.ndarray, "locations p"], keep_rate: float, prune_rate: float
) -> tuple[np.floating, np.floating]:
    """Below which score a position is pruned, and from which on it is a centre."""
    blocks, patches = scores.shape
    ranked = np.sort(scores, axis=None)
    centres = max(1, int(patches * keep_rate)) * blocks
    return ranked[int(patches * prune_rate) * blocks], ranked[-centres]


def decayed(
    scores: Float[np.ndarray, "depth p"], locations: tuple[int, ...]
) -> Float[np.ndarray, "locations p"]:
    """The scores of the locations, less in later blocks."""
    return np.stack([scores[block] * (1 - DECAY * block) for block in locations])


def kept_counts(
    scores: Float[np.ndarray, "depth p"],
    locations: tuple[int, ...],
    *,
    keep_rate: float,
    prune_rate: float,
    prefix: int = 1,
) -> tuple[int, ...]:
    """The rows of each location's matrix, class tokens counted: the field `kept` of a model.

    Raises:
      UserError: if a location has no position among the best.
    """
    chosen = decayed(scores, locations)
    _, centre = thresholds(chosen, keep_rate, prune_rate)
    counts = (chosen >= centre).sum(axis=1)
    if not counts.all():
        block = locations[int(counts.argmin())]
        raise UserError(
            f"prune_and_merge: no position of block {block} is among the {keep_rate:g} of the "
            "highest scores; leave the block out of locations"
        )
    return tuple(int(count) + prefix for count in counts)


def calibrate(reducer: Reducer, scores: Float[np.ndarray, "depth p"]) -> None:
    """Sets the matrices of a Prune-and-Merge reducer to those of the scores.

    Raises:
      UserError: if its `kept` is not `kept_counts` of the scores.
    """
    backbone, fields = reducer.backbone, reducer.fields
    rates = {"keep_rate": fields.keep_rate, "prune_rate": fields.prune_rate}
    wanted = kept_counts(scores, reducer.locations, prefix=backbone.prefix, **rates)
    held = tuple(m.merge_matrix.shape[0] for m in reducer.matrices)
    if wanted != held:
        raise UserError(
            f"prune_and_merge: these scores give kept={':'.join(map(str, wanted))}, and the model "
            f"was made with {':'.join(map(str, held))}"
        )
    chosen = decayed(scores, reducer.locations)
    least, centre = thresholds(chosen, **rates)
    for matrices, row in zip(reducer.matrices, chosen, strict=True):
        merge, valid = merge_matrix(row, row >= centre, row >= least, backbone)
        matrices.merge_matrix.set_value(jnp.asarray(merge, jnp.float32))
        matrices.recover_matrix.set_value(jnp.asarray(np.linalg.pinv(merge), jnp.float32))
        matrices.token_mask.set_value(jnp.asarray(valid, jnp.float32))


def merge_matrix(
    scores: Float[np.ndarray, " p"],
    is_centre: Bool[np.ndarray, " p"],
    valid: Bool[np.ndarray, " p"],
    backbone: Backbone,
) -> tuple[np.ndarray, np.ndarray]:
    """The matrix `[rows, tokens]` of one location, and which tokens are not pruned."""
    side, prefix = backbone.grid[1], backbone.prefix
    centres = np.flatnonzero(is_centre)
    matrix = np.zeros((prefix + len(centres), prefix + len(scores)))
    matrix[:prefix, :prefix] = np.eye(prefix)
    begin = 0
    for row, here in enumerate(centres):
        end = len(scores)
        if row + 1 < len(centres):
            # A centre in the last column counts to the next line, as in the authors' code.
            line_end = ((here + 1) // side + 1) * side
            end = min(math.ceil((here + centres[row + 1]) / 2), line_end)
        shares = scores[begin:end] / (scores[here] + EPS)
        matrix[prefix + row, prefix + begin : prefix + end] = shares * valid[begin:end]
        begin = max(begin, end)
    return matrix, np.concatenate([np.ones(prefix, bool), valid])


def even_matrix(centres: int, backbone: Backbone) -> tuple[np.ndarray, np.ndarray]:
    """The matrix of evenly spaced centres among equal scores, nothing pruned."""
    patches = backbone.grid[0] * backbone.grid[1]
    is_centre = np.zeros(patches, bool)
    is_centre[(np.arange(centres) * patches) // centres] = True
    return merge_matrix(np.ones(patches), is_centre, np.ones(patches, bool), backbone)
