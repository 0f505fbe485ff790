"""ATC's clusters against SciPy's, and what becomes of a cluster."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from evovit_jax.reduction.atc import ATC, LINKAGES, ATCFields, clusters
from evovit_jax.reduction.base import AttentionView, Backbone
from evovit_jax.reduction.tokens import start_tokens


@pytest.mark.parametrize("linkage", LINKAGES)
def test_the_clusters_are_scipys(linkage):
    points = np.random.default_rng(0).normal(size=(3, 12, 4))
    distance = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1)
    found = np.asarray(jax.jit(lambda d: clusters(d, 7, linkage))(jnp.asarray(distance)))
    for first, of_image in zip(found, distance, strict=True):
        tree = hierarchy.linkage(squareform(of_image, checks=False), method=linkage)
        labels = hierarchy.fcluster(tree, 5, criterion="maxclust")
        assert len(set(labels)) == 5
        np.testing.assert_array_equal(first, [labels.tolist().index(label) for label in labels])


def test_a_cluster_becomes_the_mean_of_its_patches():
    """Tokens 1 and 4, 2 and 6, 3 and 5 have keys of one direction; token 1 stands for two."""
    backbone = Backbone(4, (2,), (1,), (2, 3), 1, (4,))
    reducer = ATC(backbone, ATCFields(keep_rate=0.5, locations=1), rngs=nnx.Rngs(0))
    direction = np.array([9, 0, 1, 2, 0, 2, 1])
    keys = jnp.asarray(np.stack([np.cos(direction), np.sin(direction)], axis=-1), jnp.float32)
    x = jax.random.normal(jax.random.key(0), (1, 7, 2))
    tokens = start_tokens(x, prefix=1, grid=(2, 3))
    tokens = tokens.replace(sizes=jnp.ones((1, 7)).at[0, 1].set(2.0))
    reduce = jax.jit(lambda tokens, view: reducer.after_attention(1, tokens, view))
    after = reduce(tokens, AttentionView(keys=keys[None, None]))
    x = np.asarray(x[0])
    want = [x[0], (2 * x[1] + x[4]) / 3, (x[2] + x[6]) / 2, (x[3] + x[5]) / 2]
    np.testing.assert_allclose(after.x[0], want, atol=1e-6)
    np.testing.assert_array_equal(after.sizes[0], [1, 3, 2, 2])
    np.testing.assert_array_equal(after.source[0], [0, 1, 2, 3, 1, 3, 2])
