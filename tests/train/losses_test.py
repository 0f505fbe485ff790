"""The losses, against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from evovit_jax import config as config_lib
from evovit_jax.errors import UserError
from evovit_jax.models import Outputs, abstract_model
from evovit_jax.train import losses

LOGITS = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]], np.float32)
DIST = np.array([[0.0, 1.0, 0.0], [2.0, 0.0, 1.0]], np.float32)
CLS = np.array([[0.5, 0.5, 2.0], [1.0, -1.0, 0.0]], np.float32)
CLS_DIST = np.array([[2.0, 0.0, 2.0], [0.0, -1.0, 1.0]], np.float32)
TAUGHT = np.array([[3.0, 1.0, 0.0], [0.0, 1.0, 4.0]], np.float32)
TARGETS = np.array([[0.7, 0.3, 0.0], [0.0, 0.5, 0.5]], np.float32)


def log_softmax(x):
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def cross_entropy(logits, targets):
    return -(targets * log_softmax(logits)).sum(1)


def outputs(**fields):
    return Outputs(features=jnp.zeros((2, 1, 1)), **fields)


def test_smoothed_targets_are_timms():
    found = losses.targets_of(jnp.array([2, 0], jnp.int32), 4, 0.1)
    np.testing.assert_allclose(found[0], [0.025, 0.025, 0.925, 0.025], rtol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)


def test_softmax():
    found = losses.criterion("softmax")(jnp.array(LOGITS), jnp.array(TARGETS))
    np.testing.assert_allclose(found, cross_entropy(LOGITS, TARGETS), rtol=1e-6)


def test_sigmoid():
    p = 1 / (1 + np.exp(-LOGITS))
    expected = -(TARGETS * np.log(p) + (1 - TARGETS) * np.log(1 - p)).mean(1)
    found = losses.sigmoid_loss(jnp.array(LOGITS), jnp.array(TARGETS))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_class_tokens_head_has_its_share():
    config = config_lib.get_config()
    config.loss.cls_weight = 0.25
    out = outputs(aux_logits={"cls": jnp.array(CLS)})
    total, terms = losses.training_loss(config, jnp.array(LOGITS), out, jnp.array(TARGETS))
    own, cls = (cross_entropy(x, TARGETS).mean() for x in (LOGITS, CLS))
    np.testing.assert_allclose(total, 0.75 * own + 0.25 * cls, rtol=1e-6)
    np.testing.assert_allclose(terms["loss_cls"], cls, rtol=1e-6)


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


def taught(kind, **aux_logits):
    c = config_lib.get_config()
    c.distill.kind = kind
    heads = {name: jnp.array(value) for name, value in aux_logits.items()}
    out = Outputs(features=jnp.zeros((2, 1, 1)), aux_logits=heads)
    found = losses.label_free_loss(c.distill, jnp.array(LOGITS), out, jnp.array(TAUGHT))
    return c, out, found


def test_soft_is_the_divergence_at_a_temperature():
    t, x = log_softmax(TAUGHT / 3), log_softmax(DIST / 3)
    expected = 9 * (np.exp(t) * (t - x)).sum(1).mean()
    np.testing.assert_allclose(taught("soft", dist=DIST)[2], expected, rtol=1e-5)
    x = log_softmax(LOGITS / 3)  # without a head of its own
    expected = 9 * (np.exp(t) * (t - x)).sum(1).mean()
    np.testing.assert_allclose(taught("soft")[2], expected, rtol=1e-5)


def test_hard_takes_half_of_the_loss():
    c, out, found = taught("hard", dist=DIST)
    total, terms = losses.training_loss(c, jnp.array(LOGITS), out, jnp.array(TARGETS), found)
    on_teacher = cross_entropy(DIST, np.eye(3)[[0, 2]]).mean()
    np.testing.assert_allclose(
        total, 0.5 * cross_entropy(LOGITS, TARGETS).mean() + 0.5 * on_teacher, rtol=1e-6
    )
    np.testing.assert_allclose(terms["loss_distill"], on_teacher, rtol=1e-6)


def test_cls_is_evo_levits_loss_on_four_heads():
    c, out, found = taught("cls", dist=DIST, cls=CLS, cls_dist=CLS_DIST)
    total, _ = losses.training_loss(c, jnp.array(LOGITS), out, jnp.array(TARGETS), found)
    t = np.eye(3)[[0, 2]]
    on_labels = (cross_entropy(LOGITS, TARGETS).mean() + cross_entropy(CLS, TARGETS).mean()) / 2
    on_teacher = (cross_entropy(DIST, t).mean() + cross_entropy(CLS_DIST, t).mean()) / 2
    np.testing.assert_allclose(total, 0.5 * on_labels + 0.5 * on_teacher, rtol=1e-6)


def test_without_a_teacher_the_distilled_heads_learn_the_labels():
    c, out, _ = taught("cls", dist=DIST, cls=CLS, cls_dist=CLS_DIST)
    total, terms = losses.training_loss(c, jnp.array(LOGITS), out, jnp.array(TARGETS))
    pooled = cross_entropy((LOGITS + DIST) / 2, TARGETS).mean()
    on_class = cross_entropy((CLS + CLS_DIST) / 2, TARGETS).mean()
    np.testing.assert_allclose(total, (pooled + on_class) / 2, rtol=1e-6)
    np.testing.assert_allclose(terms["loss_cls"], on_class, rtol=1e-6)


def test_cls_needs_the_heads():
    with pytest.raises(UserError, match=r"distill.kind='cls' .* use 'hard'"):
        taught("cls", dist=DIST)


@pytest.mark.parametrize(
    ("name", "reduction", "kind", "names"),
    [
        ("deit_tiny_patch16_224", "none", "none", ()),
        ("evo_deit_tiny_patch16_224", "evo", "none", ("loss_cls",)),
        ("evo_deit_tiny_patch16_224", "evo", "hard", ("loss_cls", "loss_distill")),
        ("deit_tiny_patch16_224", "dynamicvit", "none", ("loss_ratio",)),
        (
            "deit_tiny_patch16_224",
            "dynamicvit",
            "self",
            ("loss_distill_logits", "loss_distill_tokens", "loss_ratio"),
        ),
        ("regnety_160", "none", "soft", ("loss_distill",)),
    ],
)
def test_names_are_known_before_anything_is_computed(name, reduction, kind, names):
    c = config_lib.get_config()
    c.distill.kind = kind
    model = abstract_model(name, reduction)
    assert losses.names(c, model) == (*names, "loss")
    c.loss.cls_weight = 0.0
    assert "loss_cls" not in losses.names(c, model)


def test_an_unknown_loss_is_named():
    with pytest.raises(UserError, match="did you mean 'softmax'"):
        losses.criterion("sofmax")
