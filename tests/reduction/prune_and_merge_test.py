"""Prune-and-Merge: calibration's matrices against a hand-made case, and the grid between blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from evovit_jax.errors import UserError
from evovit_jax.reduction.base import Backbone
from evovit_jax.reduction.merge_matrices import calibrate, kept_counts, merge_matrix
from evovit_jax.reduction.prune_and_merge import PruneAndMerge, PruneAndMergeFields
from evovit_jax.reduction.tokens import start_tokens

BACKBONE = Backbone(4, (3,), (1,), (2, 4), 1, (4,))


def test_a_centre_takes_the_positions_up_to_the_middle_within_its_line():
    scores = np.array([2, 4, 1, 3, 6, 5, 8, 7.0])
    centre, valid = np.isin(np.arange(8), [1, 4, 7]), np.arange(8) != 2
    matrix, mask = merge_matrix(scores, centre, valid, BACKBONE)
    want = np.zeros((4, 9))
    want[0, 0] = 1
    want[1, 1:4] = [2 / 4, 1, 0]  # up to ceil((1 + 4) / 2); position 2 is pruned
    want[2, 4:7] = [3 / 6, 1, 5 / 6]  # what the first row left, up to ceil((4 + 7) / 2)
    want[3, 7:9] = [8 / 7, 1]
    np.testing.assert_allclose(matrix, want, atol=1e-7)
    assert mask.tolist() == [True, True, True, False, True, True, True, True, True]


def test_calibration_sets_the_matrices_it_counted():
    scores = np.random.default_rng(0).uniform(0.1, 1, (4, 8))
    rates = {"keep_rate": 0.5, "prune_rate": 0.2}
    kept = kept_counts(scores, (1, 2), **rates)
    assert sum(kept) == 2 + 2 * 4
    fields = PruneAndMergeFields(locations=(1, 2), kept=kept, **rates)
    reducer = PruneAndMerge(BACKBONE, fields, rngs=nnx.Rngs(0))
    calibrate(reducer, scores)
    assert sum(int((m.token_mask[...] == 0).sum()) for m in reducer.matrices) == 2
    for m in reducer.matrices:
        product = m.merge_matrix[...] @ m.recover_matrix[...]
        np.testing.assert_allclose(product, np.eye(len(product)), atol=1e-5)
    other = PruneAndMerge(
        BACKBONE, PruneAndMergeFields(locations=(1, 2), kept=(kept[0] % 8 + 2, 3)), rngs=nnx.Rngs(0)
    )
    with pytest.raises(UserError, match="these scores give kept="):
        calibrate(other, scores)


def test_pruned_positions_pass_a_block_unchanged_and_the_grid_is_whole_after_it():
    fields = PruneAndMergeFields(locations=1, keep_rate=0.5)
    reducer = PruneAndMerge(BACKBONE, fields, rngs=nnx.Rngs(0))
    reducer.matrices[0].token_mask.set_value(jnp.ones(9).at[3].set(0.0))
    zeroed = reducer.matrices[0].merge_matrix[...].at[:, 3].set(0.0)
    reducer.matrices[0].merge_matrix.set_value(zeroed)
    recover = jnp.asarray(np.linalg.pinv(np.asarray(zeroed)))
    reducer.matrices[0].recover_matrix.set_value(recover)
    x = jax.random.normal(jax.random.key(0), (2, 9, 3))
    start = start_tokens(x, prefix=1, grid=(2, 4))
    within = reducer.before_block(1, start)
    assert within.x.shape == (2, 5, 3)
    assert (within.source[:, 3] == -2).all()
    after = reducer.after_block(1, within)
    np.testing.assert_allclose(after.x[:, [0, 3]], x[:, [0, 3]], atol=1e-5)
    np.testing.assert_array_equal(after.source, start.source)
    assert after.aside == {}


def test_other_grids_are_refused():
    reducer = PruneAndMerge(BACKBONE, PruneAndMergeFields(locations=1), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="make the model with the images' size"):
        reducer.before_block(1, start_tokens(jnp.zeros((1, 13, 3)), prefix=1, grid=(3, 4)))
