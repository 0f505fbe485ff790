"""Dominant and contextual tokens, against NumPy loops over single tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import evovit_jax
from evovit_jax.errors import UserError

select_tokens = jax.jit(evovit_jax.select_tokens, static_argnames=("k", "add_target"))


def by_hand(features, scores, keys, dominant, contextual, *, add_target=False):
    """One image, tokens one by one."""
    n = len(features)
    ranked = sorted(range(n), key=lambda i: (-scores[i], i))
    kept, rest = sorted(ranked[:dominant]), sorted(ranked[dominant:])
    if not contextual:
        return features[kept]
    targets = [rest[i * (len(rest) // contextual)] for i in range(contextual)]
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    members = {target: [] for target in targets}
    for i in rest:
        if i not in members:
            likeness = [unit[i] @ unit[target] for target in targets]
            members[targets[int(np.argmax(likeness))]].append(i)
    merged = []
    for target, others in members.items():
        if add_target:
            mean = features[others].mean(axis=0) if others else 0
            merged.append(features[target] + mean)
        else:
            merged.append(features[[target, *others]].mean(axis=0))
    return np.concatenate([features[kept], np.stack(merged)])


def drawn(batch, n, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((batch, n, 6), (batch, n), (batch, n, 4))
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize(
    ("k", "counts"),
    [
        (20, (17, 3)),
        ((5, 7), (5, 7)),
        pytest.param(64, (54, 10), marks=pytest.mark.slow),
        pytest.param((0, 4), (0, 4), marks=pytest.mark.slow),
        pytest.param((9, 0), (9, 0), marks=pytest.mark.slow),
    ],
)
def test_equals_selecting_token_by_token(k, counts):
    features, scores, keys = drawn(2, 81)
    scores[:, 10:40] = scores[:, 10:11]  # ties
    for add_target in (False, True):
        found = select_tokens(features, scores, keys, k=k, add_target=add_target)
        assert found.shape == (2, sum(counts), 6)
        for b in range(2):
            want = by_hand(features[b], scores[b], keys[b], *counts, add_target=add_target)
            np.testing.assert_allclose(found[b], want, atol=1e-6)


def test_with_every_token_kept_nothing_changes():
    features, scores, keys = drawn(2, 7)
    np.testing.assert_array_equal(select_tokens(features, scores, keys, k=7), features)
    everything = select_tokens(features, scores, keys, k=(3, 4))  # each target is alone
    np.testing.assert_allclose(np.sort(everything, axis=1), np.sort(features, axis=1), atol=1e-6)
    one = select_tokens(features, scores, keys, k=1)
    np.testing.assert_array_equal(one[:, 0], features[np.arange(2), scores.argmax(axis=1)])


def test_nothing_is_lost_of_the_sum_when_all_merge_into_one():
    features, scores, keys = drawn(1, 12)
    found = select_tokens(features, scores, keys, k=(0, 1))
    np.testing.assert_allclose(found[:, 0], features.mean(axis=1), atol=1e-6)


def test_features_keep_their_dtype_and_get_the_gradient_of_what_they_became():
    features, scores, keys = drawn(1, 10)
    half = jnp.asarray(features, jnp.bfloat16)
    assert select_tokens(half, scores, keys, k=(2, 2)).dtype == jnp.bfloat16
    gradient = jax.grad(lambda x: select_tokens(x, scores, keys, k=(2, 2)).sum())(features)
    assert float(gradient.sum()) == pytest.approx(4 * 6, rel=1e-5)
    assert (np.asarray(gradient) > 0).all()


@pytest.mark.parametrize("k", [0, -1, 11, (5, 6), (-1, 3), (0, 0), (3,)])
def test_counts_that_there_cannot_be_are_refused(k):
    with pytest.raises(UserError, match=r"select_tokens k=.* from 1 to 10") as caught:
        evovit_jax.select_tokens(*drawn(2, 10), k)
    assert "\n" not in str(caught.value)


def test_arrays_that_do_not_fit_one_another_are_refused():
    features, scores, keys = drawn(2, 10)
    for wrong in (
        (features, scores[:, :9], keys),
        (features[:1], scores, keys),
        (features, scores[..., None], keys),
        (features, scores, np.stack([keys, keys], axis=1)),
    ):
        with pytest.raises(UserError, match=r"select_tokens takes features \[batch, tokens"):
            evovit_jax.select_tokens(*wrong, 3)
