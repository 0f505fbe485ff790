"""The three methods of learned mixtures: PatchMerger, SiT and Sinkhorn, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tiny import normal, run_model

from evovit_jax.reduction.patch_merger import Merger
from evovit_jax.reduction.sinkhorn import Centres, unit
from evovit_jax.reduction.sit import Slimmer

X = normal(2, 10, 8)


def softmax(x, axis):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def normed(x):
    x = np.asarray(x, np.float64)
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5)


def test_patch_merger_mixes_normalised_tokens():
    merger = Merger(8, 3, rngs=nnx.Rngs(0))
    mixed, weights = run_model(merger, X)
    for b in range(2):
        want = softmax(np.asarray(merger.queries[...]) @ normed(X[b]).T, axis=1)
        np.testing.assert_allclose(weights[b], want, atol=1e-5)
        np.testing.assert_allclose(mixed[b], want @ normed(X[b]), atol=1e-5)


def test_sit_mixes_tokens_as_they_are():
    slimmer = Slimmer(8, 3, rngs=nnx.Rngs(0))
    slimmer.scale[...] = jnp.full((1, 1, 1), 2.0)
    mixed, weights = jax.device_get(run_model(slimmer, X))
    np.testing.assert_allclose(weights.sum(axis=2), 1, atol=1e-5)
    np.testing.assert_allclose(mixed, np.einsum("bmp,bpd->bmd", weights, X), atol=1e-5)
    hidden = jax.nn.gelu(slimmer.fc1(jnp.asarray(normed(X), jnp.float32)), approximate=False)
    want = softmax(2 * np.asarray(slimmer.fc2(hidden)), axis=1)
    np.testing.assert_allclose(weights, want.swapaxes(1, 2), atol=1e-5)


def test_sinkhorn_shares_out_every_token():
    centres = Centres(8, 4, rngs=nnx.Rngs(0))
    mixed, shares = jax.device_get(run_model(centres, X, eps=0.5, iterations=3))
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)  # of each token
    for b in range(2):
        x = np.asarray(unit(jnp.asarray(X[b])), np.float64)
        plan = np.exp(np.asarray(unit(centres.v[...])) @ x.T / 0.5)
        for _ in range(3):
            plan = plan / plan.sum(axis=1, keepdims=True)
            plan = plan / plan.sum(axis=0, keepdims=True)
        np.testing.assert_allclose(shares[b], plan, atol=1e-5)
        np.testing.assert_allclose(mixed[b], plan @ x, atol=1e-5)


def test_sinkhorn_balances_clusters_in_the_limit():
    centres = Centres(8, 5, rngs=nnx.Rngs(0))
    _, shares = centres(jnp.asarray(X), eps=1.0, iterations=200)
    np.testing.assert_allclose(shares.sum(axis=2), 10 / 5, atol=1e-3)
