"""Evaluation sums, against NumPy."""

import jax
import numpy as np
import pytest
from tiny import tiny_config

from evovit_jax.errors import UserError
from evovit_jax.inference import scoring
from evovit_jax.parallel import sharding

score = jax.jit(scoring.score)


def batch_of(labels, mask):
    return {"label": np.array(labels, np.int32), "mask": np.array(mask)}


def test_hits_and_loss():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 12)).astype(np.float32)
    labels = rng.integers(0, 12, 50)
    mask = np.arange(50) % 7 != 0
    found = score(logits, batch_of(labels, mask))
    order = np.argsort(-logits, axis=1)
    rank = np.argmax(order == labels[:, None], axis=1)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert int(found["top1"]) == (rank < 1)[mask].sum()
    assert int(found["top5"]) == (rank < 5)[mask].sum()
    assert int(found["examples"]) == mask.sum()
    np.testing.assert_allclose(found["loss"], -log_p[np.arange(50), labels][mask].sum(), rtol=1e-5)


def test_ties_go_to_the_smaller_index_and_nan_never_hits():
    rows = [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [np.nan, 1.0, 0.0], [np.nan] * 3]
    found = score(np.array(rows, np.float32), batch_of([0, 1, 1, 0], [True] * 4))
    assert int(found["top1"]) == 1


def test_what_is_masked_may_hold_anything():
    logits = np.array([[2.0, 0.0], [np.nan, np.inf]], np.float32)
    found = score(logits, batch_of([0, 0], [True, False]))
    assert float(found["examples"]) == 1
    assert np.isfinite(float(found["loss"]))


@pytest.fixture
def mesh():
    return sharding.make_mesh(tiny_config(), jax.devices())


def test_padding_changes_nothing(mesh):
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(20, 7)).astype(np.float32), rng.integers(0, 7, 20)

    def padded(size):
        for start in range(0, 20, size):
            part = slice(start, start + size)
            count = len(labels[part])
            yield {
                "logits": np.pad(logits[part], ((0, size - count), (0, 0))),
                "label": np.pad(labels[part], (0, size - count)).astype(np.int32),
                "mask": np.arange(size) < count,
            }

    @jax.jit
    def step(sums, batch):
        return {k: sums[k] + v for k, v in scoring.score(batch["logits"], batch).items()}

    whole, parts = (scoring.evaluate(step, padded(size), mesh) for size in (24, 8))
    assert whole["examples"] == parts["examples"] == 20
    assert whole["top1"] == parts["top1"]
    assert whole["loss"] == pytest.approx(parts["loss"], rel=1e-6)


def test_no_more_batches_wait_than_are_allowed(mesh, monkeypatch):
    """In every evaluation: before a batch is read, all but the last two are computed."""
    begun, waited = [], []
    monkeypatch.setattr(scoring.jax, "block_until_ready", waited.append)

    def batches():
        for i in range(7):
            assert len(begun) - len(waited) <= scoring.AHEAD
            yield {"mask": np.full(8, i)}

    def step(sums, batch):
        begun.append(batch)
        return {**sums, "examples": sums["examples"] + 1}

    assert scoring.evaluate(step, batches(), mesh)["examples"] == len(begun) == 7


def test_outcomes_are_those_that_are_counted():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(40, 9)).astype(np.float32)
    logits[0, 2] = np.nan
    logits[1, [3, 5]] = logits[1].max() + 1  # a tie: the answer is class 3
    labels = rng.integers(0, 9, 40)
    labels[0], labels[1], labels[2] = 2, 5, -1
    found = jax.device_get(jax.jit(scoring.outcomes)(logits, labels.astype(np.int32)))
    rank, answer = found["rank"], found["answer"]
    assert (rank[0], answer[0]) == (9, -1)
    assert (rank[1], answer[1]) == (1, 3)
    assert (rank[2], answer[2]) == (-1, logits[2].argmax())
    np.testing.assert_array_equal(
        rank[3:], (logits > logits[np.arange(40), labels, None]).sum(1)[3:]
    )
    np.testing.assert_array_equal(answer[3:], logits[3:].argmax(axis=1))
    counted = score(logits, batch_of(labels, labels >= 0))
    assert int(counted["top1"]) == (rank == 0).sum()
    assert int(counted["top5"]) == ((rank >= 0) & (rank < 5)).sum()


def test_an_empty_set_is_refused(mesh):
    with pytest.raises(UserError, match="no examples"):
        scoring.evaluate(lambda sums, batch: sums, [], mesh)
