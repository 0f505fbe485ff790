"""LTMP's block against loops over tokens in NumPy, its budget, and how its thresholds learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import evovit_jax
from evovit_jax.errors import UserError
from evovit_jax.reduction.attention_request import AttentionView
from evovit_jax.reduction.base import Backbone
from evovit_jax.reduction.ltmp import LTMP, LTMPFields, Masker
from evovit_jax.reduction.tokens import start_tokens
from evovit_jax.weights import to_torch

DEPTH, HEADS, DIM, GRID, N = 2, 2, 4, (2, 5), 11
BACKBONE = Backbone(DEPTH, (DIM,), (HEADS,), GRID, 1, (DEPTH,))
SETTINGS = {"merge_threshold": 0.5, "prune_threshold": 0.085, "tau": 0.2}


class Token:
    """What the loops know of a token: its value, its inputs, whether it counts."""

    def __init__(self, x, number):
        self.x, self.members, self.counts = x, {number}, True


def merge(tokens, keys, received):
    """The tokens in even places into those in odd places, and the order after that."""
    even, odd = tokens[2::2], tokens[1::2]
    directions = [key / np.linalg.norm(key) for key in keys.mean(axis=0)]
    sums = {token: len(token.members) * token.x for token in odd}
    members = {token: set(token.members) for token in odd}
    largest = {token: received[i] for i, token in enumerate(tokens)}
    for i in range(2, len(tokens), 2):
        there = [j for j in range(1, len(tokens), 2) if tokens[j].counts]
        if not tokens[i].counts or not there:
            continue
        best = max(there, key=lambda j: directions[i] @ directions[j])
        if directions[i] @ directions[best] > SETTINGS["merge_threshold"]:
            sums[tokens[best]] += len(tokens[i].members) * tokens[i].x
            members[tokens[best]] |= tokens[i].members
            largest[tokens[best]] = max(largest[tokens[best]], received[i])
            tokens[i].counts = False
    for token in odd:
        token.members, token.x = members[token], sums[token] / len(members[token])
    tokens = [tokens[0], *even, *odd]
    return tokens, [largest[token] for token in tokens]


def prune(tokens, received):
    for token, score in list(zip(tokens, received, strict=True))[1:]:
        token.counts &= bool(score > SETTINGS["prune_threshold"])


def by_loops(order, x, keys, maps):
    """The tokens of one image after all blocks, and how many counted after each."""
    tokens, left = [Token(value, number) for number, value in enumerate(x)], []
    for key, weights in zip(keys, maps, strict=True):
        received = weights.mean(axis=(0, 1))
        if order == "prune_merge":
            prune(tokens, received)
        tokens, received = merge(tokens, key, received)
        if order == "merge_prune":
            prune(tokens, received)
        left.append(sum(token.counts for token in tokens))
    return tokens, left


def inputs(images):
    """Tokens, and the keys and attention maps of each block."""
    random = np.random.default_rng(1)
    x = random.normal(size=(images, N, DIM))
    keys = random.normal(size=(DEPTH, images, HEADS, N, 3))
    logits = random.normal(size=(DEPTH, images, HEADS, N, N))
    maps = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    return tuple(each.astype(np.float32) for each in (x, keys, maps))


@pytest.mark.parametrize(
    "order", ["merge_prune", pytest.param("prune_merge", marks=pytest.mark.slow)]
)
def test_tokens_merge_and_go_as_thresholds_say(order):
    x, keys, maps = inputs(4)
    reducer = LTMP(BACKBONE, LTMPFields(order=order, **SETTINGS), rngs=nnx.Rngs(0))

    @jax.jit
    def passed(x, keys, maps):
        tokens = reducer.start(start_tokens(x, prefix=1, grid=GRID, train=True))
        for block in range(DEPTH):
            view = AttentionView(keys=keys[block], weights=maps[block])
            tokens = reducer.after_attention(block, tokens, view)
        return tokens, reducer.losses(tokens), reducer.aux(tokens)

    tokens, losses, aux = passed(x, keys, maps)
    counted, kept = [], set()
    for image in range(4):
        expected, left = by_loops(order, x[image], keys[:, image], maps[:, image])
        counted.append(left)
        for place, token in enumerate(expected):
            assert bool(aux["mask"][image, place]) == token.counts
            if token.counts:
                np.testing.assert_allclose(tokens.x[image, place], token.x, atol=1e-5)
                assert aux["sizes"][image, place] == len(token.members)
                members = np.flatnonzero(tokens.source[image] == place)
                assert set(members) == token.members
        kept.add(left[-1])
    assert len(kept) > 1, "images should differ"
    assert (np.asarray(tokens.source) < 0).any()
    assert (np.asarray(aux["sizes"]) > 2).any()
    shares = np.mean(counted, axis=0) / N
    share = by_the_formula(shares)
    assert losses["budget"] == pytest.approx((share - 0.75) ** 2, rel=1e-4)
    for image, left in enumerate(counted):
        assert aux["flops_share"][image] == pytest.approx(by_the_formula(np.array(left) / N))


def by_the_formula(shares):
    """Multiply-adds of projections, attention and feed-forward over those of the dense network."""
    total, before = 0.0, N
    for share in shares:
        after = share * N
        total += 2 * before * DIM**2 + before**2 * DIM + 4 * after * DIM**2
        before = after
    return total / DEPTH / (6 * N * DIM**2 + N**2 * DIM)


def test_a_threshold_learns_by_a_sigmoid_and_stays_in_its_bounds():
    scores, weights = np.array([[0.1, 0.5, 0.9]]), np.array([1.0, -2.0, 3.0])

    def total(masker):
        mask = masker(jnp.asarray(scores), 0.2)
        return (mask * weights[None]).sum(), mask

    for threshold, used, hard in ((0.6, 0.6, [0, 0, 1]), (-0.3, 0, [1, 1, 1]), (1.2, 1, [0, 0, 0])):
        gradient, mask = nnx.grad(total, has_aux=True)(Masker(threshold))
        np.testing.assert_array_equal(mask[0], hard)
        soft = 1 / (1 + np.exp(-(scores[0] - used) / 0.2))
        expected = -(weights * soft * (1 - soft)).sum() / 0.2
        np.testing.assert_allclose(gradient["threshold"][...], [expected], rtol=1e-5)


def test_each_order_has_the_thresholds_that_it_reads():
    begins = {
        "merge_prune": {"merge_masker": 0.9, "prune_masker": 0.0},
        "prune_merge": {"merge_masker": 1.0, "prune_masker": 0.0},
        "merge": {"merge_masker": 1.0},
        "prune": {"prune_masker": 0.0},
    }
    for order, expected in begins.items():
        reducer = LTMP(BACKBONE, LTMPFields(order=order), rngs=nnx.Rngs(0))
        found = nnx.to_flat_state(nnx.state(reducer, nnx.Param))
        assert {path: float(value[...][0]) for path, value in found} == {
            (name, block, "threshold"): pytest.approx(first)
            for name, first in expected.items()
            for block in range(DEPTH)
        }


@pytest.mark.slow
def test_thresholds_have_the_published_names():
    sizes = {"image_size": 16, "patch_size": 8, "embed_dim": 6, "depth": 2, "num_heads": 2}
    tensors = to_torch(evovit_jax.create_model("deit_tiny_patch16_224", "ltmp", **sizes))
    assert {name: value.shape for name, value in tensors.items() if "masker" in name} == {
        f"blocks.{block}.{step}_masker.threshold": (1,)
        for block in range(2)
        for step in ("merge", "prune")
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"order": "both"}, "ltmp order must be one of merge_prune, prune_merge, merge, prune"),
        ({"tau": 0.0}, "ltmp tau must be above 0, got 0.0"),
        ({"target": 1.5}, r"ltmp target must be a number in \(0, 1\]"),
        ({"merge_threshold": 1.5}, r"ltmp merge_threshold must be in \[0, 1\], got 1.5"),
        ({"prune_threshold": -0.1}, r"ltmp prune_threshold must be in \[0, 1\], got -0.1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        LTMPFields(**fields)
