"""Weights of patches, and how maps agree, against numbers by hand and against all shuffles."""

import itertools

import numpy as np
import pytest

from evovit_jax.inference import token_agreement as agreement

# Six patches: in a token of their own (1), in one of two or three, dropped (0).
KEPT, OTHER = np.array([[1, 1, 1, 0, 0, 0]]), np.array([[1, 0, 0, 1, 0, 0]])
MERGED = np.array([[1, 2, 2, 3, 3, 3]])


def test_patches_that_share_a_token_are_counted_in_every_image_and_block():
    maps = np.array(
        [
            [[0, 1, 2, 3, 4], [0, 1, 2, 2, 3]],  # no patch moved; two share a token
            [[0, 3, -2, -2, 1], [0, 1, 1, 1, 1]],  # two dropped at block 1; all in one
        ],
        np.int32,
    )
    expected = [[[1, 1, 1, 1], [1, 2, 2, 1]], [[1, 0, 0, 1], [4, 4, 4, 4]]]
    sizes = agreement.group_sizes(maps, prefix=1)
    np.testing.assert_array_equal(sizes, expected)
    # The weights add up to the number of patch tokens.
    np.testing.assert_allclose(agreement.weights(sizes).sum(axis=-1), [[4, 3], [2, 1]])


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (KEPT, KEPT, 1),
        (KEPT, OTHER, 1 / 4),
        (KEPT, 1 - KEPT, 0),
        (MERGED, MERGED, 1),
        # 1 + 1/2 + 1/2 over 1 + 1 + 1 + 3/3
        (KEPT, MERGED, 2 / 4),
        (KEPT, np.ones((1, 6), int), 3 / 6),
    ],
)
def test_known_agreements(a, b, expected):
    assert agreement.iou(a, b) == pytest.approx(expected)
    assert agreement.iou(b, a) == pytest.approx(expected)


def test_two_empty_maps_have_no_agreement():
    empty = np.zeros((1, 6), int)
    assert np.isnan(agreement.iou(empty, empty))
    assert np.isnan(agreement.chance_iou(empty, empty))
    assert agreement.chance_iou(empty, KEPT) == 0


SHARED = np.array([[4, 4, 4, 4, 1, 2, 2, 0]])
EIGHT = np.array([[1, 1, 1, 1, 0, 0, 0, 0]])


@pytest.mark.parametrize(("a", "b"), [(EIGHT, EIGHT), (EIGHT, SHARED), (SHARED, SHARED)])
def test_chance_is_the_mean_over_all_shuffles(a, b):
    shuffles = np.array(list(itertools.permutations(range(8))))
    exact = agreement.iou(np.broadcast_to(a, shuffles.shape), b[0][shuffles]).mean()
    assert agreement.chance_iou(a, b) == pytest.approx(exact, abs=4e-3)
    one_of_a_batch = agreement.chance_iou(np.stack([a, b]), np.stack([b, b]))[0]
    assert one_of_a_batch == pytest.approx(agreement.chance_iou(a, b))


@pytest.mark.parametrize(("kept", "other"), [(98, 98), (67, 137), (1, 196), (5, 5)])
def test_chance_of_sets_is_that_of_the_hypergeometric_distribution(kept, other):
    """Of 196 patches."""
    from math import comb

    a, b = (np.arange(196)[None] < count for count in (kept, other))
    both = range(max(0, kept + other - 196), min(kept, other) + 1)
    chances = [comb(kept, x) * comb(196 - kept, other - x) / comb(196, other) for x in both]
    exact = sum(p * x / (kept + other - x) for p, x in zip(chances, both, strict=True))
    assert agreement.chance_iou(a.astype(int), b.astype(int)) == pytest.approx(exact, abs=5e-4)


def test_rank_correlation_is_pearsons_of_the_ranks():
    a, b = np.array([[3.0, 1.0, 1.0, 0.5]]), np.array([[0.9, 0.2, 0.3, 0.1]])
    ranks = np.array([4, 2.5, 2.5, 1]), np.array([4, 2, 3, 1])
    assert agreement.rank_correlation(a, b)[0] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert agreement.rank_correlation(a, 10 * a**3)[0] == pytest.approx(1)
    assert agreement.rank_correlation(a, -a)[0] == pytest.approx(-1)
    assert np.isnan(agreement.rank_correlation(a, np.ones((1, 4)))[0])


def test_a_life_is_the_mean_weight_over_the_blocks():
    sizes = np.array([[[1, 1, 1], [1, 2, 2], [0, 2, 2], [0, 0, 0]]])
    np.testing.assert_allclose(agreement.lifetimes(sizes), [[0.5, 0.5, 0.5]])


def test_shares_weigh_what_was_merged():
    values = np.array([[0.4, 0.1, 0.1, 0.2, 0.1, 0.1]])
    assert agreement.share_kept(KEPT, 7 * values) == pytest.approx(0.6)
    assert agreement.share_kept(MERGED, values) == pytest.approx(0.4 + 0.2 / 2 + 0.4 / 3)
    covered = np.array([[1, 0.5, 0, 0, 0, 0]])
    assert agreement.share_of_tokens(KEPT, covered) == pytest.approx(1.5 / 3)
    assert agreement.share_of_tokens(MERGED, covered) == pytest.approx(1.25 / 3)
    assert agreement.share_of_tokens(MERGED, np.ones((1, 6))) == 1
