"""The learning rate, against its formula."""

import math

import numpy as np
import pytest

from evovit_jax import config as config_lib
from evovit_jax.train import learning_rate


@pytest.fixture
def config():
    c = config_lib.get_config()
    c.batch_size = 1024
    c.optim.update(
        learning_rate=1e-3,
        reference_batch=512,
        warmup_learning_rate=1e-5,
        min_learning_rate=1e-4,
    )
    return c


def test_rise_then_cosine(config):
    rate = learning_rate.learning_rate(config, total=100, warmup=10)
    peak = 2e-3
    for step in range(10):
        assert float(rate(step)) == pytest.approx(1e-5 + (peak - 1e-5) * step / 10, rel=1e-5)
    for step in range(10, 101):
        cosine = (1 + math.cos(math.pi * step / 100)) / 2
        assert float(rate(step)) == pytest.approx(1e-4 + (peak - 1e-4) * cosine, rel=1e-5)


def test_stays_at_the_minimum_after_the_end(config):
    rate = learning_rate.learning_rate(config, total=10, warmup=0)
    np.testing.assert_allclose(rate(50), 1e-4, rtol=1e-6)


def test_unscaled(config):
    config.optim.reference_batch = 0
    np.testing.assert_allclose(learning_rate.learning_rate(config, total=10, warmup=0)(0), 1e-3)
