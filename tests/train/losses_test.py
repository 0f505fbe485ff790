"""The losses, against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from evovit_jax import config as config_lib
from evovit_jax.errors import UserError
from evovit_jax.models import Outputs
from evovit_jax.train import losses

LOGITS = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]], np.float32)
OTHER = np.array([[0.0, 1.0, 0.0], [2.0, 0.0, 1.0]], np.float32)
TARGETS = np.array([[0.7, 0.3, 0.0], [0.0, 0.5, 0.5]], np.float32)


def cross_entropy(logits, targets):
    return -(targets * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1)


def outputs(**fields):
    return Outputs(features=jnp.zeros((2, 1, 1)), **fields)


def test_smoothed_targets_are_timms():
    found = losses.targets_of(jnp.array([2, 0], jnp.int32), 4, 0.1)
    np.testing.assert_allclose(found[0], [0.025, 0.025, 0.925, 0.025], rtol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)


def test_softmax():
    found = losses.softmax_loss(jnp.array(LOGITS), jnp.array(TARGETS))
    np.testing.assert_allclose(found, cross_entropy(LOGITS, TARGETS), rtol=1e-6)


def test_sigmoid():
    p = 1 / (1 + np.exp(-LOGITS))
    expected = -(TARGETS * np.log(p) + (1 - TARGETS) * np.log(1 - p)).mean(1)
    found = losses.sigmoid_loss(jnp.array(LOGITS), jnp.array(TARGETS))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_class_tokens_head_has_its_share():
    config = config_lib.get_config()
    config.loss.cls_weight = 0.25
    out = outputs(aux_logits={"cls": jnp.array(OTHER)})
    total, terms = losses.training_loss(config, jnp.array(LOGITS), out, jnp.array(TARGETS))
    own, cls = (cross_entropy(x, TARGETS).mean() for x in (LOGITS, OTHER))
    np.testing.assert_allclose(total, 0.75 * own + 0.25 * cls, rtol=1e-6)
    np.testing.assert_allclose(terms["loss_cls"], cls, rtol=1e-6)
    assert losses.in_order(terms) == ("loss_cls", "loss")


def test_a_reducers_losses_are_weighted_by_name():
    config = config_lib.get_config()
    config.loss.reducer_weights = (("ratio", 2.0), (".*", 0.5))
    out = outputs(losses={"ratio": jnp.float32(3), "other": jnp.float32(4)})
    total, terms = losses.training_loss(config, jnp.array(LOGITS), out, jnp.array(TARGETS))
    np.testing.assert_allclose(total, cross_entropy(LOGITS, TARGETS).mean() + 8, rtol=1e-6)
    assert {name: float(v) for name, v in terms.items() if name != "loss"} == {
        "loss_ratio": 3,
        "loss_other": 4,
    }


def test_a_reducers_loss_without_a_weight_is_an_error():
    config = config_lib.get_config()
    config.loss.reducer_weights = (("ratio", 2.0),)
    out = outputs(losses={"other": jnp.float32(4)})
    with pytest.raises(UserError, match=r"loss.reducer_weights matches 'other'"):
        losses.training_loss(config, jnp.array(LOGITS), out, jnp.array(TARGETS))


def test_an_unknown_loss_is_named():
    with pytest.raises(UserError, match="did you mean 'softmax'"):
        losses.criterion("sofmax")
