"""PiToMe's energy and its choice of candidates, against loops over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evovit_jax.reduction.matching import unit
from evovit_jax.reduction.pitome import energy, plan


def test_energy_is_the_mean_of_what_exceeds_the_margin():
    x = np.asarray(unit(jax.random.normal(jax.random.key(0), (1, 5, 3))))[0]
    want = []
    for a in x:
        over = [a @ b - 0.5 for b in x]
        want.append(np.mean([o if o > 0 else np.exp(o) - 1 for o in over]))
    np.testing.assert_allclose(energy(jnp.asarray(x)[None], 0.5)[0], want, atol=1e-6)


@pytest.mark.parametrize("protects", [True, False])
def test_patches_of_high_energy_alternate_and_others_are_protected(protects):
    metric = np.asarray(unit(jax.random.normal(jax.random.key(1), (1, 8, 3))))
    order = jnp.asarray([[4, 2, 7, 1, 3, 6, 5]])  # patches 1..7, highest energy first
    merge = plan(jnp.asarray(metric), order, 2, 1, protects=protects)
    a, b = ([4, 7], [2, 1]) if protects else ([4, 7, 3, 5], [2, 1, 6])
    edges = sorted(((max((metric[0, i] @ metric[0, j], j) for j in b)), i) for i in a)[::-1]
    merged = [i for _, i in edges[:2]]
    assert merge.merged[0].tolist() == merged
    rest = [3, 6, 5] if protects else [i for _, i in edges[2:]]
    assert merge.kept[0].tolist() == [0, *rest, *b]
    kept = merge.kept[0].tolist()
    assert [kept[i] for i in merge.into[0].tolist()] == [best for (_, best), _ in edges[:2]]
