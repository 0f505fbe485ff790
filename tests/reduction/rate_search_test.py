"""The search for DiffRate's rates: masks compute what DiffRate does, and the target is reached."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import filled, run_model

import evovit_jax
from evovit_jax import flops
from evovit_jax.errors import UserError
from evovit_jax.models import abstract_model
from evovit_jax.reduction.base import Backbone
from evovit_jax.reduction.rate_masks import Searching, first_logits, kept_patches
from evovit_jax.reduction.rate_search import ADAM, cost_of, make_step

TINY = {"image_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 3, "num_heads": 3}
NAME = "deit_tiny_patch16_224"
BACKBONE = Backbone(3, (12,), (3,), (4, 4), 1, (3,))


def logits_of(kept):
    """Logits under which blocks leave exactly so many patches."""
    rows = {kind: jax.nn.one_hot(jnp.asarray(numbers) - 1, 16) for kind, numbers in kept.items()}
    return {kind: 100 * row for kind, row in rows.items()}


def test_a_block_leaves_the_mean_rounded_up_and_no_more_than_came():
    logits = logits_of({"prune": [16, 12, 5], "merge": [14, 13, 5]})
    kept = kept_patches(logits)
    np.testing.assert_array_equal(kept["prune"], [16, 12, 5])
    np.testing.assert_array_equal(kept["merge"], [14, 12, 5])
    halves = {kind: jnp.zeros((2, 2)) for kind in ("prune", "merge")}  # a mean of 1.5
    gradient = jax.grad(lambda x: kept_patches(x)["merge"].sum())(halves)
    np.testing.assert_array_equal(kept_patches(halves)["prune"], [2, 2])
    assert all(bool(jnp.isfinite(x).all()) for x in gradient.values())
    assert sum(float(jnp.abs(x).sum()) for x in gradient.values()) > 0


@pytest.mark.slow
def test_the_cost_is_the_count_of_the_traced_network():
    def gmacs(prune, merge=None):
        lists = [":".join(str(n + 1) for n in kept) for kept in (prune, merge or prune)]
        spec = "diffrate,prune_kept={},merge_kept={}".format(*lists)
        return flops.gmacs(abstract_model(NAME, spec, **TINY))

    for prune, merge in (([13, 9, 4], [11, 9, 2]), ([16, 16, 15], [16, 15, 8])):
        kept = {"prune": jnp.asarray(prune, float), "merge": jnp.asarray(merge, float)}
        cost = cost_of(gmacs, BACKBONE)(kept)
        assert float(cost) == pytest.approx(gmacs(prune, merge), rel=1e-3)


@pytest.mark.slow
def test_masks_compute_what_fewer_tokens_do():
    prune, merge = [14, 9, 6], [11, 9, 2]
    spec = "diffrate,prune_kept=15:10:7,merge_kept=12:10:3"
    few, images = filled(NAME, spec, num_classes=5, **TINY), noise()
    masked = filled(NAME, num_classes=5, **TINY)
    logits = logits_of({"prune": prune, "merge": merge})
    masked.reducer = Searching(few.reducer.backbone, few.reducer.fields, logits)
    np.testing.assert_allclose(run_model(masked, images)[0], run_model(few, images)[0], atol=1e-4)


def noise():
    return jnp.asarray(np.random.default_rng(2).normal(size=(8, 16, 16, 3)), jnp.float32)


@pytest.mark.slow
def test_one_program_takes_every_step_and_all_rates_learn():
    model = evovit_jax.create_model(NAME, "diffrate", num_classes=5, seed=3, **TINY)
    step = make_step(model, model.reducer, lambda kept: jnp.float32(1))
    for logits in (
        first_logits(BACKBONE),
        {kind: row / 9 for kind, row in first_logits(BACKBONE).items()},
    ):
        after, _, (kept, _) = step(
            logits, ADAM.init(logits), jnp.float32(0.1), noise(), jnp.arange(8) % 5
        )
        assert all(bool(jnp.isfinite(x).all()) for x in after.values())
    assert kept["merge"][-1] < 14
    assert step.func._cache_size() == 1
    # By the labels alone: what the last block does no class token sees.
    for kind in after:
        moved = jnp.abs(after[kind] - logits[kind]).sum(axis=1)
        assert bool((moved[:-1] > 0).all()), kind


@pytest.mark.slow
def test_the_rates_cost_what_was_asked_for():
    whole = flops.gmacs(abstract_model(NAME, num_classes=5, **TINY))
    spec = f"diffrate,gmacs={0.7 * whole:.6g}"
    model = evovit_jax.create_model(NAME, spec, num_classes=5, seed=3, **TINY)
    batches = [(noise(), jnp.arange(8) % 5), (-noise(), jnp.arange(8) % 5)]
    found = model.reducer.calibrated(model, batches)
    assert found.fields.gmacs is None
    model.reducer = found
    assert flops.gmacs(model) == pytest.approx(0.7 * whole, rel=0.02)
    fields = found.fields
    assert all(1 < b <= a <= 17 for a, b in zip(fields.prune_kept, fields.merge_kept, strict=True))


def test_a_search_needs_a_target():
    model = abstract_model(NAME, "diffrate", **TINY)
    with pytest.raises(UserError, match="say what its rates are to cost"):
        model.reducer.calibrated(model, [])
