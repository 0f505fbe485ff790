"""DiffRate's tables, its shares on other grids, and what merging does to sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evovit_jax import flops
from evovit_jax.models import abstract_model
from evovit_jax.reduction.diffrate import DiffRateFields, merge_last
from evovit_jax.reduction.diffrate_tables import TABLES
from evovit_jax.reduction.tokens import start_tokens


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_possible(name):
    pruned, merged = TABLES[name]
    depth, inputs = {"l": (24, 197), "h": (32, 257)}.get(name.split("_")[-2], (12, 197))
    assert len(pruned) == len(merged) == depth
    assert max(pruned) == max(merged) == inputs
    DiffRateFields(prune_kept=tuple(pruned), merge_kept=tuple(map(min, pruned, merged)))
    fields = DiffRateFields(rates=name)
    for block in range(depth):
        counts = fields.counts(block, depth, inputs - 1)
        assert counts == (pruned[block] - 1, merged[block] - 1)


def test_the_published_cost_of_a_table():
    found = flops.gmacs(abstract_model("deit_small_patch16_224", "diffrate,rates=diffrate_s_2.9g"))
    assert found == pytest.approx(2.9, rel=0.02)


def test_other_grids_keep_the_shares_and_other_depths_interpolate():
    fields = DiffRateFields(rates="diffrate_s_2.9g")
    assert fields.counts(4, 12, 4 * 196) == (4 * 149, 4 * 140)
    assert DiffRateFields().counts(5, 6, 196) == (2, 2)  # the last of six is the last of twelve
    assert DiffRateFields().counts(1, 6, 196) == (167, 155)


def test_the_last_tokens_merge_into_the_most_similar_before_them():
    x = np.array(jax.random.normal(jax.random.key(0), (1, 6, 4)))
    sizes = np.array([[1, 2, 1, 3, 1, 2]], np.float32)
    tokens = start_tokens(jnp.asarray(x), prefix=1, grid=(1, 5)).replace(sizes=jnp.asarray(sizes))
    merged = merge_last(tokens, 3)
    unit = x[0] / np.linalg.norm(x[0], axis=1, keepdims=True)
    groups, want = {i: [i] for i in range(4)}, sizes[0, :4].copy()
    for i in (4, 5):
        best = max(range(1, 4), key=lambda j: unit[i] @ unit[j])
        groups[best].append(i)
        want[best] += sizes[0, i] * (unit[i] @ unit[best])
    np.testing.assert_allclose(merged.x[0], [x[0, g].mean(0) for g in groups.values()], atol=1e-5)
    np.testing.assert_allclose(merged.sizes[0], want, atol=1e-5)
    assert [int(merged.source[0, i]) for i in (4, 5)] == [
        j for i in (4, 5) for j, g in groups.items() if i in g
    ]
